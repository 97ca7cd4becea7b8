//! Removing a sandbox's directories. Nothing waits by looking again and again: cgroup v2 tells when
//! the last process has gone, and with v1 the processes do.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{CgroupError, io_error, make, write_file};
use crate::process;

/// How long processes may take to end once they were killed.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes a directory and those in it, and kills what is left in them, unless it was shared with
/// others from the beginning.
///
/// # Errors
/// [`CgroupError`]; a directory that is gone is no error.
pub(super) fn remove(path: &Path) -> Result<(), CgroupError> {
    // Most often it is empty by now.
    if remove_directory(path)? {
        return Ok(());
    }
    if is_shared(path) {
        tracing::warn!(
            "cgroup {} was not empty when the container came, and stays",
            path.display()
        );
        return Ok(());
    }
    end_processes(path)?;
    remove_tree(path, 0)
}

/// Tells whether it is gone now.
fn remove_directory(path: &Path) -> Result<bool, CgroupError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if make::is_gone(&error) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(false),
        Err(error) => Err(io_error("remove cgroup", path)(error)),
    }
}

fn is_shared(path: &Path) -> bool {
    let mut value = [0; 8];
    rustix::fs::getxattr(path, make::SHARED, &mut value[..]).is_ok()
}

fn end_processes(path: &Path) -> Result<(), CgroupError> {
    // A process that is about to end is no longer listed, and still counts.
    match write_file(&path.join("cgroup.kill"), "1") {
        Ok(()) => wait_until_empty(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            kill_each(path)?;
            wait_until_empty(path)
        }
        Err(error) => Err(io_error("kill the processes of cgroup", path)(error)),
    }
}

/// Waits until cgroup v2 says that no process is left; version 1 does not say.
fn wait_until_empty(path: &Path) -> Result<(), CgroupError> {
    use std::io::{Read as _, Seek as _};

    let file = path.join("cgroup.events");
    let failed = |error| io_error::<io::Error>("read", &file)(error);
    let mut events = match fs::File::open(&file) {
        Err(error) if make::is_gone(&error) => return Ok(()),
        events => events.map_err(failed)?,
    };
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        // Reading is what arms the file.
        let mut text = String::new();
        events.rewind().map_err(failed)?;
        match events.read_to_string(&mut text) {
            Err(error) if make::is_gone(&error) => return Ok(()),
            result => result.map_err(failed)?,
        };
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a deadline of seconds");
        let mut fds = [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(CgroupError::Populated { path: path.into() }),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Kills process after process, until there are no new ones, and waits for each.
fn kill_each(path: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + END_TIMEOUT;
    loop {
        let pids = make::processes(path)?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            let pidfd = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(Ok(pidfd)) = pidfd
                && !process::kill_and_wait(&pidfd, left)
            {
                return Err(CgroupError::Populated { path: path.into() });
            }
        }
    }
}

fn remove_tree(path: &Path, depth: usize) -> Result<(), CgroupError> {
    if remove_directory(path)? {
        return Ok(());
    }
    if depth < make::DEPTH_MAX {
        for child in make::children(path)? {
            remove_tree(&child, depth + 1)?;
        }
    }
    match remove_directory(path)? {
        true => Ok(()),
        false => Err(CgroupError::Populated { path: path.into() }),
    }
}
