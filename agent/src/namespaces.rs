//! Namespaces of a container: which are new, which are joined, and how each is entered. Called by
//! [`crate::launch`] (before the child exists) and [`crate::init`] (in the child).
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use lazaret_protocol::container::{Namespace, NamespaceKind};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::birth::Place;
use crate::errno::Os;
use crate::process::Process;

/// The namespaces a container asks for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The same kind twice.
    #[error("{} namespace is listed twice", name(*.0))]
    Duplicate(NamespaceKind),
    /// A container shares the guest's mounts, which it must not.
    #[error("a container needs a mount namespace of its own")]
    NoMount,
    /// The mounts of another container, which already has its root there.
    #[error("mount namespace of container {0:?} cannot be joined, only a new one can be made")]
    NotJoinable(String),
    /// Id mappings and user namespace contradict each other.
    #[error("{0}")]
    Mappings(&'static str),
    /// The container whose namespace is to be joined is not there, or has ended.
    #[error("{} namespace of container {of:?}: container not running", name(*.kind))]
    Gone {
        /// Its kind.
        kind: NamespaceKind,
        /// Whose it is.
        of: String,
    },
    /// A namespace to join does not open.
    #[error("{} namespace of container {of:?}", name(*.kind))]
    Open {
        /// Its kind.
        kind: NamespaceKind,
        /// Whose it is.
        of: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Joining failed.
    #[error("join {} namespace", name(*.kind))]
    Join {
        /// Its kind.
        kind: NamespaceKind,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
}

/// The namespaces of one container, checked.
#[derive(Debug)]
pub struct Namespaces {
    /// Kinds made new.
    pub new: Vec<NamespaceKind>,
    /// Kinds joined, user namespace last: who is in it has no rights over what is not below it.
    pub joined: Vec<(NamespaceKind, OwnedFd)>,
}

impl Namespaces {
    /// Checks the list of a container and opens what is to be joined; `init` finds the init process
    /// of a container by its id.
    ///
    /// # Errors
    /// As the variants of [`NamespaceError`] say.
    pub fn open(
        wanted: &[Namespace],
        has_mappings: bool,
        init: impl Fn(&str) -> Option<Rc<Process>>,
    ) -> Result<Self, NamespaceError> {
        let mut namespaces = Self {
            new: Vec::new(),
            joined: Vec::new(),
        };
        for namespace in wanted {
            let kind = namespace.kind;
            if namespaces.has(kind) {
                return Err(NamespaceError::Duplicate(kind));
            }
            match &namespace.of {
                None => namespaces.new.push(kind),
                Some(of) => namespaces.joined.push((kind, open_of(kind, of, init(of))?)),
            }
        }
        if !namespaces.has(NamespaceKind::Mount) {
            return Err(NamespaceError::NoMount);
        }
        let is_user = |(kind, _): &(NamespaceKind, OwnedFd)| *kind == NamespaceKind::User;
        namespaces.joined.sort_by_key(is_user);
        match namespaces.has(NamespaceKind::User) {
            true if !has_mappings => Err(NamespaceError::Mappings(
                "a user namespace needs uid and gid mappings",
            )),
            false if has_mappings => Err(NamespaceError::Mappings(
                "uid and gid mappings need a user namespace",
            )),
            _ => Ok(namespaces),
        }
    }

    /// Whether the container has `kind` of its own, new or joined.
    pub fn has(&self, kind: NamespaceKind) -> bool {
        self.is_new(kind) || self.joined.iter().any(|(joined, _)| *joined == kind)
    }

    /// Whether `kind` is made new.
    pub fn is_new(&self, kind: NamespaceKind) -> bool {
        self.new.contains(&kind)
    }

    /// The joined namespace of `kind`.
    pub fn joined(&self, kind: NamespaceKind) -> Option<BorrowedFd<'_>> {
        let mut joined = self.joined.iter();
        joined
            .find(|(joined, _)| *joined == kind)
            .map(|(_, fd)| fd.as_fd())
    }

    /// The joined namespaces that the child is born in, user namespace last; it enters the others
    /// itself. Of a user namespace it has no way to those that are not below it. The cgroup
    /// namespace is never among them: from another one's, none may lead to the child's cgroup.
    pub fn birthplaces(&self) -> Vec<Place<'_>> {
        let in_user_namespace = self.joined(NamespaceKind::User).is_some();
        let joined = self.joined.iter().map(|(kind, fd)| (*kind, fd.as_fd()));
        joined
            .filter(|(kind, _)| match kind {
                NamespaceKind::Cgroup => false,
                NamespaceKind::Pid => true,
                _ => in_user_namespace,
            })
            .collect()
    }

    /// `CLONE_NEW*` of what the child is born into. The cgroup namespace is not among them: its
    /// root is where its maker is, so the child makes it once it is in the container's cgroup. Nor
    /// is the time namespace, whose clocks are set before anything lives in it.
    pub fn clone_flags(&self) -> u64 {
        self.new
            .iter()
            .filter(|kind| !matches!(kind, NamespaceKind::Cgroup | NamespaceKind::Time))
            .fold(0, |flags, kind| flags | u64::from(flag(*kind).bits()))
    }

    /// What a further process of the container enters by way of its init process's pidfd; not the
    /// pid namespace, which only a child can be born into.
    pub fn exec_flags(&self) -> ThreadNameSpaceType {
        let joined = self.joined.iter().map(|(kind, _)| kind);
        self.new
            .iter()
            .chain(joined)
            .filter(|kind| **kind != NamespaceKind::Pid)
            .fold(ThreadNameSpaceType::empty(), |flags, kind| {
                flags | flag(*kind)
            })
    }
}

