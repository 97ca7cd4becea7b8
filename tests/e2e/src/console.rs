//! Terminals: new ones, and the receiving end of `--console-socket`, which gets the master of a
//! container's pty. Called by cases and by what runs other suites.

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fs::{Mode, OFlags},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use crate::dialogue::{Dialogue, deadline, readable};

/// Both ends of a new terminal, no process's own: the caller's and the program's.
pub(crate) fn new_terminal() -> Result<(OwnedFd, OwnedFd)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("cannot make a terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs =
        rustix::fs::open(name, flags, Mode::empty()).context("cannot open the terminal")?;
    Ok((ours, theirs))
}

/// A listening console socket.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    /// Its path, for `--console-socket`.
    pub(crate) path: PathBuf,
}

impl ConsoleSocket {
    /// Listens in `directory`.
    pub(crate) fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("console.sock");
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok(Self { listener, path })
    }

    /// Takes the terminal that the runtime sends.
    pub(crate) fn terminal(&self) -> Result<Dialogue> {
        let deadline = deadline();
        ensure!(
            readable(&self.listener, deadline)?,
            "nobody came to the console socket"
        );
        let (stream, _) = self.listener.accept()?;
        ensure!(
            readable(&stream, deadline)?,
            "nothing came on the console connection"
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        let mut name = [IoSliceMut::new(&mut name)];
        recvmsg(&stream, &mut name, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
                && let Some(descriptor) = descriptors.next()
            {
                return Ok(Dialogue::from(descriptor));
            }
        }
        bail!("the runtime sent a message without a terminal")
    }
}
