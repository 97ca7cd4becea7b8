//! The wire between the runtime and the guest agent.
//!
//! One connection is one call: the host connects to [`PORT`], sends one [`Request`] and receives
//! one [`Reply`]. Three kinds of call go on after that: `Wait` holds its connection until the
//! process ends, `WatchOom` until the container runs out of memory or ends, and `Stream` turns the
//! connection into the raw byte stream once the reply arrived (half-close is end of file, vsock's
//! credit is the back-pressure).
//!
//! When the agent is ready for calls it dials [`READY_PORT`] on the host and sends [`Ready`]; the
//! runtime grants exactly that port.

use serde::{Deserialize, Serialize};

use crate::container::{CreateContainer, Process};

/// vsock port on which the agent accepts calls.
pub const PORT: u32 = 1024;

/// vsock port on the host that the agent dials once, when it accepts calls.
pub const READY_PORT: u32 = 1025;

/// Most files one [`Request::ReadCgroup`] may name.
pub const CGROUP_FILES_MAX: usize = 64;

/// Longest command of a [`ProcessEntry`] in bytes; what is longer is cut off.
pub const COMMAND_BYTES_MAX: usize = 4096;

/// virtio-fs tag of the sandbox's shared directory. What the runtime shares for container `id`
/// lies in the share's directory `id`.
pub const SHARE_TAG: &str = "lazaret";

/// What the agent sends on [`READY_PORT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`crate::VERSION`] of the agent.
    pub version: u32,
    /// When the agent's program began, in microseconds of the guest's `CLOCK_BOOTTIME`.
    pub started_us: u64,
    /// When it was ready, by the same clock.
    pub ready_us: u64,
}

/// Names one process of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Container id.
    pub container: String,
    /// Exec id, or `None` for the container's init process.
    pub exec: Option<String>,
}

/// One stream of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StdStream {
    /// Host to guest; the host's half-close closes the process's standard input.
    Stdin,
    /// Guest to host; the host hangs up by ending its own direction, in which it sends nothing.
    Stdout,
    /// As [`StdStream::Stdout`].
    Stderr,
    /// Both directions of the process's pty.
    Terminal,
    /// A descriptor beside the standard streams, by its number in the process; which directions it
    /// has is said by its [`crate::container::Stdio`].
    Descriptor(u32),
}

impl StdStream {
    /// The stream behind descriptor `number` of a process without a terminal.
    pub fn of(number: u32) -> Self {
        match number {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            number => Self::Descriptor(number),
        }
    }
}

/// Rows and columns of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub columns: u16,
}

