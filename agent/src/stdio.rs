//! Carries the standard streams of a process over connections of the runtime. Called by
//! [`crate::server`], which has sent the reply; from then on the connection is raw bytes.
//!
//! Nothing is buffered here. Pipes are moved with `splice(2)`; what the host does not take stays
//! in the pipe, and a full pipe stops the process. When the process has ended, what is in its
//! pipe at that moment is still delivered, even if others hold the pipe open.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use lazaret_protocol::agent::StdStream;
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

/// Buffer for each direction of a pty, whose own buffers are of the same order.
const TERMINAL_BYTES: usize = 4096;

/// Carries `stream` until it ends or the host hangs up.
pub async fn carry(connection: &Connection, process: &Process, stream: StdStream, end: End) {
    let interest = match stream {
        StdStream::Stdin => Interest::WRITABLE,
        _ => Interest::READABLE,
    };
    // A failure of a stream is its end: there is nobody left to tell about it.
    let _ = match end {
        End::Terminal(master) => carry_terminal(connection, process, master).await,
        End::Pipe(pipe) => match (sys::watch(pipe, interest), stream) {
            (Ok(pipe), StdStream::Stdin) => carry_input(connection, process, &pipe).await,
            (Ok(pipe), _) => carry_output(connection, process, &pipe).await,
            (Err(error), _) => Err(error),
        },
    };
}

/// From the host into a pipe, until either side ends.
async fn carry_input(
    connection: &Connection,
    process: &Process,
    pipe: &AsyncFd<OwnedFd>,
) -> io::Result<()> {
    let pump = async {
        loop {
            match splice_once(connection.socket(), pipe, SPLICE_BYTES) {
                Ok(0) => return Ok(()),
                Ok(_) => tokio::task::yield_now().await,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for_both(connection.socket(), pipe).await?,
                Err(errno) => return Err(errno.into()),
            }
        }
    };
    tokio::select! {
        ended = pump => ended,
        _ = process.wait() => Ok(()),
    }
}

/// From a pipe to the host, until the pipe ends, the process's last bytes are out, or the host
/// has closed.
async fn carry_output(
    connection: &Connection,
    process: &Process,
    pipe: &AsyncFd<OwnedFd>,
) -> io::Result<()> {
    // Bytes still to be delivered, once the process has ended.
    let left: Cell<Option<u64>> = Cell::new(None);
    let pump = async {
        while left.get() != Some(0) {
            let most = left.get().unwrap_or(u64::MAX).min(SPLICE_BYTES as u64) as usize;
            match splice_once(pipe, connection.socket(), most) {
                Ok(0) => break,
                Ok(bytes) => {
                    left.set(left.get().map(|left| left.saturating_sub(bytes as u64)));
                    tokio::task::yield_now().await;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_for_both(pipe, connection.socket()).await?,
                Err(errno) => return Err(errno.into()),
            }
        }
        connection.shutdown_write();
        Ok(())
    };
    let count_at_end = async {
        process.wait().await;
        let waiting = ioctl_fionread(pipe.get_ref()).unwrap_or(0);
        left.set(Some(waiting));
        if waiting > 0 {
            // The pump sees the end.
            std::future::pending::<()>().await;
        }
        connection.shutdown_write();
    };
    tokio::select! {
        ended = pump => ended,
        () = count_at_end => Ok(()),
        () = connection.closed() => Ok(()),
    }
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
