//! Limits of the container's control group, by the fields of the specification and by the kernel's
//! own files.

use proptest::{option::weighted, prelude::Strategy, prop_oneof, sample::subsequence};
use serde_json::{Value, json};

use super::{Edit, Edits, one_of, set};

/// A memory limit together with one of memory and swap, which is none without the former.
fn swap() -> impl Strategy<Value = Vec<Edit>> {
    (48..400_u64, weighted(0.8, 0..100_u64)).prop_map(|(limit, swap)| {
        let bytes = |mib: u64| Value::from(mib << 20);
        let both = swap.map_or(Value::from(-1), |swap| bytes(limit + swap));
        vec![
            Edit::Set("/linux/resources/memory/limit", bytes(limit)),
            Edit::Set("/linux/resources/memory/swap", both),
        ]
    })
}

/// Files of a control group and what is written to them.
fn unified() -> impl Strategy<Value = Value> {
    let files = vec![
        ("memory.high", "209715200"),
        ("memory.low", "33554432"),
        ("memory.min", "16777216"),
        ("memory.swap.max", "67108864"),
        ("memory.oom.group", "1"),
        ("pids.max", "150"),
        ("cpu.weight", "50"),
        ("cpu.max", "30000 60000"),
        ("cpuset.cpus", "0"),
    ];
    // The kernel refuses the value, or knows no such file.
    let refused = [("cpu.weight.nice", "50"), ("memory.nonesuch", "1")];
    let refused = subsequence(refused.to_vec(), 1);
    prop_oneof![20 => subsequence(files, 1..=4), 1 => refused].prop_map(|files| {
        let pairs = files.into_iter();
        pairs
            .map(|(name, value)| (name.to_owned(), json!(value)))
            .collect()
    })
}

/// One edit for each limit. What is left of a CPU, or of its time beside others, is enough for the
/// report to come in time on a busy machine.
pub(super) fn any() -> Vec<Edits> {
    let mib = |range: std::ops::Range<u64>| range.prop_map(|mib| Value::from(mib << 20));
    vec![
        set("/linux/resources/memory/limit", mib(48..400)),
        set("/linux/resources/memory/reservation", mib(16..48)),
        set(
            "/linux/resources/pids/limit",
            (20..500).prop_map(Value::from),
        ),
        set(
            "/linux/resources/cpu/shares",
            (128..=262_144).prop_map(Value::from),
        ),
        set(
            "/linux/resources/cpu/quota",
            (40_000..90_000).prop_map(Value::from),
        ),
        set(
            "/linux/resources/cpu/period",
            (10_000..100_000).prop_map(Value::from),
        ),
        set("/linux/resources/unified", unified()),
        swap().boxed(),
        one_of("/linux/resources/pids/limit", [-1, 0].map(Value::from)),
        one_of("/linux/resources/cpu/cpus", ["0"].map(Value::from)),
        one_of("/linux/resources/cpu/mems", ["0"].map(Value::from)),
    ]
}
