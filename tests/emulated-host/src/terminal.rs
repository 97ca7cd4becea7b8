//! The caller's terminal: its size, and raw mode while the command owns it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{self, OptionalActions, Termios};

/// Puts a terminal into raw mode and back when dropped.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Enters raw mode; `None` if `terminal` is none, or may not be changed.
    pub(crate) fn enter(terminal: impl AsFd) -> Option<Self> {
        let terminal = terminal.as_fd().try_clone_to_owned().ok()?;
        let before = termios::tcgetattr(&terminal).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = termios::tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Rows and columns, if both descriptors are terminals.
pub(crate) fn size(input: impl AsFd, output: impl AsFd) -> Option<(u16, u16)> {
    if !termios::isatty(&input) || !termios::isatty(&output) {
        return None;
    }
    let size = termios::tcgetwinsize(&output).ok()?;
    Some((size.ws_row, size.ws_col))
}
