//! Carries a pipe of a process over a connection of the runtime, on a thread of its own. Called by
//! [`crate::stdio`].
//!
//! Whoever holds the other end of a pipe may keep the kernel's lock on it for as long as he likes: a
//! `splice(2)` into it waits with the lock for a socket that is silent. Every other call that touches
//! the pipe's bytes then waits uninterruptibly, `O_NONBLOCK` or not, down to the closing of the last
//! descriptor. So the pipe belongs to the thread alone. `poll(2)` takes no lock, but may find bytes in
//! a pipe that is locked.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};

use crate::thread;

/// Most bytes moved by one `splice(2)`: the capacity of a pipe.
const SPLICE_BYTES: u64 = 64 * 1024;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the host into the pipe.
    Input,
    /// From the pipe to the host.
    Output,
}

/// A pipe of a process and where its bytes come from or go to. All descriptors are non-blocking.
#[derive(Debug)]
pub struct Pipe {
    /// The agent's end.
    pub end: OwnedFd,
    /// The process.
    pub pidfd: OwnedFd,
    /// The connection.
    pub socket: OwnedFd,
}

impl Pipe {
    /// Carries it until it ends, the host hangs up, or the process has ended: of an output, what is
    /// in the pipe then is still delivered, even if others hold it open.
    ///
    /// # Errors
    /// When the thread cannot be started, or those of `splice(2)`.
    pub async fn carry(self, direction: Direction) -> io::Result<()> {
        let carry = move || match direction {
            Direction::Input => self.carry_input(),
            Direction::Output => self.carry_output(),
        };
        Ok(thread::run("pipe", carry).await??)
    }

    /// Until either side or the process ends.
    fn carry_input(&self) -> Result<(), Errno> {
        loop {
            let [_, reader_gone, ended] = wait([
                PollFd::new(&self.socket, PollFlags::IN),
                // An error is told without being asked for: nobody is left to read.
                PollFd::new(&self.end, PollFlags::empty()),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ])?;
            if reader_gone || ended {
                return Ok(());
            }
            let [_, ended] = wait([
                PollFd::new(&self.end, PollFlags::OUT),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ])?;
            if ended || splice_once(&self.socket, &self.end, SPLICE_BYTES)? == Some(0) {
                return Ok(());
            }
        }
    }

    /// Until the pipe ends, the process has ended and its last bytes are out, or the host closes.
    fn carry_output(&self) -> Result<(), Errno> {
        loop {
            let [_, closed, ended] = wait([
                PollFd::new(&self.end, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::RDHUP),
                PollFd::new(&self.pidfd, PollFlags::IN),
            ])?;
            if closed {
                return Ok(());
            }
            if ended {
                return self.carry_rest();
            }
            if self.carry_some(SPLICE_BYTES)? == Some(0) {
                return Ok(());
            }
        }
    }

    /// What is in the pipe now, unless another reads it.
    fn carry_rest(&self) -> Result<(), Errno> {
        let mut left = ioctl_fionread(&self.end)?;
        while left > 0 {
            match self.carry_some(left.min(SPLICE_BYTES))? {
                None | Some(0) => break,
                Some(bytes) => left = left.saturating_sub(bytes),
            }
        }
        Ok(())
    }

    /// At most `most` bytes to the host, once it takes any; see [`splice_once`].
    fn carry_some(&self, most: u64) -> Result<Option<u64>, Errno> {
        wait([PollFd::new(&self.socket, PollFlags::OUT | PollFlags::RDHUP)])?;
        splice_once(&self.end, &self.socket, most)
    }
}

/// Waits until one of these is ready, in error or hung up, and says which are.
fn wait<const N: usize>(mut sides: [PollFd<'_>; N]) -> Result<[bool; N], Errno> {
    loop {
        match poll(&mut sides, None) {
            Ok(_) => return Ok(sides.map(|side| !side.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Moves up to `most` bytes: how many it was, 0 at the end, `None` if there is nothing after all.
fn splice_once(from: &OwnedFd, to: &OwnedFd, most: u64) -> Result<Option<u64>, Errno> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        match splice(from, None, to, None, most as usize, flags) {
            Ok(bytes) => return Ok(Some(bytes as u64)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
