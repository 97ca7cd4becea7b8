//! A conversation with a container over a pipe or a pty: reads until a text has appeared, with a
//! deadline and without sleeping.

use std::{
    fs::File,
    io::{PipeReader, Read as _, Write as _},
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    termios::{Winsize, tcsetwinsize},
};

/// When a wait that starts now is over.
pub(crate) fn deadline() -> Instant {
    Instant::now() + patience::of(Duration::from_secs(60))
}

use crate::patience;

/// The caller's side of a pty or a pipe. A program that goes on to say something after it is dropped
/// ends of that.
#[must_use]
pub(crate) struct Dialogue {
    file: File,
    seen: String,
}

impl From<OwnedFd> for Dialogue {
    fn from(descriptor: OwnedFd) -> Self {
        Self {
            file: File::from(descriptor),
            seen: String::new(),
        }
    }
}

impl From<PipeReader> for Dialogue {
    fn from(pipe: PipeReader) -> Self {
        Self::from(OwnedFd::from(pipe))
    }
}

impl Dialogue {
    /// The dialogue that is left when `text` has come through `pipe`.
    pub(crate) fn after(text: &str, pipe: PipeReader) -> Result<Self> {
        let mut dialogue = Self::from(pipe);
        dialogue.expect(text)?;
        Ok(dialogue)
    }

    /// Types `text`; for a pty.
    pub(crate) fn type_in(&mut self, text: &str) -> Result<()> {
        self.file
            .write_all(text.as_bytes())
            .context("cannot write to the terminal")
    }

    /// Changes the size; for a pty.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.file, size).context("cannot resize the terminal")
    }

    /// Reads until `text` has appeared; it and what came before it are forgotten.
    pub(crate) fn expect(&mut self, text: &str) -> Result<()> {
        let deadline = deadline();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            if !readable(&self.file, deadline)? {
                bail!("{text:?} never came, but {:?}", self.seen);
            }
            if !self.read()? {
                bail!("the stream ended before {text:?}, after {:?}", self.seen);
            }
        }
    }

    /// The next line, or `None` if the stream ends before it does.
    pub(crate) fn line(&mut self) -> Result<Option<String>> {
        let deadline = deadline();
        loop {
            if let Some(at) = self.seen.find('\n') {
                return Ok(Some(self.seen.drain(..=at).collect()));
            }
            if !readable(&self.file, deadline)? {
                bail!("no line came, but {:?}", self.seen);
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Reads to the end and returns what was not forgotten.
    pub(crate) fn rest(mut self) -> Result<String> {
        let deadline = deadline();
        while readable(&self.file, deadline)? {
            if !self.read()? {
                return Ok(self.seen);
            }
        }
        bail!("the stream does not end, after {:?}", self.seen)
    }

    /// Whether something came; a pty whose other side is closed reads as EIO.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0; 4096];
        match self.file.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                self.seen
                    .push_str(&String::from_utf8_lossy(&buffer[..length]));
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether something can be read, or has ended, before `deadline`.
pub(crate) fn readable(source: &impl AsFd, deadline: Instant) -> Result<bool> {
    let mut descriptors = [PollFd::new(source, PollFlags::IN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut descriptors, Some(&Timespec::try_from(left)?)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
