//! The host's ends of a process's streams, and the copying between them and the guest's. Called by
//! the session; knows file descriptors, not what runs behind them.
//!
//! An inherited descriptor shares its flags with whoever passed it on, a shell for example, so
//! `O_NONBLOCK` must not be set on it. Pipes and terminals are opened anew by way of `/proc`, which
//! gives flags of our own; sockets take the wish with each call; regular files never wait.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use lazaret_protocol::container::Stdio;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags},
    net::{RecvFlags, SendFlags, Shutdown},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, unix::AsyncFd},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
};

use crate::sys;

/// Bytes moved at a time: what a pipe holds.
const CHUNK_BYTES: usize = 64 << 10;

/// Most bytes written at a time where a write might wait although the descriptor is ready: a
/// ready pipe or terminal takes this many (`pipe(7)`, `PIPE_BUF`).
const READY_BYTES: usize = 4 << 10;

/// What the three standard streams of this process are worth carrying as.
pub(crate) fn kinds() -> [Stdio; 3] {
    let kind = |fd: BorrowedFd<'_>, carried| match rustix::fs::fstat(fd) {
        Ok(stat) if !is_null(&stat) => carried,
        _ => Stdio::Null,
    };
    [
        kind(io::stdin().as_fd(), Stdio::Input),
        kind(io::stdout().as_fd(), Stdio::Output),
        kind(io::stderr().as_fd(), Stdio::Output),
    ]
}

/// Whether it is `/dev/null`.
pub(crate) fn is_null(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3)
}

/// Whether a descriptor is the master of a pty: opening it anew would make another pty.
fn is_pty_master(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(5, 2)
}

/// How waiting is avoided on a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Avoid {
    /// It is non-blocking itself.
    Nonblocking,
    /// A socket: each call says so.
    Socket,
    /// Each call looks first.
    Look,
}

/// One direction of a stream on the host.
#[derive(Debug)]
pub(crate) struct HostEnd {
    fd: OwnedFd,
    mode: Avoid,
    /// Whether it is one half of a socket whose other half may live on.
    is_half: bool,
}

impl HostEnd {
    /// For reading what `fd` reads, with a description of our own where that is possible.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(crate) fn reading(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(fd, OFlags::RDONLY)
    }

    /// For writing to what `fd` writes to.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(crate) fn writing(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self::new(fd, OFlags::WRONLY)
    }

    /// Both directions of the socket `fd`.
    ///
    /// # Errors
    /// As `dup(2)`.
    pub(crate) fn both(fd: BorrowedFd<'_>) -> io::Result<(Self, Self)> {
        let writing = Self {
            is_half: true,
            ..Self::writing(fd)?
        };
        Ok((Self::reading(fd)?, writing))
    }

    fn new(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<Self> {
        let stat = rustix::fs::fstat(fd)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mode = match kind {
            FileType::Socket => Avoid::Socket,
            FileType::Fifo | FileType::CharacterDevice if !is_pty_master(&stat) => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                if let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) {
                    let mode = Avoid::Nonblocking;
                    return Ok(Self {
                        fd,
                        mode,
                        is_half: false,
                    });
                }
                Avoid::Look
            }
            _ => Avoid::Look,
        };
        let fd = fd.try_clone_to_owned()?;
        Ok(Self {
            fd,
            mode,
            is_half: false,
        })
    }

    /// Watches for the moment when nobody takes any more what is written to it; `None` if that
    /// moment need not be for ever, as with a FIFO that has a name.
    fn watch_reader(&self) -> Option<Gone> {
        /// `PIPEFS_MAGIC` of the kernel: a pipe without a name.
        const PIPE_MAGIC: i64 = 0x5049_5045;
        let is_pipe = || {
            let fs = rustix::fs::fstatfs(&self.fd);
            fs.is_ok_and(|fs| fs.f_type == PIPE_MAGIC)
        };
        (self.mode == Avoid::Socket || is_pipe())
            .then(|| Gone::watch(self.fd.as_fd()))
            .flatten()
    }

    /// Makes it usable in the reactor.
    fn ready(self, interest: Interest) -> io::Result<ReadyEnd> {
        let mode = self.mode;
        match sys::watch(self.fd, interest) {
            Ok(fd) => Ok(ReadyEnd::Pollable { fd, mode }),
            // What epoll does not take is always ready.
            Err((fd, error)) if error.raw_os_error() == Some(libc::EPERM) => {
                Ok(ReadyEnd::Always(fd))
            }
            Err((_, error)) => Err(error),
        }
    }
}

enum ReadyEnd {
    Pollable { fd: AsyncFd<OwnedFd>, mode: Avoid },
    Always(OwnedFd),
}

