//! The receiving end of `--console-socket`: gets the master of a container's pty.

use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::dialogue::{Dialogue, deadline, readable};

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
