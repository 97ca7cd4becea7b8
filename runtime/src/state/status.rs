//! The words for how far a container has come. Called by whoever asks [`super`] for a state.

/// Status of a container (runtime-spec, runtime.md "State"), plus runc's `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Somebody is making it.
    Creating,
    /// `start` may come.
    Created,
    /// The process runs.
    Running,
    /// The process is frozen.
    Paused,
    /// The process is gone, or never came to be.
    Stopped,
}

impl Status {
    /// The word `state` prints.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}