impl ReadyEnd {
    /// Reads once; 0 is the end.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (fd, mode) = match self {
            Self::Always(fd) => return Ok(rustix::io::read(fd, buffer)?),
            Self::Pollable { fd, mode } => (fd, *mode),
        };
        loop {
            let mut guard = fd.readable().await?;
            match guard.try_io(|fd| read_now(fd.get_ref(), mode, buffer)) {
                // A terminal whose other side is gone.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8], progress: &Progress) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.write(bytes).await?;
            progress.has_moved();
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Says that nothing more is written.
    fn shut_down(&self) {
        let Self::Pollable { fd, .. } = self else {
            return;
        };
        // It may have been closed by the other side already.
        let _ = rustix::net::shutdown(fd.get_ref(), Shutdown::Write);
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let (fd, mode) = match self {
            Self::Always(fd) => return Ok(rustix::io::write(fd, bytes)?),
            Self::Pollable { fd, mode } => (fd, *mode),
        };
        loop {
            let mut guard = fd.writable().await?;
            match guard.try_io(|fd| write_now(fd.get_ref(), mode, bytes)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}

fn read_now(fd: &OwnedFd, mode: Avoid, buffer: &mut [u8]) -> io::Result<usize> {
    match mode {
        Avoid::Nonblocking => {}
        Avoid::Socket => {
            return Ok(rustix::net::recv(fd, buffer, RecvFlags::DONTWAIT)?.0);
        }
        Avoid::Look => look(fd, PollFlags::IN)?,
    }
    Ok(rustix::io::read(fd, buffer)?)
}

fn write_now(fd: &OwnedFd, mode: Avoid, bytes: &[u8]) -> io::Result<usize> {
    match mode {
        Avoid::Nonblocking => Ok(rustix::io::write(fd, bytes)?),
        Avoid::Socket => {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            Ok(rustix::net::send(fd, bytes, flags)?)
        }
        Avoid::Look => {
            look(fd, PollFlags::OUT)?;
            Ok(rustix::io::write(
                fd,
                &bytes[..bytes.len().min(READY_BYTES)],
            )?)
        }
    }
}

/// `WouldBlock` unless `fd` is ready.
fn look(fd: &OwnedFd, events: PollFlags) -> io::Result<()> {
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut [PollFd::new(fd, events)], Some(&at_once))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

/// Tells when nothing that is written to a descriptor is read any more, even if nothing is written.
struct Gone(AsyncFd<OwnedFd>);

impl Gone {
    fn watch(fd: BorrowedFd<'_>) -> Option<Self> {
        let fd = fd.try_clone_to_owned().ok()?;
        // Errors and the end are always told; this asks for nothing that comes before.
        sys::watch(fd, Interest::PRIORITY).ok().map(Self)
    }

    /// Never returns if there is nothing to watch.
    async fn wait(gone: Option<Self>) {
        match gone {
            Some(Self(fd)) if fd.ready(Interest::WRITABLE).await.is_ok() => {}
            _ => std::future::pending().await,
        }
    }
}

/// What the relays to the host have done so far; tells a silent guest from a slow reader.
#[derive(Debug, Default)]
pub(super) struct Progress {
    moved: Cell<u64>,
    writing: Cell<u32>,
}

impl Progress {
    /// A number that changes with whatever is received or taken.
    pub(super) fn moved(&self) -> u64 {
        self.moved.get()
    }

    /// Whether somebody on the host has yet to take what the guest sent.
    pub(super) fn is_writing(&self) -> bool {
        self.writing.get() > 0
    }

    fn has_moved(&self) {
        self.moved.set(self.moved.get().wrapping_add(1));
    }

    /// Counts a relay that has something to write, until the result is dropped.
    fn writing(&self) -> Writing<'_> {
        self.writing.set(self.writing.get() + 1);
        Writing(self)
    }
}

/// A relay that has something to write.
struct Writing<'a>(&'a Progress);

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.writing.set(self.0.writing.get() - 1);
    }
}

/// Copies from the guest to the host until the guest's side ends or the host's takes no more.
/// Dropping the guest's side then tells the process so.
pub(super) async fn to_host(mut guest: OwnedReadHalf, host: HostEnd, progress: &Progress) {
    let (gone, is_half) = (host.watch_reader(), host.is_half);
    let Ok(host) = host.ready(Interest::WRITABLE) else {
        return;
    };
    let mut buffer = vec![0; CHUNK_BYTES];
    let pump = async {
        loop {
            let bytes = match guest.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(bytes) => bytes,
            };
            progress.has_moved();
            let writing = progress.writing();
            if host.write_all(&buffer[..bytes], progress).await.is_err() {
                return;
            }
            drop(writing);
        }
    };
    tokio::select! {
        () = pump => {}
        () = Gone::wait(gone) => {}
    }
    if is_half {
        host.shut_down();
    }
}

/// Copies from the host to the guest until the host's side ends, which the guest then sees as end
/// of file, unless it is a terminal: those have none.
pub(super) async fn to_guest(host: HostEnd, mut guest: OwnedWriteHalf, is_terminal: bool) {
    let Ok(host) = host.ready(Interest::READABLE) else {
        return;
    };
    let gone = Gone::watch(guest.as_ref().as_fd());
    let mut buffer = vec![0; CHUNK_BYTES];
    let pump = async {
        loop {
            let bytes = match host.read(&mut buffer).await {
                Ok(0) | Err(_) => return true,
                Ok(bytes) => bytes,
            };
            if guest.write_all(&buffer[..bytes]).await.is_err() {
                return false;
            }
        }
    };
    let has_ended = tokio::select! {
        has_ended = pump => has_ended,
        // Whoever feeds it shall know that nobody reads it, even if he does so later.
        () = Gone::wait(gone) => false,
    };
    if !has_ended {
        return;
    }
    if is_terminal {
        guest.forget();
    } else {
        // The process may have closed its side already.
        let _ = guest.shutdown().await;
    }
}
