//! Carries the streams of a process over connections of the runtime. Called by
//! [`crate::server`], which has sent the reply; from then on the connection is raw bytes.
//!
//! Nothing piles up here: what the host does not take stays in the process's pipe, socket or pty,
//! and once that is full it stops the process. When the process has ended, what is in there at that
//! moment is still delivered, even if others hold it open. Pipes are carried by [`crate::pipe`].
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::io::{Errno, ioctl_fionread};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::connection::Connection;
use crate::pipe::{Direction, Pipe};
use crate::process::{End, Process};

/// Buffer for each direction of a socket, from which the kernel splices only into pipes.
const SOCKET_BYTES: usize = 16 * 1024;

/// Buffer for each direction of a pty, whose own buffers are of the same order.
const TERMINAL_BYTES: usize = 4096;

/// Carries a stream until it ends or the host hangs up.
pub async fn carry(connection: Connection, process: &Process, end: End) {
    // A failure of a stream is its end: there is nobody left to tell about it.
    let _ = match end {
        End::Input(pipe) => carry_pipe(connection, process, pipe, Direction::Input).await,
        End::Output(pipe) => carry_pipe(connection, process, pipe, Direction::Output).await,
        End::Both(socket) => carry_both(&connection, process, socket).await,
        End::Terminal(master) => carry_terminal(&connection, process, master).await,
    };
}

async fn carry_pipe(
    connection: Connection,
    process: &Process,
    end: OwnedFd,
    direction: Direction,
) -> io::Result<()> {
    let pipe = Pipe {
        end,
        pidfd: process.pidfd().try_clone_to_owned()?,
        socket: connection.into_socket(),
    };
    pipe.carry(direction).await
}

/// Bytes of a process that are still to be delivered, once it has ended.
#[derive(Default)]
struct Left(Cell<Option<u64>>);

impl Left {
    /// How many bytes to move next, if any: no more than `most`.
    fn at_most(&self, most: usize) -> Option<usize> {
        let left = self.0.get().unwrap_or(u64::MAX).min(most as u64) as usize;
        (left > 0).then_some(left)
    }

    fn delivered(&self, bytes: usize) {
        let left = self.0.get().map(|left| left.saturating_sub(bytes as u64));
        self.0.set(left);
    }

    /// Counts what waits in `end` when the process ends, and returns if that is nothing; else
    /// whoever delivers it sees the end.
    async fn count_at_end(&self, process: &Process, end: &AsyncFd<OwnedFd>) {
        process.wait().await;
        let waiting = ioctl_fionread(end.get_ref()).unwrap_or(0);
        self.0.set(Some(waiting));
        if waiting > 0 {
            std::future::pending::<()>().await;
        }
    }
}

/// Both directions of a socket, each until it ends, and no longer than the host or the process is
/// there.
async fn carry_both(connection: &Connection, process: &Process, socket: OwnedFd) -> io::Result<()> {
    let socket = &Connection::new(socket)?;
    let (endless, left) = (Left::default(), Left::default());
    let input = async {
        // Whatever ends this direction, what the process wrote before is still of interest.
        tokio::select! {
            _ = pass(connection, socket, &endless) => {}
            () = socket.refuses_writes() => {}
            _ = process.wait() => {}
        }
        Ok(())
    };
    let output = async {
        tokio::select! {
            ended = pass(socket, connection, &left) => ended,
            () = left.count_at_end(process, socket.socket()) => {
                connection.shutdown_write();
                Ok(())
            }
            // The end of both directions.
            () = connection.refuses_writes() => Err(Errno::PIPE.into()),
        }
    };
    tokio::try_join!(input, output).map(|_| ())
}

/// From one socket to the other until the first ends, which the second is told, or nothing is left.
async fn pass(from: &Connection, to: &Connection, left: &Left) -> io::Result<()> {
    let mut buffer = vec![0; SOCKET_BYTES];
    while let Some(most) = left.at_most(SOCKET_BYTES) {
        let bytes = from.read(&mut buffer[..most]).await?;
        if bytes == 0 {
            break;
        }
        to.write_all(&buffer[..bytes]).await?;
        left.delivered(bytes);
        tokio::task::yield_now().await;
    }
    to.shutdown_write();
    Ok(())
}

/// Both directions of a pty.
async fn carry_terminal(
    connection: &Connection,
    process: &Process,
    master: Rc<AsyncFd<OwnedFd>>,
) -> io::Result<()> {
    let ended = tokio::select! {
        // Output first: what the process wrote before the host hung up is still of interest.
        biased;
        ended = terminal_output(connection, process, &master) => ended,
        ended = terminal_input(connection, &master) => ended,
    };
    connection.shutdown_write();
    process.hang_up();
    ended
}

/// From the pty to the host, until no process has it open or the process and its output ended.
async fn terminal_output(
    connection: &Connection,
    process: &Process,
    master: &AsyncFd<OwnedFd>,
) -> io::Result<()> {
    let mut buffer = vec![0; TERMINAL_BYTES];
    loop {
        match rustix::io::read(master.get_ref(), &mut buffer[..]) {
            // EIO: nobody holds the other end.
            Ok(0) | Err(Errno::IO) => return Ok(()),
            Ok(bytes) => {
                connection.write_all(&buffer[..bytes]).await?;
                tokio::task::yield_now().await;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if process.status().is_some() => return Ok(()),
            Err(Errno::AGAIN) => tokio::select! {
                ready = master.ready(Interest::READABLE) => ready?.clear_ready(),
                _ = process.wait() => {}
            },
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// From the host to the pty, until the host has closed; its half-close only ends the input.
async fn terminal_input(connection: &Connection, master: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0; TERMINAL_BYTES];
    loop {
        let bytes = connection.read(&mut buffer).await?;
        if bytes == 0 {
            connection.refuses_writes().await;
            return Ok(());
        }
        write_terminal(master, &buffer[..bytes]).await?;
    }
}

async fn write_terminal(master: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(master.as_fd(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => master.ready(Interest::WRITABLE).await?.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
