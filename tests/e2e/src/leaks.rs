//! What a case leaves behind: everything that is there afterwards and was not before.
//!
//! It is called inside the case's own process, which is a subreaper with its own mount and
//! network namespace and its own `/tmp`, `/run` and `/dev/shm`: whatever a runtime leaves can
//! only be found there, and only this case can have left it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::process::{Pid, Signal, WaitOptions, kill_process};

use crate::{
    host::{self, Process},
    invocation::ends_within,
};

/// How long a process may still be about to end after the last command of a case returned.
const GRACE: Duration = Duration::from_secs(3);

/// Directories that are watched. A case has them for itself, if nothing it needs lies there.
pub(crate) const WATCHED_DIRECTORIES: &[&str] = &["/tmp", "/run", "/dev/shm"];

/// The state before a case.
pub(crate) struct Snapshot {
    mounts: Vec<String>,
    links: Vec<String>,
    descriptors: usize,
    files: Vec<String>,
}

impl Snapshot {
    /// Takes it.
    pub(crate) fn take() -> Result<Self> {
        Ok(Self {
            mounts: host::mounts()?,
            links: host::links()?,
            descriptors: host::open_descriptors(own_pid())?,
            files: files(),
        })
    }

    /// Names everything that was left: processes, mounts, links, cgroups, files, descriptors.
    pub(crate) fn leaks(&self, tag: &str, state_root: &Path) -> Result<Vec<String>> {
        let mut leaks: Vec<String> = still_running()?
            .iter()
            .map(|process| format!("process {} ({})", process.name, process.pid))
            .collect();
        leaks.extend(added(&self.mounts, &host::mounts()?, "mount"));
        leaks.extend(added(&self.links, &host::links()?, "network link"));
        leaks.extend(
            host::cgroups(tag)
                .iter()
                .map(|path| format!("cgroup {path}")),
        );
        leaks.extend(added(&self.files, &files(), "file"));
        leaks.extend(
            host::tree(state_root)
                .iter()
                .map(|path| format!("file {path}")),
        );
        let descriptors = host::open_descriptors(own_pid())?;
        if descriptors > self.descriptors {
            leaks.push(format!(
                "{} file descriptors of the suite",
                descriptors - self.descriptors
            ));
        }
        Ok(leaks)
    }
}

/// Everything in the watched directories. Directories directly in `/run` are state roots that a
/// runtime makes and keeps, as runc does.
fn files() -> Vec<String> {
    WATCHED_DIRECTORIES
        .iter()
        .flat_map(|directory| host::tree(Path::new(directory)))
        .filter(|path| {
            let path = Path::new(path);
            path.parent() != Some(Path::new("/run")) || !path.is_dir()
        })
        .collect()
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn added(before: &[String], after: &[String], what: &str) -> Vec<String> {
    let mut left = before.to_vec();
    after
        .iter()
        .filter(|item| match left.iter().position(|old| old == *item) {
            Some(at) => {
                left.swap_remove(at);
                false
            }
            None => true,
        })
        .map(|item| format!("{what} {item}"))
        .collect()
}

/// Descendants that are alive after the grace time; ended ones are reaped on the way.
fn still_running() -> Result<Vec<Process>> {
    let deadline = Instant::now() + GRACE;
    loop {
        reap();
        let alive = host::descendants(own_pid())?;
        let Some(first) = alive.iter().find(|process| process.state != 'Z') else {
            return Ok(Vec::new());
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let ended =
            Pid::from_raw(first.pid).is_none_or(|pid| ends_within(pid, left).unwrap_or(true));
        if !ended {
            return Ok(alive);
        }
    }
}

fn reap() {
    while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
}

/// Kills every descendant, so that nothing of a failed case outlives it.
pub(crate) fn end_descendants() -> Result<()> {
    loop {
        let alive = host::descendants(own_pid())?;
        if alive.is_empty() {
            return Ok(());
        }
        for process in &alive {
            if let Some(pid) = Pid::from_raw(process.pid) {
                kill_process(pid, Signal::KILL).ok();
            }
        }
        // Children of children come to this subreaper as their parents end.
        if rustix::process::wait(WaitOptions::empty()).is_err() {
            return Ok(());
        }
        reap();
    }
}
