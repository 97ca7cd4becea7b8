//! State on disk: one directory per container under the state root, with `state.json`, what others
//! note beside it, the sockets and the mount point of the share in it. Called by every verb and by the monitor; knows nothing
//! of VMs or agents.
//!
//! The directory's own `flock` orders everybody who changes the state. The creator takes it before
//! the directory becomes visible and gives it back when the container is created, so that a
//! directory without `state.json` and without a lock holder is what a killed creator left behind.
//! Whether a container runs is decided by its monitor being alive, not by what the file says.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxResources;
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{hooks::LaterHooks, plan::UserNamespace, process::ProcessId};

mod size;
mod status;

pub(crate) use size::VmSize;
pub(crate) use status::Status;

/// Where states are kept unless `--root` says otherwise.
pub(crate) const DEFAULT_ROOT: &str = "/run/lazaret";

mod parts;

const RECORD: &str = "state.json";

/// Only the owner has business in the state: whoever connects to a socket here rules the container.
const DIRECTORY_MODE: Mode = Mode::RWXU;

/// Longest container id: it is a file name.
const ID_MAX_BYTES: usize = 255;

/// A container id that is safe as a file name and on the wire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ContainerId(String);

impl ContainerId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`StateError::EmptyId`] or [`StateError::InvalidId`].
    pub(crate) fn new(id: &str) -> Result<Self, StateError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        if id.is_empty() {
            Err(StateError::EmptyId)
        } else if id.len() > ID_MAX_BYTES || id == "." || id == ".." || !id.chars().all(allowed) {
            Err(StateError::InvalidId { id: id.to_owned() })
        } else {
            Ok(Self(id.to_owned()))
        }
    }

    /// The id itself.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why the state cannot be read or changed. The wording of the first ones is runc's, which callers
/// look for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// No id was given.
    #[error("container id cannot be empty")]
    EmptyId,
    /// The id is not one.
    #[error("invalid container ID format: {id:?}")]
    InvalidId {
        /// As given.
        id: String,
    },
    /// There is no such container.
    #[error("container does not exist")]
    NotExist,
    /// The id is taken.
    #[error("container with id exists: {id}")]
    Exists {
        /// The id.
        id: String,
    },
    /// `state.json` is not ours.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// The file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How far the container has come, as written by whoever brought it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    /// Hooks run that may look at the state.
    Creating,
    /// The process waits before exec.
    Created,
    /// The process was released.
    Running,
    /// The process is frozen.
    Paused,
    /// The process has ended.
    Stopped,
}

/// The content of `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// `ociVersion` of the bundle.
    pub(crate) oci_version: String,
    /// Absolute path of the bundle.
    pub(crate) bundle: PathBuf,
    /// Absolute path of its specification.
    pub(crate) config: PathBuf,
    /// Absolute path of the root file system.
    pub(crate) rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub(crate) created: String,
    /// The bundle's annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// How far it has come.
    pub(crate) phase: Phase,
    /// The process that stands for the container.
    pub(crate) monitor: ProcessId,
    /// The process that is the VM.
    pub(crate) vmm: ProcessId,
    /// Exit code once stopped: the container's, or 255 if the sandbox was lost.
    pub(crate) exit_code: Option<u8>,
    /// The hooks that are still to come.
    #[serde(default, skip_serializing_if = "LaterHooks::is_empty")]
    pub(crate) hooks: LaterHooks,
    /// Id of the container that the VM was made for, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sandbox: Option<String>,
    /// Its user namespace, if that is another one than the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user_namespace: Option<UserNamespace>,
    /// Size of the VM; none in the record of an older version.
    pub(crate) vm: Option<VmSize>,
    /// `linux.resources` as it is now, without rules about devices.
    #[serde(default)]
    pub(crate) resources: LinuxResources,
}

/// The state root.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// The store at `root`, which need not exist yet.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes the directory of a new container and locks it.
    ///
    /// # Errors
    /// [`StateError::Exists`], or [`StateError::Io`].
    pub(crate) fn create(&self, id: &ContainerId) -> Result<StateDir, StateError> {
        let path = self.root.join(id.as_str());
        let root = self.open_root_creating()?;
        // Under the root's lock nobody can mistake the new directory for an abandoned one.
        flock(root.as_fd(), &self.root)?;
        match rustix::fs::mkdirat(&root, id.as_str(), DIRECTORY_MODE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(StateError::Exists { id: id.0.clone() }),
            Err(error) => return Err(io_error("make directory", &path, error)),
        }
        let dir = StateDir::open_at(&root, id.clone(), path)?;
        dir.lock()?;
        Ok(dir)
    }

    /// Opens the directory of an existing container.
    ///
    /// # Errors
    /// [`StateError::NotExist`], or [`StateError::Io`].
    pub(crate) fn open(&self, id: &ContainerId) -> Result<StateDir, StateError> {
        let path = self.root.join(id.as_str());
        StateDir::open_at(rustix::fs::CWD, id.clone(), path)
    }

    /// All containers, by id.
    ///
    /// # Errors
    /// [`StateError::Io`]; a root that does not exist has no containers.
    pub(crate) fn list(&self) -> Result<Vec<StateDir>, StateError> {
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.root_error("read", source)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| self.root_error("read", source))?;
            // Anything else in the root is not ours.
            if let Some(Ok(id)) = entry.file_name().to_str().map(ContainerId::new) {
                ids.push(id);
            }
        }
        ids.sort_unstable();
        let mut dirs = Vec::with_capacity(ids.len());
        for id in ids {
            match self.open(&id) {
                Ok(dir) => dirs.push(dir),
                // Deleted in between, or not a directory.
                Err(StateError::NotExist) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(dirs)
    }

    fn open_root_creating(&self) -> Result<OwnedFd, StateError> {
        match open_directory(rustix::fs::CWD, &self.root) {
            Err(Errno::NOENT) => {}
            result => return result.map_err(|error| io_error("open", &self.root, error)),
        }
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, DIRECTORY_MODE.bits());
        builder
            .recursive(true)
            .create(&self.root)
            .map_err(|source| self.root_error("make directory", source))?;
        open_directory(rustix::fs::CWD, &self.root)
            .map_err(|error| io_error("open", &self.root, error))
    }

    fn root_error(&self, action: &'static str, source: io::Error) -> StateError {
        StateError::Io {
            action,
            path: self.root.clone(),
            source,
        }
    }
}

