//! A container as the agent builds it: what is left of `config.json` once the runtime has
//! resolved names, defaults and everything that concerns the host.
//!
//! Numbers are the kernel's own (mount flags, capability bits, resource numbers), so that the
//! agent applies them without a table of names.

use serde::{Deserialize, Serialize};

use crate::{agent::TerminalSize, hook::StartHooks};

/// Describes a container to [`crate::agent::Request::CreateContainer`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateContainer {
    /// Container id: 1 to 255 of `[A-Za-z0-9_+.-]`, neither `.` nor `..`.
    pub id: String,
    /// Root file system.
    pub root: Root,
    /// UTS host name; empty leaves the guest's.
    pub hostname: String,
    /// NIS domain name; empty leaves the guest's.
    pub domainname: String,
    /// Namespaces the container has of its own; it shares the others with the guest.
    pub namespaces: Vec<Namespace>,
    /// Mapping of user ids of its user namespace, new or joined.
    pub uid_mappings: Vec<IdMapping>,
    /// Mapping of group ids of its user namespace, new or joined.
    pub gid_mappings: Vec<IdMapping>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Device nodes beside the default ones of the runtime-spec.
    pub devices: Vec<DeviceNode>,
    /// Paths hidden by an empty read-only directory or `/dev/null`.
    pub masked_paths: Vec<String>,
    /// Paths remounted read-only.
    pub readonly_paths: Vec<String>,
    /// Kernel parameters, `net.ipv4.ip_forward` style names.
    pub sysctl: Vec<(String, String)>,
    /// Control group.
    pub cgroup: Cgroup,
    /// What runs in the container before its init process does.
    pub start_hooks: StartHooks,
    /// Offsets of the clocks of its new time namespace from the guest's.
    pub time_offsets: Vec<TimeOffset>,
    /// Filter of the system calls of all its processes.
    pub seccomp: Option<Seccomp>,
    /// Execution domain of all its processes: a `PER_*` number (`personality(2)`).
    pub personality: Option<u32>,
    /// The container's init process.
    pub process: Process,
}

/// How far a clock of a time namespace is ahead of the guest's (`time_namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeOffset {
    /// `CLOCK_MONOTONIC` or `CLOCK_BOOTTIME`.
    pub clock: i32,
    /// Whole seconds.
    pub seconds: i64,
    /// And nanoseconds, 0 to 999999999.
    pub nanoseconds: u32,
}

/// A filter of system calls (`seccomp(2)`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seccomp {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// The program, 1 to [`SECCOMP_INSTRUCTIONS_MAX`] instructions.
    pub program: Vec<SockFilter>,
}

/// Most instructions the kernel takes in one filter (`BPF_MAXINSNS`).
pub const SECCOMP_INSTRUCTIONS_MAX: usize = 4096;

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SockFilter {
    /// What to do.
    pub code: u16,
    /// Instructions to skip if a jump's condition is true.
    pub jump_true: u8,
    /// Instructions to skip if it is false.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// The root file system of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Path in the share, relative to its top.
    pub share_path: String,
    /// Whether `/` is mounted read-only.
    pub readonly: bool,
    /// Other `MS_*` flags of `/`: those of the mount that it comes from.
    pub flags: u64,
    /// Propagation of `/`: one of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, with
    /// `MS_REC` if recursive; 0 leaves it private.
    pub propagation: u64,
}

/// A namespace of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Its kind.
    pub kind: NamespaceKind,
    /// Id of the container of the same sandbox whose namespace is joined; `None` makes a new one.
    pub of: Option<String>,
}

/// Kinds of namespaces (`namespaces(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NamespaceKind {
    /// Control groups.
    Cgroup,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Mount points.
    Mount,
    /// Network stack.
    Network,
    /// Process ids.
    Pid,
    /// Clocks.
    Time,
    /// Users and groups.
    User,
    /// Host and domain name.
    Uts,
}

/// One line of `/proc/pid/uid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    /// First id inside the container.
    pub container_id: u32,
    /// First id outside.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// A mount inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it comes from.
    pub source: MountSource,
    /// Absolute path in the container; symbolic links in it are resolved inside the root.
    pub destination: String,
    /// `MS_*` flags set at the mount (`mount(2)`).
    pub flags: u64,
    /// `MOUNT_ATTR_*` set recursively (`mount_setattr(2)`), from options like `rro`.
    pub recursive_set: u64,
    /// `MOUNT_ATTR_*` cleared recursively.
    pub recursive_clear: u64,
    /// Propagation changes, in order, each as in [`Root::propagation`].
    pub propagation: Vec<u64>,
    /// File system specific options, comma-separated.
    pub data: String,
    /// Whether a tmpfs starts with a copy of what it covers (`tmpcopyup`).
    pub copy_up: bool,
    /// Mounts below a recursive bind whose flags are not those of the mount they are on, parents
    /// first.
    pub below: Vec<Submount>,
}

