//! The file descriptors that came with a [`Launch`](lazaret_protocol::vm::Launch) or an attach
//! request. Whoever reads a configuration takes its descriptors here, each exactly once; this
//! module knows nothing of what they are.

use std::os::fd::OwnedFd;

use lazaret_protocol::vm::Fd;

/// Received descriptors, by index.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

/// Why a descriptor of the configuration is not to be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// Fewer descriptors were sent.
    #[error("{field}: descriptor {index} was not sent, only {count} were")]
    Missing {
        /// Field of the configuration.
        field: &'static str,
        /// Index it names.
        index: u32,
        /// How many were sent.
        count: usize,
    },
    /// Two fields name the same descriptor.
    #[error("{field}: descriptor {index} is used by another field too")]
    Taken {
        /// Field of the configuration.
        field: &'static str,
        /// Index it names.
        index: u32,
    },
}

impl Fds {
    /// Takes ownership of `received`.
    pub fn new(received: Vec<OwnedFd>) -> Self {
        Self(received.into_iter().map(Some).collect())
    }

    /// Takes the descriptor that `field` of the configuration names.
    ///
    /// # Errors
    /// When it was not sent or is taken already.
    pub fn take(&mut self, field: &'static str, fd: Fd) -> Result<OwnedFd, FdError> {
        let Fd(index) = fd;
        let count = self.0.len();
        let slot = usize::try_from(index)
            .ok()
            .and_then(|position| self.0.get_mut(position))
            .ok_or(FdError::Missing {
                field,
                index,
                count,
            })?;
        slot.take().ok_or(FdError::Taken { field, index })
    }

    /// How many were sent and never taken.
    pub fn unused(&self) -> usize {
        self.0.iter().flatten().count()
    }
}
