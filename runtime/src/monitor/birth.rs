//! The birth of a monitor: the fork, what the new process lets go of, and the one report it makes
//! to the command line that waits for it.

use std::{
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::fd::{AsRawFd as _, BorrowedFd, RawFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{MonitorError, host_error};
use crate::{
    log, signals,
    sys::{self, Fork},
};

/// First byte of the report: all is well.
const CREATED: u8 = b'+';
/// First byte of the report: what follows says why not.
const FAILED: u8 = b'-';

/// Which cgroup a monitor begins its life in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Born {
    /// The caller's.
    WithCaller,
    /// Its sandbox's.
    InCgroup,
}

/// Runs `body` in a new process of its own session, born in the cgroup `cradle` if that can be, and
/// waits for its report; passes on interrupts that come meanwhile if it stays in the foreground.
///
/// # Errors
/// [`MonitorError`]: what the monitor reported, or that it did not.
pub(super) fn fork(
    keep: &[RawFd],
    foreground: bool,
    cradle: Option<BorrowedFd<'_>>,
    body: impl FnOnce(PipeWriter, Born) -> u8,
) -> Result<i32, MonitorError> {
    let (reader, writer) = io::pipe().map_err(host_error("make a pipe"))?;
    let (forked, born) = match cradle.map(|cgroup| sys::fork(Some(cgroup))) {
        Some(Ok(forked)) => (forked, Born::InCgroup),
        // A kernel, or whoever filters its calls, may not have this one.
        Some(Err(_)) | None => {
            let forked = sys::fork(None).map_err(host_error("fork the monitor"))?;
            (forked, Born::WithCaller)
        }
    };
    match forked {
        Fork::Parent(pid) => {
            drop(writer);
            if foreground {
                pass_on_interrupts(&reader, pid)?;
            }
            read_report(reader, pid)
        }
        Fork::Child => {
            drop(reader);
            let code = match prepare(keep, &writer) {
                Ok(()) => body(writer, born),
                Err(error) => {
                    report_failure(writer, &error);
                    1
                }
            };
            std::process::exit(code.into())
        }
    }
}

fn prepare(keep: &[RawFd], report: &PipeWriter) -> Result<(), MonitorError> {
    // A signal that comes before anything waits for it is an interrupt of the creation and not the
    // end of this process. What it starts inherits the mask; the VMM has one of its own.
    signals::block();
    let mut keep = keep.to_vec();
    keep.push(report.as_raw_fd());
    keep.extend(log::file());
    sys::close_others(&keep).map_err(host_error("close inherited descriptors"))?;
    rustix::process::setsid().map_err(host_error("start a session"))?;
    // Keep nobody's directory busy.
    rustix::process::chdir("/").map_err(host_error("leave the directory"))?;
    // Seen by `ps`; nothing depends on it.
    let _ = rustix::thread::set_name(c"lazaret-monitor");
    Ok(())
}

/// Passes interrupts on to the monitor until there is a report. It decides what they are for: the
/// creation, or already the container.
fn pass_on_interrupts(reader: &PipeReader, pid: i32) -> Result<(), MonitorError> {
    let interrupts = signals::open_interrupts().map_err(host_error("receive signals"))?;
    loop {
        let mut fds = [
            PollFd::new(reader, PollFlags::IN),
            PollFd::new(&interrupts, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(host_error("hear from the monitor")(error)),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        if let Ok(signal) = signals::next(&interrupts) {
            // It may just have ended, and then the pipe says so.
            let _ = sys::kill(pid, signal);
        }
    }
}

fn read_report(mut reader: PipeReader, pid: i32) -> Result<i32, MonitorError> {
    let mut report = Vec::new();
    reader
        .read_to_end(&mut report)
        .map_err(host_error("hear from the monitor"))?;
    let error = match report.split_first() {
        Some((&CREATED, _)) => return Ok(pid),
        Some((_, message)) => MonitorError::Reported {
            message: String::from_utf8_lossy(message).into_owned(),
        },
        None => MonitorError::Died,
    };
    // It is ending; so that nothing is left behind when the caller hears of it.
    let pid = rustix::process::Pid::from_raw(pid);
    let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty());
    Err(error)
}

/// Reports that there is no process, and why.
pub(super) fn report_failure(mut report: PipeWriter, error: &MonitorError) {
    let mut message = vec![FAILED];
    message.extend(log::chain(error).into_bytes());
    // Nobody listens any more: then nobody needs to know.
    let _ = report.write_all(&message);
}

/// Whether somebody still waits for the report.
pub(super) fn has_listener(report: &PipeWriter) -> bool {
    // Without events, what is heard of a pipe is that its reader has gone.
    let mut fds = [PollFd::new(report, PollFlags::empty())];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

/// Reports that the process was created.
///
/// # Errors
/// [`MonitorError::Interrupted`] when nobody listens any more.
pub(super) fn report_created(mut report: PipeWriter) -> Result<(), MonitorError> {
    report
        .write_all(&[CREATED])
        .map_err(|_| MonitorError::Interrupted)
}