/// Opens the namespace of a container whose init process is `init`.
fn open_of(
    kind: NamespaceKind,
    of: &str,
    init: Option<Rc<Process>>,
) -> Result<OwnedFd, NamespaceError> {
    let of = of.to_owned();
    if kind == NamespaceKind::Mount {
        return Err(NamespaceError::NotJoinable(of));
    }
    let Some(init) = init else {
        return Err(NamespaceError::Gone { kind, of });
    };
    let path = format!("/proc/{}/ns/{}", init.pid(), link(kind));
    let opened = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    // The agent is the parent: until it has noted the end, the pid is nobody else's.
    if init.status().is_some() {
        return Err(NamespaceError::Gone { kind, of });
    }
    opened.map_err(|errno| NamespaceError::Open {
        kind,
        of,
        source: Os(errno),
    })
}

/// The name of a kind in `/proc/PID/ns`.
fn link(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Mount => "mnt",
        NamespaceKind::Network => "net",
        kind => name(kind),
    }
}

/// Enters the namespace behind `fd`, or that of the process behind it, which must be of `kind`.
///
/// # Errors
/// [`NamespaceError::Join`].
pub fn join(kind: NamespaceKind, fd: BorrowedFd<'_>) -> Result<(), NamespaceError> {
    enter(kind, fd).map_err(|errno| {
        let source = Os(errno);
        NamespaceError::Join { kind, source }
    })
}

/// As [`join`], for the time between fork and exec: only a system call.
///
/// # Errors
/// Those of `setns(2)`.
pub fn enter(kind: NamespaceKind, fd: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_thread_name_spaces(fd, flag(kind))
}

fn flag(kind: NamespaceKind) -> ThreadNameSpaceType {
    match kind {
        NamespaceKind::Cgroup => ThreadNameSpaceType::CONTROL_GROUP,
        NamespaceKind::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        NamespaceKind::Mount => ThreadNameSpaceType::MOUNT,
        NamespaceKind::Network => ThreadNameSpaceType::NETWORK,
        NamespaceKind::Pid => ThreadNameSpaceType::PROCESS_ID,
        NamespaceKind::Time => ThreadNameSpaceType::TIME,
        NamespaceKind::User => ThreadNameSpaceType::USER,
        NamespaceKind::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
    }
}

/// The name the runtime-spec has for a kind.
fn name(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Mount => "mount",
        NamespaceKind::Network => "network",
        NamespaceKind::Pid => "pid",
        NamespaceKind::Time => "time",
        NamespaceKind::User => "user",
        NamespaceKind::Uts => "uts",
    }
}
