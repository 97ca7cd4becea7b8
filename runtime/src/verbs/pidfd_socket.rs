//! `--pidfd-socket`: a descriptor of the process that stands for the container's, for a caller who
//! wants to wait for its end without knowing its pid. Called by `create`, `run` and `exec`.

use std::{
    io,
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::VerbError;
use crate::terminal;

/// A socket that awaits its descriptor.
#[derive(Debug)]
pub(super) struct PidfdSocket {
    path: PathBuf,
    socket: UnixStream,
}

impl PidfdSocket {
    /// Connects to the socket at `path`, before anything is made.
    ///
    /// # Errors
    /// [`VerbError::Io`].
    pub(super) fn connect(path: Option<&Path>) -> Result<Option<Self>, VerbError> {
        path.map(|path| {
            let socket = UnixStream::connect(path).map_err(failed("connect to", path))?;
            Ok(Self {
                path: path.to_owned(),
                socket,
            })
        })
        .transpose()
    }

    /// Sends a descriptor of the process `pid`, a child of ours or this very process.
    ///
    /// # Errors
    /// [`VerbError::Io`].
    pub(super) fn send(&self, pid: i32) -> Result<(), VerbError> {
        let pid = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
        let sent = pid
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .and_then(|pidfd| terminal::send_fd(&self.socket, pidfd.as_fd(), b"pidfd"));
        sent.map_err(|error| failed("send a process descriptor to", &self.path)(error.into()))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VerbError {
    let path = path.to_owned();
    move |source| VerbError::Io {
        action,
        path,
        source,
    }
}
