//! Hooks: which run, in what order and with what state. They write a line each, those of the host to
//! a file beside the bundle's root file system, `startContainer` to one in it.

use std::{fs, path::Path};

use anyhow::Result;
use proptest::{
    prelude::Strategy,
    sample::{select, subsequence},
};
use serde_json::{Value, json};

use super::{Edit, Edits};
use crate::{
    bundle::{Bundle, PROBE},
    cases::hooks::probe,
};

/// In the order in which they run.
const LISTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// The file of the host's hooks, in the bundle.
const LOG: &str = "hooks";

/// The file of those of the container, in its root file system.
const LOG_INSIDE: &str = "work/hooks";

/// Hooks of some lists.
pub(super) fn any_lists() -> Edits {
    subsequence(LISTS.to_vec(), 1..=3)
        .prop_map(|lists| vec![Edit::Hooks(lists)])
        .boxed()
}

/// A hook that fails, where that ends the container under either runtime.
pub(super) fn any_failing() -> Edits {
    select(LISTS[..4].to_vec())
        .prop_map(|list| vec![Edit::FailingHook(list)])
        .boxed()
}

/// A hook of `list` that writes a line about itself.
pub(super) fn noting(list: &str, bundle: &Bundle, program: &Path) -> Value {
    if list == "startContainer" {
        return probe(PROBE, "hook", &[list, &format!("/{LOG_INSIDE}")]);
    }
    let log = bundle.directory.join(LOG);
    probe(
        &program.to_string_lossy(),
        "hook",
        &[list, &log.to_string_lossy()],
    )
}

/// A hook of `list` that fails.
pub(super) fn failing(list: &str, program: &Path) -> Value {
    let program = program.to_string_lossy();
    let inside = list == "startContainer";
    probe(if inside { PROBE } else { &program }, "hook-fail", &[])
}

/// What the hooks wrote of a container that has been run, without what differs from one container
/// to the next.
pub(in super::super) fn lines(bundle: &Bundle) -> Result<Value> {
    let mut found = Vec::new();
    for log in [bundle.directory.join(LOG), bundle.rootfs().join(LOG_INSIDE)] {
        let Ok(text) = fs::read_to_string(&log) else {
            continue;
        };
        for line in text.lines() {
            found.push(line_of(&serde_json::from_str(line)?, bundle));
        }
    }
    Ok(found.into())
}

fn line_of(line: &Value, bundle: &Bundle) -> Value {
    let state = &line["state"];
    let name = line["name"].as_str().unwrap_or_default();
    // The process may have ended before a hook runs that comes after its start.
    let status = if name == "poststart" {
        &Value::Null
    } else {
        &state["status"]
    };
    json!({
        "name": name,
        "environment": line["env"],
        "status": status,
        "annotations": state["annotations"],
        "is of the container": state["id"] == *bundle.id,
        "has a process": state["pid"].as_u64().is_some_and(|pid| pid > 0),
    })
}
