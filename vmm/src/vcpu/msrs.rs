//! Model-specific registers: those a vCPU starts with, and those that make up its saved state.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

/// IA32_MISC_ENABLE.
const MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE.
const MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const MTRR_WRITE_BACK: u64 = 6;

/// IA32_TSC_DEADLINE: restored after the TSC, as its value counts against it.
const TSC_DEADLINE: u32 = 0x6e0;
/// Most registers one call to KVM reads: `KVM_MAX_MSR_ENTRIES` of Linux.
const BATCH_MAX: usize = 256;

/// Why registers could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refused the call.
    #[error("cannot {verb} model-specific registers")]
    Call {
        /// What was tried.
        verb: &'static str,
        /// What the kernel says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refused one register.
    #[error("cannot {verb} model-specific register {index:#x}")]
    Register {
        /// What was tried.
        verb: &'static str,
        /// The register.
        index: u32,
    },
}

/// Sets what firmware would have set: fast string operations, and memory that is write-back
/// where no range register says otherwise.
///
/// # Errors
/// When KVM refuses.
pub fn prepare(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    write(
        vcpu,
        &[
            entry(MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
            entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
        ],
    )
}

/// Writes `entries` in order.
///
/// # Errors
/// When KVM refuses one; those before it are written.
pub fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), MsrError> {
    let verb = "write";
    for batch in entries.chunks(BATCH_MAX) {
        let msrs = Msrs::from_entries(batch).expect("a batch is within the maximum");
        let done = vcpu
            .set_msrs(&msrs)
            .map_err(|source| MsrError::Call { verb, source })?;
        if let Some(entry) = batch.get(done) {
            let index = entry.index;
            return Err(MsrError::Register { verb, index });
        }
    }
    Ok(())
}

/// The registers that KVM says belong to a vCPU's state.
///
/// # Errors
/// When KVM refuses to list them.
pub fn indices(kvm: &Kvm) -> Result<Vec<u32>, MsrError> {
    let list = kvm.get_msr_index_list().map_err(|source| MsrError::Call {
        verb: "list",
        source,
    })?;
    Ok(list.as_slice().to_vec())
}

/// Reads `indices`, leaving out those this vCPU has not (KVM lists what the host may have; a
/// guest's CPUID decides). Ordered so that [`write`] restores them rightly.
///
/// # Errors
/// When KVM refuses the call.
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, MsrError> {
    let verb = "read";
    let mut wanted = indices.to_vec();
    wanted.sort_by_key(|index| *index == TSC_DEADLINE);
    let mut values = Vec::with_capacity(wanted.len());
    let mut rest = wanted.as_slice();
    while !rest.is_empty() {
        let batch: Vec<_> = rest
            .iter()
            .take(BATCH_MAX)
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs = Msrs::from_entries(&batch).expect("a batch is within the maximum");
        let done = vcpu
            .get_msrs(&mut msrs)
            .map_err(|source| MsrError::Call { verb, source })?;
        values.extend_from_slice(&msrs.as_slice()[..done]);
        let refused = usize::from(done < batch.len());
        rest = &rest[done + refused..];
    }
    Ok(values)
}
