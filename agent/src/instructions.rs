//! What the agent tells the child that sets a container up, and what it hears back. Spoken between
//! [`crate::launch`] and [`crate::init`] of the same binary, over a socket pair.
//!
//! The child finds its standard streams, the descriptors that follow them, from [`PRESERVED`] on,
//! and after these its end of the socket pair, whose number is the argument after [`ARGUMENT`].
//! The agent sends [`Instructions`]; the child answers [`Report`], a pty's other end attached to
//! it if there is one. Then the child waits for one byte, [`START`], and executes the program:
//! the socket closing without a word is success.
#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use lazaret_protocol::agent::Failure;
use lazaret_protocol::container::{CreateContainer, NamespaceKind, Process, Seccomp};
use serde::{Deserialize, Serialize};

/// First argument that makes this binary the child.
pub const ARGUMENT: &str = "container-init";

/// First descriptor of the child that is not a standard stream.
pub const PRESERVED: RawFd = 3;

/// The byte that releases the program.
pub const START: u8 = b'!';

/// The child's task.
#[derive(Debug, Serialize, Deserialize)]
pub enum Instructions {
    /// Build a container and become its init process.
    Container(Box<ContainerInstructions>),
    /// Enter a running container.
    Exec(Box<ExecInstructions>),
}

/// How to build a container. Numbers are descriptors the child inherits.
#[derive(Debug, Serialize, Deserialize)]
pub struct ContainerInstructions {
    /// The container as the runtime described it.
    pub container: CreateContainer,
    /// Where the sandbox's share is mounted.
    pub share: String,
    /// Where the container's root is assembled.
    pub staging: String,
    /// Path of the container's cgroup.
    pub cgroup: String,
    /// Namespaces to join that the child was not born in.
    pub joined: Vec<(NamespaceKind, RawFd)>,
    /// Clone of the root, if the child may not clone it itself.
    pub root_tree: Option<RawFd>,
    /// Clones of the sources of the mounts that are binds, likewise.
    pub trees: Vec<Option<RawFd>>,
    /// Mounts with the devices' nodes, likewise.
    pub nodes: Vec<Option<RawFd>>,
}

/// How to enter a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecInstructions {
    /// What to run.
    pub process: Process,
    /// Refers to the container's init process.
    pub init: RawFd,
    /// `CLONE_NEW*` of the namespaces to enter.
    pub namespaces: u32,
    /// Whether the container is in a user namespace other than the guest's.
    pub user_namespace: bool,
    /// What holds for every process of the container.
    pub rules: Rules,
}

/// What holds for every process of a container, whoever starts it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rules {
    /// Filter of its system calls.
    pub seccomp: Option<Seccomp>,
    /// Execution domain (`personality(2)`).
    pub personality: Option<u32>,
}

/// How far the child came.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// All is set up; the child waits for [`START`].
    Prepared,
    /// It ends.
    Failed(Failure),
}
