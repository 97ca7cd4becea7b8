//! Memory and rest of an idle sandbox: what its processes hold beside the guest's memory, what
//! the guest touched of its own, and whether anything of ours runs while nothing is to do.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::bundle::Scratch;
use crate::runtime::{Runtime, run};

/// Id of the sandbox.
const ID: &str = "idle";

/// Guest memory asked for, in MiB.
const GUEST_MIB: u64 = 128;

/// Mappings of a VMM at least this large are guest memory, in KiB.
const GUEST_MAPPING_KIB: u64 = 16 << 10;

/// Seconds after the start until the guest has come to rest.
const SETTLE_SECONDS: u64 = 5;

/// One idle sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// The runtime.
    runtime: String,
    /// Each process: name and private memory without guest memory, in KiB.
    processes_kib: Vec<(String, u64)>,
    /// Their sum.
    private_kib: u64,
    /// Guest memory touched, in KiB, of [`GUEST_MIB`].
    guest_touched_kib: u64,
    /// Seconds it was watched.
    idle_seconds: u64,
    /// How often threads other than vCPUs were scheduled in that time.
    wakeups: u64,
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
    let bundle = scratch.bundle("memory", &spec, &["/bin/sleep", "100000"])?;
    run(&mut runtime.verb(&["run", "--detach", "--bundle", &bundle.to_string_lossy(), ID]))?;
    thread::sleep(Duration::from_secs(SETTLE_SECONDS));
    let pids = sandbox_processes(runtime)?;
    let before = wakeups(&pids)?;
    thread::sleep(Duration::from_secs(idle_seconds));
    let after = wakeups(&pids)?;
    let mut figures = Figures {
        runtime: runtime.name(),
        processes_kib: Vec::new(),
        private_kib: 0,
        guest_touched_kib: 0,
        idle_seconds,
        wakeups: after - before,
    };
    for pid in pids {
        let (private, guest) = memory_of(pid)?;
        figures.processes_kib.push((name_of(pid)?, private));
        figures.private_kib += private;
        figures.guest_touched_kib += guest;
    }
    run(&mut runtime.verb(&["delete", "--force", ID]))?;
    Ok(Some(figures))
}

/// The monitor and what it started.
fn sandbox_processes(runtime: &Runtime) -> Result<Vec<u64>> {
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
            && number(&status, "PPid:") == Some(monitor)
        {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn name_of(pid: u64) -> Result<String> {
    Ok(fs::read_to_string(format!("/proc/{pid}/comm"))?
        .trim()
        .to_owned())
}

/// Private memory outside and touched memory inside of the guest's, in KiB.
fn memory_of(pid: u64) -> Result<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut private, mut guest, mut is_guest) = (0, 0, false);
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let Some(kib) = value
            .trim()
            .strip_suffix(" kB")
            .and_then(|kib| kib.parse::<u64>().ok())
        else {
            continue;
        };
        match key {
            "Size" => is_guest = kib >= GUEST_MAPPING_KIB,
            "Rss" if is_guest => guest += kib,
            "Private_Clean" | "Private_Dirty" if !is_guest => private += kib,
            _ => {}
        }
    }
    Ok((private, guest))
}

/// How often threads other than vCPUs were scheduled so far.
fn wakeups(pids: &[u64]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            if status.starts_with("Name:\tvcpu") {
                continue;
            }
            sum += number(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        }
    }
    Ok(sum)
}

/// The number behind `name` in a `status` file of `/proc`.
fn number(status: &str, name: &str) -> Option<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|value| value.trim().parse().ok())
}
