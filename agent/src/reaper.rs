//! Collects ended children: those the agent started and the orphans PID 1 inherits. Started once
//! by [`crate::server`].
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use lazaret_protocol::agent::ExitStatus;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::io::Errno;
use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::process::Process;
use crate::sys;

/// Room for the notes of a few signals. Equal signals are merged, so more than one note means
/// only that another arrived meanwhile.
const NOTES_BYTES: usize = 4 * size_of::<libc::signalfd_siginfo>();

/// The children whose end somebody wants to know.
#[derive(Debug, Default)]
pub struct Reaper {
    children: RefCell<HashMap<u32, Rc<Process>>>,
}

impl Reaper {
    /// Notes a child. To be called before the thread that forked it can run [`Reaper::run`] again.
    pub fn watch(&self, process: &Rc<Process>) {
        let mut children = self.children.borrow_mut();
        children.insert(process.pid(), Rc::clone(process));
    }

    /// Subscribes to `SIGCHLD`; to be called before the first child exists. Children inherit the
    /// blocked signal and have to unblock it ([`crate::init`]).
    ///
    /// # Errors
    /// When the signal cannot be received.
    pub fn subscribe() -> io::Result<AsyncFd<OwnedFd>> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGCHLD);
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&signals, flags)?;
        sys::watch(signals.as_fd().try_clone_to_owned()?, Interest::READABLE)
    }

    /// Collects children whenever one has ended.
    ///
    /// # Errors
    /// When the signal cannot be received.
    pub async fn run(&self, ended: AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut notes = [0; NOTES_BYTES];
        loop {
            ended
                .async_io(Interest::READABLE, |signals| {
                    Ok(rustix::io::read(signals, &mut notes)?)
                })
                .await?;
            self.collect();
        }
    }

    fn collect(&self) {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get().cast_unsigned();
                    // From here on the kernel may give the pid to another process.
                    let process = self.children.borrow_mut().remove(&pid);
                    if let Some(process) = process {
                        process.ended(exit_status(status));
                    }
                }
                Err(Errno::INTR) => {}
                // None has ended, or there is none.
                Ok(None) | Err(_) => return,
            }
        }
    }
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        // Both are 8-bit values by the definition of the status word.
        (Some(code), _) => ExitStatus::Exited(code as u8),
        (None, Some(signal)) => ExitStatus::Signaled(signal as u8),
        (None, None) => ExitStatus::Signaled(libc::SIGKILL as u8),
    }
}
