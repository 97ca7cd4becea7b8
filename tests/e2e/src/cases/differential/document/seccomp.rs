//! Seccomp profiles: everything is allowed but what some rules say of calls that the report makes.

use proptest::{
    collection::vec,
    option::weighted,
    prelude::Strategy,
    prop_oneof,
    sample::{select, subsequence},
};
use serde_json::{Value, json};

use super::{Edits, set};

/// Calls that neither runtime needs once the filter is loaded, nor the report for anything else.
const CALLS: [&str; 7] = [
    "getpgid",
    "lseek",
    "mount",
    "personality",
    "sethostname",
    "socket",
    "unshare",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// A profile.
pub(super) fn any() -> Edits {
    let architectures = select(vec![
        json!(null),
        json!([]),
        json!(["SCMP_ARCH_X86_64"]),
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    ]);
    let default = select(vec!["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"]);
    let profile =
        (default, architectures, vec(rule(), 0..4)).prop_map(|(default, architectures, rules)| {
            let mut profile = json!({ "defaultAction": default, "syscalls": rules });
            if !architectures.is_null() {
                profile["architectures"] = architectures;
            }
            profile
        });
    set("/linux/seccomp", profile)
}

fn rule() -> impl Strategy<Value = Value> {
    let names = subsequence(CALLS.to_vec(), 1..=3);
    let plain = names.prop_map(|names| json!({ "names": names }));
    // Of `lseek` the report makes three, with 0, 1 and 2 as third argument.
    let condition = (select(OPERATORS.to_vec()), 0..4_u64, 0..4_u64).prop_map(|(operator, value, other)| {
        json!({ "index": 2, "value": value, "valueTwo": other, "op": operator })
    });
    let conditional = vec(condition, 1..=2)
        .prop_map(|conditions| json!({ "names": ["lseek"], "args": conditions }));
    (prop_oneof![plain, conditional], action()).prop_map(|(mut rule, (action, errno))| {
        rule["action"] = json!(action);
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        rule
    })
}

/// An action, and the number of an error for those that have one.
fn action() -> impl Strategy<Value = (&'static str, Option<u32>)> {
    let actions = select(vec![
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
    ]);
    (actions, weighted(0.5, 1..130_u32)).prop_map(|(action, errno)| {
        let takes = matches!(action, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE");
        (action, errno.filter(|_| takes))
    })
}
