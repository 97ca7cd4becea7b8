//! Why a call on a container failed, and the class of failure the runtime is told.

use lazaret_protocol::agent::{ExitStatus, Failure, FailureKind};
use lazaret_protocol::frame::FrameError;

use crate::cgroup::CgroupError;

use crate::device_node::DeviceNodeError;
use crate::errno::{Os, chain};
use crate::launch::LaunchError;
use crate::mounts::MountError;
use crate::namespaces::NamespaceError;

/// A call on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The id is no id.
    #[error("container id {0:?} is not 1 to 255 of letters, digits, '_', '+', '-' and '.'")]
    Id(String),
    /// No such exec.
    #[error("exec {0:?} does not exist")]
    NoExec(String),
    /// The exec's name is taken.
    #[error("exec {0:?} exists already")]
    ExecExists(String),
    /// The container is in another state than the call needs.
    #[error("{message}: {id}")]
    State {
        /// Container id.
        id: String,
        /// What is the matter.
        message: &'static str,
    },
    /// The container has ended.
    #[error("cannot {verb} a container that has stopped: {id}")]
    Stopped {
        /// What was asked for.
        verb: &'static str,
        /// Container id.
        id: String,
    },
    /// The set-up failed, in the child's words.
    #[error(transparent)]
    Setup(Failure),
    /// The child ended without a word.
    #[error("the process that sets the container up ended early ({status:?})")]
    Gone {
        /// How, if that is known.
        status: Option<ExitStatus>,
    },
    /// The offsets of its clocks.
    #[error("set the clocks of the time namespace to the offsets of linux.timeOffsets")]
    Clocks,
    /// The channel to the child broke.
    #[error("instruct the process that sets the container up")]
    Channel(#[source] FrameError),
    /// Its namespaces.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Its cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Clones of its mounts' sources.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Which of the VM's disks are its devices.
    #[error("list the disks")]
    Disks(#[source] std::io::Error),
    /// Its device nodes.
    #[error(transparent)]
    DeviceNode(#[from] DeviceNodeError),
    /// Its first process.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A resource limit.
    #[error("set {name} to {soft}:{hard}")]
    Limit {
        /// Name of the resource.
        name: &'static str,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The badness for the out-of-memory killer.
    #[error("set oom_score_adj to {value}")]
    OomScore {
        /// The value.
        value: i32,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// A signal was not sent.
    #[error("send signal {signal} to process {pid}")]
    Signal {
        /// Its number.
        signal: i32,
        /// Whom to.
        pid: u32,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The pty's master.
    #[error("take the terminal over")]
    Terminal(#[source] Os),
}

impl ContainerError {
    fn kind(&self) -> FailureKind {
        match self {
            Self::Id(_) => FailureKind::Invalid,
            Self::NoExec(_) => FailureKind::NotFound,
            Self::ExecExists(_) => FailureKind::Exists,
            Self::State { .. } | Self::Stopped { .. } => FailureKind::State,
            Self::Setup(failure) => failure.kind,
            Self::Namespace(
                NamespaceError::Duplicate(_)
                | NamespaceError::NoMount
                | NamespaceError::NotJoinable { .. }
                | NamespaceError::Gone { .. }
                | NamespaceError::Mappings(_),
            )
            | Self::Cgroup(
                CgroupError::Name(_)
                | CgroupError::NotBelow(_)
                | CgroupError::Rules(_)
                | CgroupError::TooMany(_),
            )
            | Self::Mount(MountError::NotKernel(_)) => FailureKind::Invalid,
            _ => FailureKind::System,
        }
    }
}

impl From<ContainerError> for Failure {
    fn from(error: ContainerError) -> Self {
        Self {
            kind: error.kind(),
            message: chain(&error),
        }
    }
}
