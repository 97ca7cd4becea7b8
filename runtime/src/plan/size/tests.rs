//! Lists of CPUs; how sizes follow from a bundle is tested with the plan.

use proptest::prelude::*;

use super::*;

#[test]
fn cpus_of_a_list_are_counted_once() {
    for (list, expected) in [
        ("", None),
        (",", None),
        ("0", Some(1)),
        ("0-3,8", Some(5)),
        ("0-3,2-5,1", Some(6)),
        (" 1 - 2 , 7", Some(3)),
    ] {
        assert_eq!(count(list).unwrap(), expected, "{list}");
    }
}

proptest! {
    #[test]
    fn a_list_counts_what_it_names(cpus in prop::collection::btree_set(0_u64..100, 1..20)) {
        let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        prop_assert_eq!(count(&list.join(",")).unwrap(), Some(cpus.len() as u64));
    }

    /// More memory is asked for than the limit, and not much more.
    #[test]
    fn a_vm_is_a_little_larger_than_the_limit(limit in 1_u64..1 << 40) {
        let mib = limit.div_ceil(1 << 20);
        let vm = memory_mib(limit, u64::MAX).unwrap();
        prop_assert!(vm >= mib + 64 || vm == *MEMORY_MIB.end());
        prop_assert!(vm <= (mib + mib / 32 + 96));
    }
}
