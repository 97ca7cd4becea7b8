//! The kernel's error numbers as lower-case text. Used as the source of every error of this crate.
//!
//! The wording is the C library's, first letter lowered, which is also the wording of runc's
//! messages: engines look for phrases like `no such file or directory` in them.

use std::fmt;

/// An error number of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Os(pub rustix::io::Errno);

impl fmt::Display for Os {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0.raw_os_error()).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let mut characters = text.chars();
        match characters.next() {
            Some(first) => write!(formatter, "{}{}", first.to_lowercase(), characters.as_str()),
            None => write!(formatter, "error number {}", self.0.raw_os_error()),
        }
    }
}

impl std::error::Error for Os {}

impl From<rustix::io::Errno> for Os {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno)
    }
}

impl From<std::io::Error> for Os {
    fn from(error: std::io::Error) -> Self {
        Self(rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
    }
}

/// Joins an error and its sources into one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}

#[cfg(test)]
mod tests;