/// The directory of one container, open.
#[derive(Debug)]
pub(crate) struct StateDir {
    id: ContainerId,
    path: PathBuf,
    fd: OwnedFd,
}

impl StateDir {
    fn open_at(base: impl AsFd, id: ContainerId, path: PathBuf) -> Result<Self, StateError> {
        // `path` is used rather than the id because an absolute path works with every base.
        match open_directory(base, &path) {
            Ok(fd) => Ok(Self { id, path, fd }),
            Err(Errno::NOENT | Errno::NOTDIR) => Err(StateError::NotExist),
            Err(error) => Err(io_error("open", &path, error)),
        }
    }

    /// The container's id.
    pub(crate) fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Path of the directory, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The directories of all other containers.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn siblings(&self) -> Result<Vec<Self>, StateError> {
        let root = self.path.parent().unwrap_or(Path::new("/"));
        let mut dirs = Store::new(root).list()?;
        dirs.retain(|dir| dir.id != self.id);
        Ok(dirs)
    }

    /// Waits for the lock. It lasts until [`StateDir::unlock`], or until every process that
    /// inherited this descriptor has closed it.
    ///
    /// # Errors
    /// [`StateError::Io`], or [`StateError::NotExist`] if the container was deleted meanwhile.
    pub(crate) fn lock(&self) -> Result<(), StateError> {
        flock(self.fd.as_fd(), &self.path)?;
        let links = rustix::fs::fstat(&self.fd)
            .map_err(|error| io_error("examine", &self.path, error))?
            .st_nlink;
        if links == 0 {
            Err(StateError::NotExist)
        } else {
            Ok(())
        }
    }

    /// Gives the lock back.
    pub(crate) fn unlock(&self) {
        // Nothing can be done about a failure, and the lock ends with its holders.
        let _ = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }

    /// Reads the record, if the container got that far.
    ///
    /// # Errors
    /// [`StateError::Damaged`] or [`StateError::Io`].
    pub(crate) fn read(&self) -> Result<Option<Record>, StateError> {
        self.read_part(RECORD)
    }

    /// Replaces the record in one step.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn write(&self, record: &Record) -> Result<(), StateError> {
        self.write_part(RECORD, record)
    }

    /// Reads the record and finds out what is true of it now.
    ///
    /// # Errors
    /// As [`StateDir::read`].
    pub(crate) fn status(&self) -> Result<(Status, Option<Record>), StateError> {
        let Some(record) = self.read()? else {
            let status = if self.is_being_created()? {
                Status::Creating
            } else {
                Status::Stopped
            };
            // The creator may have finished between the two looks.
            return match self.read()? {
                None => Ok((status, None)),
                Some(record) => Ok((status_of(&record), Some(record))),
            };
        };
        Ok((status_of(&record), Some(record)))
    }

    fn is_being_created(&self) -> Result<bool, StateError> {
        // A creator between its mkdir and its lock holds the root's lock.
        if let Some(root) = self.path.parent() {
            let fd = open_directory(rustix::fs::CWD, root)
                .map_err(|error| io_error("open", root, error))?;
            flock(fd.as_fd(), root)?;
        }
        // Through a descriptor of its own, for one's own lock is no obstacle.
        let fd = open_directory(&self.fd, Path::new("."))
            .map_err(|error| io_error("open", &self.path, error))?;
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(io_error("lock", &self.path, error)),
        }
    }

    /// Removes the directory and everything in it.
    ///
    /// # Errors
    /// [`StateError::Io`]; a directory that is gone is no error.
    pub(crate) fn remove(&self) -> Result<(), StateError> {
        match std::fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StateError::Io {
                action: "remove",
                path: self.path.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Name of the directory's owner, or `#` and its number if it has no name.
    pub(crate) fn owner(&self) -> String {
        let Ok(stat) = rustix::fs::statat(&self.fd, "", AtFlags::EMPTY_PATH) else {
            return String::new();
        };
        // Without libc's lookup, which would load name services into a static binary.
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let uid = stat.st_uid.to_string();
        let name = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then(|| name.to_owned())
        });
        name.unwrap_or_else(|| format!("#{uid}"))
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn status_of(record: &Record) -> Status {
    if !record.monitor.is_alive() {
        return Status::Stopped;
    }
    match record.phase {
        Phase::Creating => Status::Creating,
        Phase::Created => Status::Created,
        Phase::Running => Status::Running,
        Phase::Paused => Status::Paused,
        Phase::Stopped => Status::Stopped,
    }
}

fn open_directory(base: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(base, path, flags, Mode::empty())
}

fn flock(fd: BorrowedFd<'_>, path: &Path) -> Result<(), StateError> {
    loop {
        match rustix::fs::flock(fd, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            result => return result.map_err(|error| io_error("lock", path, error)),
        }
    }
}

fn io_error(action: &'static str, path: &Path, error: Errno) -> StateError {
    StateError::Io {
        action,
        path: path.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests;
