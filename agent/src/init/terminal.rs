//! The pty of a container's process: from the container's own devpts, so that its name is right
//! inside. Called by [`super::setup`].
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use lazaret_protocol::agent::TerminalSize;
use rustix::fs::{Gid, OFlags, Uid, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, ptsname, unlockpt};

use super::InitError;
use crate::errno::Os;
use crate::mounts;
use crate::process::set_terminal_size;
use crate::rootfs::{Missing, Rootfs};

/// Where the container's devpts has its multiplexer.
const MULTIPLEXER: &str = "/dev/pts/ptmx";
const CONSOLE: &str = "/dev/console";

/// Both ends of a pty.
pub(super) struct Pty {
    master: OwnedFd,
    terminal: OwnedFd,
}

/// Opens a pty that belongs to `uid`.
pub(super) fn open(rootfs: &Rootfs, size: TerminalSize, uid: u32) -> Result<Pty, InitError> {
    let master = rootfs.open(MULTIPLEXER, OFlags::RDWR | OFlags::NOCTTY)?;
    let failed = |errno| InitError::Device {
        path: MULTIPLEXER.to_owned(),
        source: Os(errno),
    };
    unlockpt(&master).map_err(failed)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
    fchown(&terminal, Some(Uid::from_raw(uid)), None::<Gid>)
        .map_err(InitError::step("give the terminal to the user"))?;
    if size != TerminalSize::default() {
        set_terminal_size(&master, size).map_err(InitError::step("size the terminal"))?;
    }
    Ok(Pty { master, terminal })
}

/// Makes the pty the container's `/dev/console`.
pub(super) fn bind_console(rootfs: &Rootfs, pty: &Pty) -> Result<(), InitError> {
    let name = ptsname(&pty.master, Vec::new())
        .map_err(InitError::step("name the terminal"))?
        .to_string_lossy()
        .into_owned();
    let source = rootfs.open(&name, OFlags::PATH)?;
    let console = rootfs.open_or_create(CONSOLE, Missing::File)?;
    Ok(mounts::bind_over(source.as_fd(), console.as_fd(), CONSOLE)?)
}

/// Makes the pty this session's controlling terminal and its standard streams; returns the master.
pub(super) fn enter(pty: Pty) -> Result<OwnedFd, InitError> {
    rustix::process::ioctl_tiocsctty(&pty.terminal)
        .map_err(InitError::step("make it the controlling terminal"))?;
    let failed = || InitError::step("connect the standard streams to the terminal");
    rustix::stdio::dup2_stdin(&pty.terminal).map_err(failed())?;
    rustix::stdio::dup2_stdout(&pty.terminal).map_err(failed())?;
    rustix::stdio::dup2_stderr(&pty.terminal).map_err(failed())?;
    Ok(pty.master)
}
