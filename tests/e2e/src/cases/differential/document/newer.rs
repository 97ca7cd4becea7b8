//! Fields that Debian's runc passes over or refuses: scheduling, personality, clocks. What they
//! change in a report is known, and what they leave alone is what runc shows without them.

use proptest::prelude::{Just, Strategy};
use serde_json::{Value, json};

use super::{Edit, Edits, Shown};

/// `IOPRIO_CLASS_SHIFT` of the kernel.
const CLASS_SHIFT: u32 = 13;

/// What needs no rights outside a user namespace.
pub(super) fn any() -> Vec<Edits> {
    vec![scheduler(), io_priority(), personality(), clocks()]
}

fn newer(edits: Vec<Edit>, shown: Vec<Shown>) -> Vec<Edit> {
    vec![Edit::Newer(edits, shown)]
}

fn scheduler() -> Edits {
    let policies = [("SCHED_OTHER", 0), ("SCHED_BATCH", 3), ("SCHED_IDLE", 5)];
    (proptest::sample::select(policies.to_vec()), 0..20_i64)
        .prop_map(|((name, number), nice)| {
            // An idle process has no nice value of its own.
            let counts = if name == "SCHED_IDLE" { 0 } else { nice };
            let always = |place, with| Shown {
                place,
                without: None,
                with,
            };
            newer(
                vec![Edit::Set(
                    "/process/scheduler",
                    json!({ "policy": name, "nice": nice }),
                )],
                vec![
                    always("/scheduling", json!([counts, 0, number])),
                    always("/priority", json!(counts)),
                ],
            )
        })
        .boxed()
}

fn io_priority() -> Edits {
    let classes = [("IOPRIO_CLASS_BE", 2_u32), ("IOPRIO_CLASS_IDLE", 3)];
    (proptest::sample::select(classes.to_vec()), 0..8_u32)
        .prop_map(|((class, number), priority)| {
            let place = "/io priority";
            newer(
                vec![Edit::Set(
                    "/process/ioPriority",
                    json!({ "class": class, "priority": priority }),
                )],
                vec![Shown {
                    place,
                    without: None,
                    with: json!(number << CLASS_SHIFT | priority),
                }],
            )
        })
        .boxed()
}

fn personality() -> Edits {
    let instead = |place, without: Value, with: Value| Shown {
        place,
        without: Some(without),
        with,
    };
    Just(newer(
        vec![Edit::Set(
            "/linux/personality",
            json!({ "domain": "LINUX32" }),
        )],
        vec![
            instead("/machine", json!("x86_64"), json!("i686")),
            instead(
                "/files/~1proc~1self~1personality",
                json!("00000000\n"),
                json!("00000008\n"),
            ),
            instead("/calls/personality", json!(0), json!(8)),
        ],
    ))
    .boxed()
}

fn clocks() -> Edits {
    (0..1_000_000_i64, 0..1_000_000_000_i64, 0..1_000_000_i64)
        .prop_map(|(monotonic, nanoseconds, boottime)| {
            // The widths are those of the kernel's `proc_timens_show_offsets`.
            let lines = format!(
                "{:<10} {monotonic:>10} {nanoseconds:>9}\n{:<10} {boottime:>10} {:>9}\n",
                "monotonic", "boottime", 0
            );
            let offsets = json!({
                "monotonic": { "secs": monotonic, "nanosecs": nanoseconds },
                "boottime": { "secs": boottime },
            });
            let none = "monotonic           0         0\nboottime            0         0\n";
            newer(
                vec![
                    Edit::Append("/linux/namespaces", json!({ "type": "time" })),
                    Edit::Set("/linux/timeOffsets", offsets),
                ],
                vec![Shown {
                    place: "/files/~1proc~1self~1timens_offsets",
                    without: Some(json!(none)),
                    with: json!(lines),
                }],
            )
        })
        .boxed()
}
