//! Processes of ours by pid *and* start time, so that a pid the kernel has given to somebody else
//! is never taken for ours. Called by the state and by `kill`, `delete`.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// A process, for as long as this machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    /// Its pid.
    pub(crate) pid: i32,
    /// When it started, in clock ticks since boot (`proc(5)`, `stat`, field 22).
    pub(crate) start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start_ticks) = parse_stat(&stat)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown format"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it has not ended; one that waits to be reaped has.
    pub(crate) fn is_alive(self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        parse_stat(&stat).is_some_and(|(state, start_ticks)| {
            start_ticks == self.start_ticks && !matches!(state, 'Z' | 'X')
        })
    }

    /// A descriptor of it, or `None` if it has ended.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Alive after opening, with the same start time: the descriptor is this process's.
        self.is_alive().then_some(fd)
    }
}

/// Waits until the process behind `pidfd` ends; tells whether it did so in time.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap_or(Timespec {
        tv_sec: i64::MAX,
        tv_nsec: 0,
    });
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Err(Errno::INTR) => {}
            Ok(0) | Err(_) => return false,
            Ok(_) => return true,
        }
    }
}

/// Kills the process behind `pidfd` and waits for its end; tells whether it ended in time.
pub(crate) fn kill_and_wait(pidfd: &OwnedFd, timeout: Duration) -> bool {
    // A failure means it has ended, which the wait is going to find out.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    wait_for_end(pidfd, timeout)
}

/// State letter and start time of a `/proc/PID/stat` line. The name in it may contain anything,
/// parentheses and line breaks included, so fields are counted from its last parenthesis.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3; 18 more lie between it and field 22.
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some((state, start_ticks))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_process_is_alive_and_another_with_its_pid_is_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = ProcessId::of(pid).unwrap();
        assert!(this.is_alive());
        assert!(this.open().is_some());
        let earlier = ProcessId {
            start_ticks: this.start_ticks - 1,
            ..this
        };
        assert!(!earlier.is_alive());
        assert!(earlier.open().is_none());
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let pidfd = pidfd_open(Pid::from_raw(id.pid).unwrap(), PidfdFlags::empty()).unwrap();
        assert!(wait_for_end(&pidfd, Duration::from_secs(10)));
        assert!(!id.is_alive());
        child.wait().unwrap();
        assert!(!id.is_alive());
    }

    proptest! {
        #[test]
        fn any_name_is_skipped(name in "[ -~\n]{0,15}", start: u64) {
            let middle = "0 ".repeat(18);
            let stat = format!("12 ({name}) S {middle}{start} 0 0\n");
            prop_assert_eq!(parse_stat(&stat), Some(('S', start)));
        }

        #[test]
        fn no_line_panics(stat: String) {
            let _ = parse_stat(&stat);
        }
    }
}
