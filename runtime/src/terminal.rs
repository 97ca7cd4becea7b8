//! Terminals of the host: raw mode for the time of a session, window sizes, and the pty behind
//! `--console-socket`. Called by the foreground verbs and the monitor.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use lazaret_protocol::agent::TerminalSize;
use rustix::{
    fs::{Mode, OFlags},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
    pty::OpenptFlags,
    termios::{OptionalActions, Termios, Winsize},
};

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminalError {
    /// The console socket cannot be connected to.
    #[error("cannot connect to console socket {}", path.display())]
    Connect {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The master could not be handed over.
    #[error("cannot send the pty to the console socket")]
    Send(#[source] io::Error),
    /// A pty could not be made.
    #[error("cannot make a pty")]
    Pty(#[source] io::Error),
    /// The caller's terminal does not obey.
    #[error("cannot change the mode of the terminal")]
    Mode(#[source] io::Error),
}

/// The first of standard input, output and error that is a terminal.
pub(crate) fn of_caller() -> Option<OwnedFd> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .find(|fd| rustix::termios::isatty(fd))
        .and_then(|fd| fd.try_clone_to_owned().ok())
}

/// Size of a terminal; 0 by 0 if it does not know.
pub(crate) fn size(terminal: BorrowedFd<'_>) -> TerminalSize {
    rustix::termios::tcgetwinsize(terminal).map_or(TerminalSize::default(), |size| TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// A terminal in raw mode; dropping it brings the former mode back.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts the terminal into raw mode: what is typed belongs to the container, Ctrl-C included.
    ///
    /// # Errors
    /// [`TerminalError::Mode`].
    pub(crate) fn enter(terminal: OwnedFd) -> Result<Self, TerminalError> {
        let mode = |error: rustix::io::Errno| TerminalError::Mode(error.into());
        let before = rustix::termios::tcgetattr(&terminal).map_err(mode)?;
        restore_on_panic(&terminal, &before).map_err(TerminalError::Mode)?;
        make_raw(terminal.as_fd(), before.clone()).map_err(mode)?;
        Ok(Self { terminal, before })
    }

    /// The terminal.
    pub(crate) fn terminal(&self) -> &OwnedFd {
        &self.terminal
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // The terminal may be gone, and then so is its mode.
        let _ = rustix::termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Where a panic ends the process at once, nothing is dropped on the way out: the mode is brought
/// back before the panic is reported, so that the report is legible, too.
fn restore_on_panic(terminal: &OwnedFd, before: &Termios) -> io::Result<()> {
    let (terminal, before) = (terminal.try_clone()?, before.clone());
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let _ = rustix::termios::tcsetattr(&terminal, OptionalActions::Now, &before);
        report(panic);
    }));
    Ok(())
}

fn make_raw(terminal: BorrowedFd<'_>, mut termios: Termios) -> rustix::io::Result<()> {
    termios.make_raw();
    rustix::termios::tcsetattr(terminal, OptionalActions::Now, &termios)
}

/// Connects to the socket that wants the pty's master.
///
/// # Errors
/// [`TerminalError::Connect`].
pub(crate) fn connect_console(path: &Path) -> Result<UnixStream, TerminalError> {
    UnixStream::connect(path).map_err(|source| TerminalError::Connect {
        path: path.to_owned(),
        source,
    })
}

/// Makes a pty, sends its master to `console` and returns the slave, which has become the
/// controlling terminal of this session. The slave is raw: the guest's pty interprets what is
/// typed, once.
///
/// # Errors
/// [`TerminalError`].
pub(crate) fn send_pty(console: &UnixStream, size: TerminalSize) -> Result<OwnedFd, TerminalError> {
    let pty = |error: rustix::io::Errno| TerminalError::Pty(error.into());
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags).map_err(pty)?;
    rustix::pty::unlockpt(&master).map_err(pty)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(pty)?;
    let termios = rustix::termios::tcgetattr(&slave).map_err(pty)?;
    make_raw(slave.as_fd(), termios).map_err(pty)?;
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&slave, size).map_err(pty)?;
    // So that the kernel tells us of each new size with SIGWINCH.
    rustix::process::ioctl_tiocsctty(&slave).map_err(pty)?;
    send_fd(console, master.as_fd(), b"/dev/ptmx")
        .map_err(|error| TerminalError::Send(error.into()))?;
    Ok(slave)
}

/// Sends one descriptor as runc does: its name as data, the descriptor attached.
///
/// # Errors
/// As `sendmsg(2)`.
pub(crate) fn send_fd(
    socket: &UnixStream,
    fd: BorrowedFd<'_>,
    name: &[u8],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let name = [IoSlice::new(name)];
    rustix::net::sendmsg(socket, &name, &mut control, SendFlags::NOSIGNAL).map(drop)
}

/// `/dev/null`, for reading and writing.
///
/// # Errors
/// As `open(2)`.
pub(crate) fn null() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_brings_the_mode_back_though_nothing_is_dropped() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let modes = || rustix::termios::tcgetattr(&pty.slave).unwrap().local_modes;
        let before = modes();
        let raw = RawMode::enter(pty.slave.try_clone().unwrap()).unwrap();
        assert_ne!(modes(), before);
        std::mem::forget(raw);
        std::panic::catch_unwind(|| panic!("for the test")).unwrap_err();
        assert_eq!(modes(), before);
    }
}
