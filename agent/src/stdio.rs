//! Carries the streams of a process over connections of the runtime. Called by
//! [`crate::server`], which has sent the reply; from then on the connection is raw bytes.
//!
//! Nothing is buffered here. Pipes are moved with `splice(2)`; what the host does not take stays
//! in the pipe, and a full pipe stops the process. When the process has ended, what is in its
//! pipe at that moment is still delivered, even if others hold the pipe open.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::connection::Connection;
use crate::process::{End, Process};
use crate::sys;

/// Most bytes moved by one `splice(2)`: the capacity of a pipe.
const SPLICE_BYTES: usize = 64 * 1024;

/// Buffer for each direction of a socket, from which the kernel splices only into pipes.
const SOCKET_BYTES: usize = 16 * 1024;

/// Buffer for each direction of a pty, whose own buffers are of the same order.
const TERMINAL_BYTES: usize = 4096;

/// Carries a stream until it ends or the host hangs up.
pub async fn carry(connection: &Connection, process: &Process, end: End) {
    // A failure of a stream is its end: there is nobody left to tell about it.
    let _ = match end {
        End::Input(pipe) => carry_input(connection, process, pipe).await,
        End::Output(pipe) => carry_output(connection, process, pipe).await,
        End::Both(socket) => carry_both(connection, process, socket).await,
        End::Terminal(master) => carry_terminal(connection, process, master).await,
    };
}

/// From the host into a pipe, until either side ends.
async fn carry_input(connection: &Connection, process: &Process, pipe: OwnedFd) -> io::Result<()> {
    let pipe = sys::watch(pipe, Interest::WRITABLE)?;
    let pump = async {
        loop {
            match splice_once(connection.socket(), &pipe, SPLICE_BYTES) {
                Ok(0) => return Ok(()),
                Ok(_) => tokio::task::yield_now().await,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for_both(connection.socket(), &pipe).await?,
                Err(errno) => return Err(errno.into()),
            }
        }
    };
    tokio::select! {
        ended = pump => ended,
        () = reader_gone(pipe.as_fd()) => Ok(()),
        _ = process.wait() => Ok(()),
    }
}

/// Returns when nobody has the other end of a pipe to read from any more: whoever feeds it shall
/// know, even if he does so later.
async fn reader_gone(pipe: BorrowedFd<'_>) {
    // A registration of its own, which asks for nothing that comes before: the pump waits for its
    // sides one after the other, and must find the readiness of the second as it was.
    let watched = || sys::watch(pipe.try_clone_to_owned()?, Interest::PRIORITY);
    if let Ok(pipe) = watched()
        && pipe.ready(Interest::WRITABLE).await.is_ok()
    {
        return;
    }
    // It is noticed with the next byte.
    std::future::pending().await
}

/// From a pipe to the host, until the pipe ends, the process's last bytes are out, or the host
/// has closed.
async fn carry_output(connection: &Connection, process: &Process, pipe: OwnedFd) -> io::Result<()> {
    let pipe = sys::watch(pipe, Interest::READABLE)?;
    let left = Left::default();
    let pump = async {
        while let Some(most) = left.at_most(SPLICE_BYTES) {
            match splice_once(&pipe, connection.socket(), most) {
                Ok(0) => break,
                Ok(bytes) => {
                    left.delivered(bytes);
                    tokio::task::yield_now().await;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for_both(&pipe, connection.socket()).await?,
                Err(errno) => return Err(errno.into()),
            }
        }
        connection.shutdown_write();
        Ok(())
    };
    tokio::select! {
        ended = pump => ended,
        () = left.count_at_end(process, &pipe) => {
            connection.shutdown_write();
            Ok(())
        }
        () = connection.closed() => Ok(()),
    }
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

fn splice_once(
    from: &AsyncFd<OwnedFd>,
    to: &AsyncFd<OwnedFd>,
    most: usize,
) -> Result<usize, Errno> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    splice(from.get_ref(), None, to.get_ref(), None, most, flags)
}

/// After `EAGAIN` of a splice, which does not say whose: waits for the side that was not ready.
async fn wait_for_both(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut sides = [
        PollFd::new(from.get_ref(), PollFlags::IN),
        PollFd::new(to.get_ref(), PollFlags::OUT),
    ];
    poll(&mut sides, Some(&Timespec::default()))?;
    let [readable, writable] = sides.map(|side| !side.revents().is_empty());
    // Edges that come after the poll are kept by the kernel until the runtime looks, so clearing
    // what poll found not ready loses none.
    if !readable {
        from.ready(Interest::READABLE).await?.clear_ready();
    }
    if !writable {
        to.ready(Interest::WRITABLE).await?.clear_ready();
    }
    if readable && writable {
        // It became so between the two calls.
        tokio::task::yield_now().await;
    }
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
