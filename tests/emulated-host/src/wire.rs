//! What the launcher and the guest's first process say to each other.
//!
//! The control port carries one JSON object per line. The guest speaks first ([`Report::Ready`]),
//! which the launcher must wait for before it feeds or closes any port: see `guest::ports`.

use std::io::{BufRead, ErrorKind, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::{ffi::OsString, path::PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::launch::Cgroups;

/// First argument of the program when it is started as the guest's first process.
pub(crate) const GUEST_ARGUMENT: &str = "emulated-host-guest";

/// 9p mount tag of the machine's root file system.
pub(crate) const ROOT_TAG: &str = "root";

/// virtio-serial ports by number; port 0 is reserved for a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    /// [`Job`] in, [`Report`]s out.
    Control = 1,
    /// Standard input of the command.
    Stdin = 2,
    /// Standard output of the command.
    Stdout = 3,
    /// Standard error of the command.
    Stderr = 4,
}

impl Port {
    /// All ports, in the order of their numbers.
    pub(crate) const ALL: [Self; 4] = [Self::Control, Self::Stdin, Self::Stdout, Self::Stderr];
}

/// A byte string (argument, path, environment entry) that need not be UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bytes(pub Vec<u8>);

impl<T: Into<OsString>> From<T> for Bytes {
    fn from(text: T) -> Self {
        Self(text.into().into_vec())
    }
}

impl Bytes {
    /// The same as an operating system string.
    pub(crate) fn as_os(&self) -> &std::ffi::OsStr {
        std::ffi::OsStr::from_bytes(&self.0)
    }

    /// The same as a path.
    pub(crate) fn to_path(&self) -> PathBuf {
        PathBuf::from(self.as_os())
    }
}

/// The command to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Program and arguments.
    pub arguments: Vec<Bytes>,
    /// The whole environment, name and value.
    pub environment: Vec<(Bytes, Bytes)>,
    /// Working directory.
    pub directory: Bytes,
    /// Size of the terminal if the command gets one, as rows and columns.
    pub terminal: Option<(u16, u16)>,
    /// Whether standard output and error are the same file outside, so that they must share one
    /// pipe inside to keep their order.
    pub joined_output: bool,
    /// How the cgroups are mounted.
    pub cgroups: Cgroups,
    /// Directories of the machine that the command may write to: 9p mount tag and path.
    pub writable: Vec<(String, Bytes)>,
}

/// What the guest tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// All ports are connected, the job may come.
    Ready,
    /// The command ended and nothing of it runs any more.
    Ended {
        /// Exit status as a shell has it: 128 + n for signal n.
        status: u8,
        /// Bytes written to the stdout port since it was opened.
        stdout_bytes: u64,
        /// Bytes written to the stderr port since it was opened.
        stderr_bytes: u64,
    },
    /// The guest could not run the command.
    Failed(String),
}

/// Sends one line.
///
/// # Errors
/// If the port is gone.
pub(crate) fn send(to: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("encoding a control message")?;
    line.push(b'\n');
    to.write_all(&line).context("writing to the control port")
}

/// Receives one line; `None` at the end of the stream.
///
/// # Errors
/// If the line is not what it should be, or the stream's read timeout is over.
pub(crate) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> Result<Option<T>> {
    let mut line = Vec::new();
    match from.read_until(b'\n', &mut line) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => bail!("time is over"),
        Err(error) => return Err(error).context("reading from the control port"),
    }
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        bail!("the control port closed in the middle of a message");
    }
    let message = serde_json::from_slice(&line).context("decoding a control message")?;
    Ok(Some(message))
}
