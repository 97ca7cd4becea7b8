//! A process the agent started: its pidfd, its end, and the agent's ends of its streams.
//! Made by [`crate::container`], ended by [`crate::reaper`], read from by [`crate::stdio`].
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use lazaret_protocol::agent::{ExitStatus, StdStream, TerminalSize};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::errno::Os;
use crate::sys;

/// The agent's end of a stream.
#[derive(Debug)]
pub enum End {
    /// Of a pipe that the process reads.
    Input(OwnedFd),
    /// Of a pipe that it writes to.
    Output(OwnedFd),
    /// Of a pair of sockets.
    Both(OwnedFd),
    /// The master of a pty.
    Terminal(Rc<AsyncFd<OwnedFd>>),
}

/// A stream cannot be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The process was made without it.
    #[error("has no {0:?} stream")]
    Absent(StdStream),
    /// Somebody has it.
    #[error("has its {0:?} stream attached already")]
    Attached(StdStream),
}

/// A process the agent started.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    status: watch::Sender<Option<ExitStatus>>,
    /// The streams it has; those that somebody is attached to without their end.
    streams: RefCell<HashMap<StdStream, Option<End>>>,
    /// For resizing; its stream drops it too when the host hangs up.
    terminal: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
}

impl Process {
    /// A process that has just been started, with the agent's ends of its descriptors from 0 on.
    pub fn new(child: sys::Child, ends: Vec<Option<End>>) -> Self {
        let streams = (0..).zip(ends).filter_map(|(number, end)| {
            let end = Some(end?);
            Some((StdStream::of(number), end))
        });
        Self {
            pid: child.pid,
            pidfd: child.pidfd,
            status: watch::Sender::new(None),
            streams: RefCell::new(streams.collect()),
            terminal: RefCell::new(None),
        }
    }

    /// Gives the process the pty whose master is `master`.
    ///
    /// # Errors
    /// When the tokio runtime does not take it.
    pub fn set_terminal(&self, master: OwnedFd) -> Result<(), Os> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let master = Rc::new(sys::watch(master, Interest::READABLE | Interest::WRITABLE)?);
        let stream = End::Terminal(Rc::clone(&master));
        let mut streams = self.streams.borrow_mut();
        streams.insert(StdStream::Terminal, Some(stream));
        *self.terminal.borrow_mut() = Some(master);
        Ok(())
    }

    /// Pid in the agent's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Refers to the process without a race against reuse of its pid.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *self.status.borrow()
    }

    /// Notes that it ended.
    pub fn ended(&self, status: ExitStatus) {
        self.status.send_replace(Some(status));
    }

    /// Waits for its end.
    pub async fn wait(&self) -> ExitStatus {
        let mut receiver = self.status.subscribe();
        loop {
            if let Some(status) = *receiver.borrow_and_update() {
                return status;
            }
            if receiver.changed().await.is_err() {
                // The sender is `self`, which outlives this.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `ESRCH` when it has ended.
    pub fn signal(&self, signal: i32) -> Result<(), Os> {
        if self.status().is_some() {
            return Err(Os(Errno::SRCH));
        }
        Ok(sys::pidfd_send_signal(self.pidfd.as_fd(), signal)?)
    }

    /// Hands out the agent's end of a stream, once.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn take_stream(&self, stream: StdStream) -> Result<End, StreamError> {
        match self.streams.borrow_mut().get_mut(&stream) {
            Some(end) => end.take().ok_or(StreamError::Attached(stream)),
            None => Err(StreamError::Absent(stream)),
        }
    }

    /// Lets go of the pty: what still runs in it gets `SIGHUP`.
    pub fn hang_up(&self) {
        self.terminal.borrow_mut().take();
    }

    /// Sets the size of its terminal; `false` when it has none (any more).
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, size: TerminalSize) -> Result<bool, Os> {
        let Some(terminal) = &*self.terminal.borrow() else {
            return Ok(false);
        };
        set_terminal_size(terminal.get_ref(), size)?;
        Ok(true)
    }
}

/// Sets the size of the terminal behind `fd`.
///
/// # Errors
/// The kernel's.
pub fn set_terminal_size(fd: impl AsFd, size: TerminalSize) -> Result<(), Os> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(fd, size)?)
}
