//! One idle sandbox, and what is measured of it: its memory and its rest.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::bundle::Scratch;
use crate::runtime::{Runtime, run};
use crate::{idle, memory};

/// Id of the sandbox.
const ID: &str = "idle";

/// Guest memory asked for, in MiB.
const GUEST_MIB: u64 = 128;

/// Name of the VMM's control socket in the container's directory in the state root.
const CONTROL_SOCKET: &str = "vm.sock";

/// Seconds after the start until the guest has come to rest.
const SETTLE_SECONDS: u64 = 5;

/// What was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// The runtime.
    runtime: String,
    /// Guest memory in MiB.
    guest_mib: u64,
    /// What it takes.
    memory: memory::Figures,
    /// What it does.
    idle: idle::Figures,
}

/// Measures a runtime whose sandbox is a VM; `None` for others.
///
/// # Errors
/// If a verb fails or `/proc` cannot be read.
pub(crate) fn measure(
    runtime: &Runtime,
    scratch: &Scratch,
    mut spec: Value,
    idle_seconds: u64,
) -> Result<Option<Figures>> {
    if runtime.name() != "lazaret" {
        return Ok(None);
    }
    spec["annotations"]["io.lazaret.vm.memory_mib"] = GUEST_MIB.to_string().into();
    let bundle = scratch.bundle("sandbox", &spec, &["/bin/sleep", "100000"])?;
    run(&mut runtime.verb(&["run", "--detach", "--bundle", &bundle.to_string_lossy(), ID]))?;
    let figures = watch(runtime, idle_seconds);
    run(&mut runtime.verb(&["delete", "--force", ID]))?;
    figures.map(Some)
}

fn watch(runtime: &Runtime, idle_seconds: u64) -> Result<Figures> {
    // Nothing tells that a guest has nothing to do any more.
    thread::sleep(Duration::from_secs(SETTLE_SECONDS));
    let pids = processes(runtime)?;
    let control = runtime.root().join(ID).join(CONTROL_SOCKET);
    let before = idle::Counters::ask(&control)?;
    // It answers, and comes to rest again.
    thread::sleep(Duration::from_secs(1));
    let threads = idle::Threads::look(&pids)?;
    thread::sleep(Duration::from_secs(idle_seconds));
    let later = idle::Threads::look(&pids)?;
    let after = idle::Counters::ask(&control)?;
    Ok(Figures {
        runtime: runtime.name(),
        guest_mib: GUEST_MIB,
        memory: memory::measure(&pids, GUEST_MIB)?,
        idle: idle::Figures::of((&threads, &later), (&before, &after), idle_seconds),
    })
}

/// The monitor and what it started.
fn processes(runtime: &Runtime) -> Result<Vec<u64>> {
    let monitor = runtime.state(ID)?["pid"]
        .as_u64()
        .context("state shows no pid")?;
    let mut pids = vec![monitor];
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u64>().ok()) else {
            continue;
        };
        // A process may end between the listing and this.
        if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status"))
            && status
                .lines()
                .any(|line| line == format!("PPid:\t{monitor}"))
        {
            pids.push(pid);
        }
    }
    Ok(pids)
}
