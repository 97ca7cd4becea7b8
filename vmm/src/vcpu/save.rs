//! The state of a vCPU as a plain struct, and back. Called while the vCPU's thread is parked.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msrs::{self, MsrError};

/// Everything that makes up a vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Ordered so that [`msrs::write`] restores them rightly.
    pub(crate) msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
    tsc_khz: Option<u32>,
}

/// Why a vCPU's state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// KVM refused.
    #[error("cannot {verb} {what}")]
    Call {
        /// `read` or `write`.
        verb: &'static str,
        /// Which part.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The model-specific registers failed.
    #[error(transparent)]
    Msrs(#[from] MsrError),
    /// The state has more CPUID leaves than KVM takes.
    #[error("state has {count} CPUID leaves, more than {KVM_MAX_CPUID_ENTRIES}")]
    TooManyLeaves {
        /// How many.
        count: usize,
    },
}

fn read(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Call {
        verb: "read",
        what,
        source,
    }
}

fn write(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Call {
        verb: "write",
        what,
        source,
    }
}

/// Reads the state of `vcpu`; `msr_indices` are those of [`msrs::indices`].
///
/// # Errors
/// When KVM refuses a part.
pub fn save(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<VcpuState, StateError> {
    // The multiprocessing state first: reading it settles pending events in KVM.
    let mp_state = vcpu.get_mp_state().map_err(read("processor state"))?;
    Ok(VcpuState {
        mp_state,
        cpuid: vcpu
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(read("CPUID"))?
            .as_slice()
            .to_vec(),
        regs: vcpu.get_regs().map_err(read("general registers"))?,
        sregs: vcpu.get_sregs().map_err(read("segment registers"))?,
        xsave: vcpu.get_xsave().map_err(read("extended state"))?,
        xcrs: vcpu
            .get_xcrs()
            .map_err(read("extended control registers"))?,
        debug_regs: vcpu.get_debug_regs().map_err(read("debug registers"))?,
        lapic: vcpu.get_lapic().map_err(read("local APIC"))?,
        msrs: msrs::read(vcpu, msr_indices)?,
        events: vcpu.get_vcpu_events().map_err(read("events"))?,
        // Hosts with an unstable TSC have none to tell.
        tsc_khz: vcpu.get_tsc_khz().ok(),
    })
}

/// Makes the fresh `vcpu` what `state` says.
///
/// # Errors
/// When KVM refuses a part; the vCPU is then unusable.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    let count = state.cpuid.len();
    let cpuid =
        CpuId::from_entries(&state.cpuid).map_err(|_| StateError::TooManyLeaves { count })?;
    vcpu.set_cpuid2(&cpuid).map_err(write("CPUID"))?;
    if let Some(khz) = state.tsc_khz
        && vcpu.get_tsc_khz().ok() != Some(khz)
    {
        vcpu.set_tsc_khz(khz).map_err(write("TSC frequency"))?;
    }
    vcpu.set_mp_state(state.mp_state)
        .map_err(write("processor state"))?;
    vcpu.set_regs(&state.regs)
        .map_err(write("general registers"))?;
    // The APIC base in them enables the local APIC, whose timer mode decides what the deadline
    // register does: hence this order.
    vcpu.set_sregs(&state.sregs)
        .map_err(write("segment registers"))?;
    // SAFETY: the state fits the buffer: guests are given no feature whose extended state takes
    // more than the 4 KiB of `kvm_xsave` (that needs a permission this process never asks for).
    unsafe { vcpu.set_xsave(&state.xsave) }.map_err(write("extended state"))?;
    vcpu.set_xcrs(&state.xcrs)
        .map_err(write("extended control registers"))?;
    vcpu.set_debug_regs(&state.debug_regs)
        .map_err(write("debug registers"))?;
    vcpu.set_lapic(&state.lapic).map_err(write("local APIC"))?;
    msrs::write(vcpu, &state.msrs)?;
    vcpu.set_vcpu_events(&state.events).map_err(write("events"))
}