/// A mount below the source of a bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submount {
    /// Where, relative to the bind's destination.
    pub path: String,
    /// Its `MS_*` flags; those of a bind that it lacks it must not have.
    pub flags: u64,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A bind of a path in the share, relative to its top.
    Share(String),
    /// A bind of an absolute path of the guest (`/proc`, `/sys` or `/dev` only).
    Guest(String),
    /// A new instance of a file system of the guest's kernel.
    Filesystem {
        /// `proc`, `tmpfs`, `cgroup2`, …
        fs_type: String,
        /// First argument of `mount(2)`, shown in `/proc/mounts`.
        source: String,
    },
}

/// A device node in the container's `/dev`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: String,
    /// Character, block or fifo.
    pub kind: DeviceKind,
    /// Major number; unused for a fifo.
    pub major: u32,
    /// Minor number; unused for a fifo.
    pub minor: u32,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner inside the container.
    pub uid: u32,
    /// Group inside the container.
    pub gid: u32,
}

/// Kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character device.
    Character,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// Control group of a container, cgroup v2.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cgroup {
    /// Files of the container's cgroup and what is written to each, in order
    /// (`memory.max`, `pids.max`, …).
    pub files: Vec<(String, String)>,
    /// Device access rules in order, the last match wins; empty allows everything.
    pub device_rules: Vec<DeviceRule>,
}

/// One rule on access to devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Kind; `None` matches character and block devices.
    pub kind: Option<DeviceKind>,
    /// Major number; `None` matches all.
    pub major: Option<u32>,
    /// Minor number; `None` matches all.
    pub minor: Option<u32>,
    /// Whether it concerns reading.
    pub read: bool,
    /// Whether it concerns writing.
    pub write: bool,
    /// Whether it concerns `mknod`.
    pub mknod: bool,
}

/// A process to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// `NAME=value` strings.
    pub env: Vec<String>,
    /// Absolute path in the container.
    pub cwd: String,
    /// Size of the pty it gets, or `None` for pipes.
    pub terminal: Option<TerminalSize>,
    /// What standard input, output and error are when there is no terminal.
    pub stdio: [Stdio; 3],
    /// What the descriptors that follow are: 3, 4, … At most [`PRESERVED_MAX`].
    pub preserved: Vec<Stdio>,
    /// Users and groups.
    pub user: User,
    /// Capability sets.
    pub capabilities: Capabilities,
    /// Scheduling policy; `None` leaves the guest's default.
    pub scheduler: Option<Scheduler>,
    /// I/O priority as `ioprio_set(2)` takes it: class and level in one number.
    pub io_priority: Option<u16>,
    /// Where a further process of a container may run.
    pub cpu_affinity: CpuAffinity,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// `/proc/self/oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: Option<i32>,
}

/// A scheduling policy, as `sched_setattr(2)` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scheduler {
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// -20 to 19, for `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// 1 to 99, for `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// For `SCHED_DEADLINE`.
    pub runtime_ns: u64,
    /// For `SCHED_DEADLINE`.
    pub deadline_ns: u64,
    /// For `SCHED_DEADLINE`.
    pub period_ns: u64,
}

/// The guest's CPUs a process may run on, by number; an empty list leaves what it has.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuAffinity {
    /// While it is set up.
    pub initial: Vec<u16>,
    /// From its program on.
    pub last: Vec<u16>,
}

/// What a descriptor of a process is connected to; but for `Null` it is to be attached to with
/// [`crate::agent::Request::Stream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stdio {
    /// The guest's `/dev/null`.
    Null,
    /// A pipe that the process reads.
    Input,
    /// A pipe that the process writes to.
    Output,
    /// A stream socket.
    Both,
}

/// Most descriptors of a process beside its standard streams: each takes a few descriptors of
/// every process that carries it, and these have a thousand by default.
pub const PRESERVED_MAX: usize = 64;

/// User and groups of a process, as the container's user namespace numbers them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask; `None` is 0o022.
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// The five capability sets, bit `n` for capability number `n` (`capabilities(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Bounding set.
    pub bounding: u64,
    /// Effective set.
    pub effective: u64,
    /// Inheritable set.
    pub inheritable: u64,
    /// Permitted set.
    pub permitted: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// Names of the resources that can be limited (`getrlimit(2)`), each at its number.
pub const RLIMIT_NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

/// One resource limit (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_*` number.
    pub resource: u32,
    /// Soft limit; `u64::MAX` is infinity.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is infinity.
    pub hard: u64,
}
