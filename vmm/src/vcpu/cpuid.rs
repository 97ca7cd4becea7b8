//! The CPUID template: what KVM supports on this host, less what a guest is not given, with the
//! topology of this VM. Leaf numbers and bits are those of the Intel SDM volume 2 (`CPUID`) and
//! the AMD64 manual volume 3 (appendix E).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

const LEAF_VENDOR: u32 = 0;
const LEAF_FEATURES: u32 = 1;
const LEAF_CACHES: u32 = 4;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_SVM: u32 = 0x8000_000a;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_VMX: u32 = 1 << 5;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const AMD_ECX_CMP_LEGACY: u32 = 1 << 1;
const AMD_ECX_SVM: u32 = 1 << 2;

const LEVEL_TYPE_SMT: u32 = 1;
const LEVEL_TYPE_CORE: u32 = 2;

/// What the template depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Template {
    /// Processors of the VM, one core each in one package.
    pub vcpus: u8,
    /// Whether VMX or SVM is visible.
    pub nested: bool,
    /// Whether KVM emulates the TSC deadline timer of the local APIC.
    pub tsc_deadline: bool,
}

/// What KVM supports on this host.
///
/// # Errors
/// When KVM refuses to tell.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// Whether KVM emulates the TSC deadline timer, which the supported leaves do not always say.
pub fn has_tsc_deadline(kvm: &Kvm) -> bool {
    kvm.check_extension(Cap::TscDeadlineTimer)
}

impl Template {
    /// The leaves of the vCPU with APIC id `apic_id`.
    pub fn apply(&self, supported: &CpuId, apic_id: u8) -> CpuId {
        let mut leaves: Vec<kvm_cpuid_entry2> = supported
            .as_slice()
            .iter()
            .filter(|leaf| !self.is_rebuilt(leaf.function))
            .copied()
            .collect();
        let amd = leaves.iter().any(is_amd);
        for leaf in &mut leaves {
            self.adjust(leaf, apic_id, amd);
        }
        for function in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
            if supported
                .as_slice()
                .iter()
                .any(|leaf| leaf.function == function)
            {
                leaves.extend(self.topology(function, apic_id));
            }
        }
        CpuId::from_entries(&leaves).expect("KVM's maximum leaves room for four more leaves")
    }

    fn is_rebuilt(&self, function: u32) -> bool {
        matches!(function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2)
            || (function == LEAF_AMD_SVM && !self.nested)
    }

    fn adjust(&self, leaf: &mut kvm_cpuid_entry2, apic_id: u8, amd: bool) {
        let several = self.vcpus > 1;
        let others = u32::from(self.vcpus) - 1;
        match leaf.function {
            LEAF_FEATURES => {
                let logical = u32::from(self.vcpus.next_power_of_two());
                leaf.ebx = leaf.ebx & 0xffff | logical << 16 | u32::from(apic_id) << 24;
                leaf.ecx |= ECX_HYPERVISOR;
                set_bit(&mut leaf.ecx, ECX_TSC_DEADLINE, self.tsc_deadline);
                set_bit(&mut leaf.edx, EDX_HTT, several);
                if !self.nested {
                    leaf.ecx &= !ECX_VMX;
                }
            }
            // Level in bits 5 to 7: the first two levels are a core's own, the third is shared.
            LEAF_CACHES if leaf.eax & 0x1f != 0 => {
                let sharing = if leaf.eax >> 5 & 7 >= 3 { others } else { 0 };
                leaf.eax = leaf.eax & 0x3fff | sharing << 14 | self.core_ids() << 26;
            }
            LEAF_AMD_FEATURES => {
                set_bit(&mut leaf.ecx, AMD_ECX_CMP_LEGACY, amd && several);
                if !self.nested {
                    leaf.ecx &= !AMD_ECX_SVM;
                }
            }
            // On Intel ecx is reserved.
            LEAF_AMD_SIZES if amd => {
                leaf.ecx = others | self.apic_id_bits() << 12;
            }
            LEAF_AMD_CACHES if leaf.eax & 0x1f != 0 => {
                let sharing = if leaf.eax >> 5 & 7 >= 3 { others } else { 0 };
                leaf.eax = leaf.eax & 0x3fff | sharing << 14;
            }
            LEAF_AMD_TOPOLOGY => {
                leaf.eax = apic_id.into();
                leaf.ebx = apic_id.into(); // Core id; one thread each.
                leaf.ecx = 0; // One node.
            }
            _ => {}
        }
    }

    /// Leaf 0xb or 0x1f: a level of threads with one each, a level of cores with all.
    fn topology(&self, function: u32, apic_id: u8) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: kind << 8 | index,
            edx: apic_id.into(),
            ..Default::default()
        };
        let processors = u32::from(self.vcpus);
        [
            level(0, LEVEL_TYPE_SMT, 0, 1),
            level(1, LEVEL_TYPE_CORE, self.apic_id_bits(), processors),
            level(2, 0, 0, 0),
        ]
    }

    /// Bits of an APIC id that tell the cores of the package apart.
    fn apic_id_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    /// Most core ids of a package, less one, in the six bits that leaf 4 has.
    fn core_ids(&self) -> u32 {
        (u32::from(self.vcpus.next_power_of_two()) - 1).min(0x3f)
    }
}

fn is_amd(leaf: &kvm_cpuid_entry2) -> bool {
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx]
        .map(u32::to_le_bytes)
        .concat();
    leaf.function == LEAF_VENDOR && (vendor == b"AuthenticAMD" || vendor == b"HygonGenuine")
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}