/// A call of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Asks who is there. Answer: [`Answer::Hello`].
    Hello {
        /// [`crate::VERSION`] of the runtime; another one is refused.
        version: u32,
    },
    /// Builds a container up to the point where its process waits before `exec`.
    /// Answer: [`Answer::Process`].
    CreateContainer(Box<CreateContainer>),
    /// Releases the created container's process. Answer: [`Answer::Done`].
    StartContainer {
        /// Container id.
        container: String,
    },
    /// Runs a further process in a running container. Answer: [`Answer::Process`].
    Exec {
        /// The new process; its `exec` names it and must be unused.
        process: ProcessRef,
        /// What to run, and as whom.
        spec: Box<Process>,
        /// Cgroup of the process: a path below the container's cgroup that exists. Empty is the
        /// container's own.
        cgroup: String,
        /// Whether a paused container takes it: the process then goes on with the container.
        ignore_paused: bool,
    },
    /// Sends a signal. Answer: [`Answer::Done`].
    Signal {
        /// The target.
        process: ProcessRef,
        /// Linux signal number, 1 to 64.
        signal: i32,
        /// Whether every process of the container gets it.
        all: bool,
    },
    /// Waits for the end of a process. Answer: [`Answer::Exited`], as late as it takes; a process
    /// that has ended stays known until its container, or for an exec its first `Wait`, is done.
    /// Who waits for a container's init process stands for the container: if the connection closes
    /// before the end, the container is removed.
    Wait {
        /// The process.
        process: ProcessRef,
    },
    /// Attaches to a stream, at most once each. Answer: [`Answer::Done`], then raw bytes.
    Stream {
        /// The process.
        process: ProcessRef,
        /// Which stream.
        stream: StdStream,
    },
    /// Sets the size of a process's terminal. Answer: [`Answer::Done`].
    Resize {
        /// The process; it must have a terminal.
        process: ProcessRef,
        /// New size.
        size: TerminalSize,
    },
    /// Describes the container's processes, those with the lowest pids first. Answer:
    /// [`Answer::Processes`], which is empty when there are no more; so many calls are made until
    /// then.
    ListProcesses {
        /// Container id.
        container: String,
        /// Pids up to this one are left out.
        after: u32,
    },
    /// Reads the `/proc` that the container's first process sees: what a file holds, where a link
    /// leads, or the pids in a directory, a line each. Answer: [`Answer::Files`] with one content,
    /// `None` if it is not there.
    ReadProc {
        /// Container id.
        container: String,
        /// Path below `/proc`, of a file that nobody waits for; empty is `/proc` itself.
        path: String,
    },
    /// Reads files of the container's cgroup. Answer: [`Answer::Files`].
    ReadCgroup {
        /// Container id.
        container: String,
        /// Plain names, at most [`CGROUP_FILES_MAX`].
        files: Vec<String>,
    },
    /// Writes files of the container's cgroup, in order: all of them, or none. Answer:
    /// [`Answer::Done`].
    UpdateCgroup {
        /// Container id.
        container: String,
        /// Plain names, each with what is written to it.
        files: Vec<(String, String)>,
    },
    /// Takes all of the guest's CPUs off line but that many. Answer: [`Answer::Done`].
    SetCpus {
        /// How many are on line afterwards, at least 1; more than there are mean all.
        count: u32,
    },
    /// Waits until the kernel has killed more than `seen` processes of the container for want of
    /// memory. Answer: [`Answer::OomKills`], or [`Answer::Exited`] when the container's init
    /// process has ended, as late as it takes.
    WatchOom {
        /// Container id.
        container: String,
        /// How many the caller knows of.
        seen: u64,
    },
    /// Freezes the container's cgroup. Answer: [`Answer::Done`] once frozen.
    Pause {
        /// Container id.
        container: String,
    },
    /// Thaws the container's cgroup. Answer: [`Answer::Done`] once thawed.
    Resume {
        /// Container id.
        container: String,
    },
    /// Kills what is left of the container and forgets it. Answer: [`Answer::Done`].
    RemoveContainer {
        /// Container id.
        container: String,
    },
    /// Removes the container as `RemoveContainer` does. If none is left in the sandbox, it takes no
    /// further one, and the share is given back. Answer: [`Answer::Left`].
    Leave {
        /// Container id.
        container: String,
    },
}

/// What a successful call returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The call did what it says.
    Done,
    /// To `Hello`.
    Hello {
        /// [`crate::VERSION`] of the agent.
        version: u32,
        /// Release of the guest's kernel, as `uname -r` prints it.
        kernel_release: String,
    },
    /// A process was made.
    Process {
        /// Its pid in the guest's root pid namespace.
        pid: u32,
    },
    /// A process ended.
    Exited(ExitStatus),
    /// Processes, their pids ascending.
    Processes(ProcessList),
    /// Contents of files, in the order of the request; `None` for one that does not exist.
    Files(Vec<Option<String>>),
    /// The container is removed.
    Left {
        /// Whether it was the last: the VM may be stopped at any moment without loss.
        last: bool,
    },
    /// How many processes of the container the kernel has killed for want of memory so far.
    OomKills(u64),
}

/// What the guest's kernel says of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessList {
    /// How long the guest has been running, in milliseconds.
    pub uptime_ms: u64,
    /// The processes.
    pub processes: Vec<ProcessEntry>,
}

/// What the guest's kernel says of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// Pid in the guest's root pid namespace.
    pub pid: u32,
    /// Effective user id, as the guest's root user namespace numbers it.
    pub uid: u32,
    /// The line of `/proc/PID/stat` (`proc_pid_stat(5)`).
    pub stat: String,
    /// The arguments, blanks between them and at most [`COMMAND_BYTES_MAX`] bytes; empty if there
    /// are none.
    pub command: String,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called `exit` with this code.
    Exited(u8),
    /// This signal killed it, 1 to 64.
    Signaled(u8),
}

impl ExitStatus {
    /// The exit code a shell reports: the code itself, or 128 plus the signal.
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128_u8.saturating_add(signal),
        }
    }
}

/// The end of every call.
pub type Reply = Result<Answer, Failure>;

/// Why the agent did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong, for a program.
    pub kind: FailureKind,
    /// What went wrong, for a person: one line, lower case, no full stop, naming the object.
    pub message: String,
}

/// Classes of failure a caller acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The runtime speaks another version.
    Version,
    /// No such container, process or stream.
    NotFound,
    /// The id is taken, or the stream is attached already.
    Exists,
    /// The container is not in a state that allows this.
    State,
    /// The request contradicts itself or asks for what this guest cannot do.
    Invalid,
    /// The guest's kernel refused.
    System,
}
