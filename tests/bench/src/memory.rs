//! Memory of an idle sandbox, from `/proc/PID/smaps`: what its processes hold for themselves, and
//! what the guest touched of its own.
//!
//! Guest memory is told from ours by a flag of its mappings: the VMM reserves no swap for it
//! (`MAP_NORESERVE`), neither for the anonymous part nor for the files it maps into it, and for
//! nothing else. That rule is checked: these mappings must add up to the guest's memory.

use std::fs;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// Memory of one process, in KiB, without guest memory.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    /// Its name.
    name: String,
    /// Pages that nobody else has and that go when it ends.
    private_kib: u64,
    /// Unchanged pages of files, its program for example, that only this process maps at the
    /// moment. They are the page cache's: they stay when it ends and can be dropped while it runs.
    file_kib: u64,
    /// Guest memory that the guest or the VMM touched.
    guest_touched_kib: u64,
    /// All guest memory.
    #[serde(skip)]
    guest_kib: u64,
}

/// Memory of a sandbox.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// Each process.
    processes: Vec<Process>,
    /// Sum of what is private to each, in KiB.
    private_kib: u64,
    /// Guest memory touched, in KiB.
    guest_touched_kib: u64,
}

/// Measures `pids`, one of which has a guest of `guest_mib` MiB.
///
/// # Errors
/// If `/proc` cannot be read or the guest's memory is not found in it.
pub(crate) fn measure(pids: &[u64], guest_mib: u64) -> Result<Figures> {
    let mut figures = Figures {
        processes: Vec::new(),
        private_kib: 0,
        guest_touched_kib: 0,
    };
    let mut guest_kib = 0;
    for pid in pids {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
            .with_context(|| format!("reading the mappings of process {pid}"))?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        let process = Process {
            name: name.trim().to_owned(),
            ..of_smaps(&smaps)
        };
        figures.private_kib += process.private_kib;
        figures.guest_touched_kib += process.guest_touched_kib;
        guest_kib += process.guest_kib;
        figures.processes.push(process);
    }
    if guest_kib != guest_mib << 10 {
        bail!("mappings without reserve have {guest_kib} KiB, the guest {guest_mib} MiB");
    }
    Ok(figures)
}

/// Sums up the mappings of one process. Each begins with its range, has its figures, and ends with
/// its flags (`proc(5)`, `smaps`).
fn of_smaps(smaps: &str) -> Process {
    let mut process = Process::default();
    let (mut size, mut touched, mut dirty, mut clean) = (0, 0, 0, 0);
    for line in smaps.lines() {
        let Some((key, value)) = line.split_once(':') else {
            continue;
        };
        let kib = || {
            let number = value.trim().strip_suffix(" kB");
            number.and_then(|kib| kib.parse().ok()).unwrap_or(0)
        };
        match key {
            "Size" => size = kib(),
            "Rss" => touched = kib(),
            "Private_Dirty" => dirty = kib(),
            "Private_Clean" => clean = kib(),
            "VmFlags" if value.split_whitespace().any(|flag| flag == "nr") => {
                process.guest_kib += size;
                process.guest_touched_kib += touched;
            }
            "VmFlags" => {
                process.private_kib += dirty;
                process.file_kib += clean;
            }
            _ => {}
        }
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_without_reserve_are_the_guests() {
        let smaps = "\
00400000-00500000 r-xp 00000000 00:1b 7   /bin/lazaret-vmm
Size:               1024 kB
Rss:                 600 kB
Private_Clean:       600 kB
Private_Dirty:         0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
Rss:                  12 kB
Private_Clean:         4 kB
Private_Dirty:         8 kB
VmFlags: rd wr mr mw me ac
7f1000000000-7f1001000000 rw-p 00000000 00:1b 9   /vmlinux: its name may have a colon
Size:              16384 kB
Rss:                3000 kB
Private_Clean:      1000 kB
Private_Dirty:      2000 kB
VmFlags: rd wr mr mw me nr
";
        assert_eq!(
            of_smaps(smaps),
            Process {
                name: String::new(),
                private_kib: 8,
                file_kib: 604,
                guest_touched_kib: 3000,
                guest_kib: 16384,
            }
        );
    }
}
