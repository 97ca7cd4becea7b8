//! What `/proc` says of a container's processes, for `ps`. Called by [`crate::server`]; what the
//! lines mean is the runtime's business.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;

use lazaret_protocol::agent::{COMMAND_BYTES_MAX, ProcessEntry, ProcessList};
use rustix::time::{ClockId, clock_gettime};

/// Bytes of text in one answer: well below what a frame carries.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// Describes processes of `pids`, which ascend, from the first above `after` on: as many as an
/// answer has room for. Those that have ended meanwhile are left out.
pub fn describe(pids: &[u32], after: u32) -> ProcessList {
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime_ms = uptime.tv_sec * 1000 + uptime.tv_nsec / 1_000_000;
    let mut processes = Vec::new();
    let mut bytes = 0;
    for &pid in pids.iter().filter(|pid| **pid > after) {
        if bytes > ANSWER_BYTES_MAX {
            break;
        }
        if let Some(entry) = entry(pid) {
            bytes += entry.stat.len() + entry.command.len();
            processes.push(entry);
        }
    }
    ProcessList {
        uptime_ms: u64::try_from(uptime_ms).unwrap_or(0),
        processes,
    }
}

fn entry(pid: u32) -> Option<ProcessEntry> {
    let directory = format!("/proc/{pid}");
    // Owned by the process's effective user, unless it is not dumpable.
    let status = fs::read_to_string(format!("{directory}/status")).ok()?;
    let uid = effective_uid(&status).or_else(|| Some(fs::metadata(&directory).ok()?.uid()))?;
    let stat = fs::read(format!("{directory}/stat")).ok()?;
    let mut command = Vec::new();
    File::open(format!("{directory}/cmdline"))
        .and_then(|file| {
            file.take(COMMAND_BYTES_MAX as u64)
                .read_to_end(&mut command)
        })
        .ok()?;
    Some(ProcessEntry {
        pid,
        uid,
        stat: String::from_utf8_lossy(&stat).trim_end().to_owned(),
        command: joined(&command),
    })
}

/// Second number of the line `Uid:` (`proc_pid_status(5)`).
fn effective_uid(status: &str) -> Option<u32> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Arguments that end with a NUL each, as one line.
fn joined(arguments: &[u8]) -> String {
    let trimmed = arguments.strip_suffix(&[0]).unwrap_or(arguments);
    let blank = trimmed
        .iter()
        .map(|&byte| if byte == 0 { b' ' } else { byte });
    String::from_utf8_lossy(&blank.collect::<Vec<u8>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described_and_one_that_has_ended_is_not() {
        let own = std::process::id();
        let list = describe(&[own, u32::MAX], own - 1);
        assert!(list.uptime_ms > 0);
        let [entry] = &list.processes[..] else {
            panic!("{list:?}");
        };
        assert_eq!(entry.pid, own);
        assert_eq!(entry.uid, rustix::process::geteuid().as_raw());
        assert!(entry.stat.starts_with(&format!("{own} (")), "{entry:?}");
        assert!(entry.command.contains("lazaret"), "{entry:?}");
        assert_eq!(describe(&[own], own).processes, []);
    }

    #[test]
    fn arguments_become_one_line() {
        assert_eq!(joined(b"sh\0-c\0true\0"), "sh -c true");
        assert_eq!(joined(b""), "");
        assert_eq!(joined(b"\xff\0"), "\u{fffd}");
    }
}
