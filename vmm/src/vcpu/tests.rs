//! The CPUID template on made-up hosts.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use proptest::prelude::*;

use super::cpuid::Template;

fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn vendor(name: &[u8; 12]) -> kvm_cpuid_entry2 {
    let word = |at: usize| u32::from_le_bytes(name[at..at + 4].try_into().unwrap());
    leaf(0, 0, [0x1f, word(0), word(8), word(4)])
}

/// All features, caches of level 1 and 3, and a topology that is not the guest's.
fn host(name: &[u8; 12]) -> CpuId {
    let entries = [
        vendor(name),
        leaf(1, 0, [0, 0xffff_ffff, !(1 << 31 | 1 << 24), u32::MAX]),
        leaf(4, 0, [0xfc1f_c021, 1, 2, 3]),
        leaf(4, 1, [0xfc1f_c063, 1, 2, 3]),
        leaf(4, 2, [0, 0, 0, 0]),
        leaf(0xb, 0, [1, 2, 0x100, 77]),
        leaf(0xb, 1, [7, 99, 0x201, 77]),
        leaf(0x1f, 0, [1, 2, 0x100, 77]),
        leaf(0x4000_0000, 0, [0x4000_0001, 1, 2, 3]),
        leaf(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0xffff, 0]),
        leaf(0x8000_000a, 0, [1, 64, 0, 0xffff]),
        leaf(0x8000_001d, 1, [0x1f_c063, 0, 0, 0]),
        leaf(0x8000_001e, 0, [77, 0x177, 0x100, 0]),
    ];
    CpuId::from_entries(&entries).unwrap()
}

fn template(vcpus: u8, nested: bool) -> Template {
    Template {
        vcpus,
        nested,
        tsc_deadline: true,
    }
}

fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    cpuid
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == function && leaf.index == index)
        .copied()
}

#[test]
fn virtualisation_is_visible_only_when_asked_for() {
    for (nested, visible) in [(false, 0), (true, 1)] {
        for name in [b"GenuineIntel", b"AuthenticAMD"] {
            let cpuid = template(1, nested).apply(&host(name), 0);
            assert_eq!(find(&cpuid, 1, 0).unwrap().ecx >> 5 & 1, visible);
            assert_eq!(find(&cpuid, 0x8000_0001, 0).unwrap().ecx >> 2 & 1, visible);
            assert_eq!(find(&cpuid, 0x8000_000a, 0).is_some(), nested);
        }
    }
}

#[test]
fn a_guest_knows_that_it_is_one_and_has_its_timer() {
    let cpuid = template(1, false).apply(&host(b"GenuineIntel"), 0);
    let features = find(&cpuid, 1, 0).unwrap();
    assert_eq!(features.ecx >> 31, 1);
    assert_eq!(features.ecx >> 24 & 1, 1);
    assert_eq!(features.edx >> 28 & 1, 0);
    assert!(find(&cpuid, 0x4000_0000, 0).is_some());
    let without = Template {
        tsc_deadline: false,
        ..template(1, false)
    };
    let cpuid = without.apply(&host(b"GenuineIntel"), 0);
    assert_eq!(find(&cpuid, 1, 0).unwrap().ecx >> 24 & 1, 0);
}

#[test]
fn amd_leaves_say_how_many_cores_there_are() {
    let cpuid = template(6, false).apply(&host(b"AuthenticAMD"), 5);
    assert_eq!(find(&cpuid, 0x8000_0008, 0).unwrap().ecx, 5 | 3 << 12);
    let node = find(&cpuid, 0x8000_001e, 0).unwrap();
    assert_eq!((node.eax, node.ebx, node.ecx), (5, 5, 0));
    assert_eq!(find(&cpuid, 0x8000_001d, 1).unwrap().eax >> 14 & 0xfff, 5);
    assert_eq!(find(&cpuid, 0x8000_0001, 0).unwrap().ecx & 2, 2);
    let intel = template(6, false).apply(&host(b"GenuineIntel"), 5);
    assert_eq!(find(&intel, 0x8000_0008, 0).unwrap().ecx, 0xffff);
}

proptest! {
    /// All leaves tell the same: one package, one thread a core, as many cores as vCPUs.
    #[test]
    fn the_topology_is_consistent(vcpus in 1_u8..=64, apic_id in 0_u8..64) {
        prop_assume!(apic_id < vcpus);
        let cpuid = template(vcpus, false).apply(&host(b"GenuineIntel"), apic_id);
        let features = find(&cpuid, 1, 0).unwrap();
        prop_assert_eq!(features.ebx >> 24, u32::from(apic_id));
        prop_assert!(features.ebx >> 16 & 0xff >= u32::from(vcpus));
        prop_assert_eq!(features.edx >> 28 & 1, u32::from(vcpus > 1));
        for function in [0xb, 0x1f] {
            let threads = find(&cpuid, function, 0).unwrap();
            let cores = find(&cpuid, function, 1).unwrap();
            let last = find(&cpuid, function, 2).unwrap();
            prop_assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
            prop_assert_eq!((cores.ebx, cores.ecx), (u32::from(vcpus), 0x201));
            prop_assert!(u32::from(apic_id) >> cores.eax == 0);
            prop_assert_eq!((last.ebx, last.ecx), (0, 2));
            prop_assert!([threads, cores, last].iter().all(|leaf| leaf.edx == u32::from(apic_id)));
        }
        // The first level's cache is a core's own, the third's is shared by all.
        prop_assert_eq!(find(&cpuid, 4, 0).unwrap().eax >> 14 & 0xfff, 0);
        prop_assert_eq!(find(&cpuid, 4, 1).unwrap().eax >> 14 & 0xfff, u32::from(vcpus) - 1);
        prop_assert_eq!(find(&cpuid, 4, 2).unwrap().eax, 0);
    }
}
