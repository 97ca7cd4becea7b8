//! A directory beside the bundle's place, in which it is made, and renamed when it is complete.
//!
//! Called by the parent module. The name is always the same for one bundle, and a lock on it tells a
//! running process from one that was killed: what a killed one left is removed by the next.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, Result as CallResult};

use crate::unpack::empty_directory;

/// How often a directory that vanishes while it is being locked is made again.
const LOCK_ATTEMPTS: u32 = 16;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Why a bundle's place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// The path does not end in a name.
    #[error("bundle {0} has no name")]
    NoName(PathBuf),
    /// There is something already.
    #[error("bundle {0} already exists")]
    Exists(PathBuf),
    /// Another process makes the same bundle.
    #[error("bundle {0} is being made by another process")]
    Busy(PathBuf),
    /// Somebody else's directory is where ours should be.
    #[error("{0} is in the way: it belongs to another user, or others may write to it")]
    Foreign(PathBuf),
    /// The kernel refused something.
    #[error("bundle {path} cannot be made")]
    Call {
        /// The bundle.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// A bundle being made. Dropped before it is complete, it is removed.
#[derive(Debug)]
pub(super) struct Staging {
    target: PathBuf,
    parent: OwnedFd,
    name: OsString,
    /// The directory's name until it is complete.
    unfinished: OsString,
    directory: OwnedFd,
    completed: bool,
}

impl Staging {
    /// Makes the directory in which the bundle `target` will be made.
    pub(super) fn new(target: &Path) -> Result<Self, StagingError> {
        let failed = |source| StagingError::Call {
            path: target.to_owned(),
            source,
        };
        let name = target
            .file_name()
            .ok_or_else(|| StagingError::NoName(target.to_owned()))?;
        let parent = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(failed)?;
        if !is_free(parent.as_fd(), name).map_err(failed)? {
            return Err(StagingError::Exists(target.to_owned()));
        }
        let mut unfinished = OsString::from(".");
        unfinished.push(name);
        unfinished.push(".unfinished");
        let directory = match lock(parent.as_fd(), &unfinished).map_err(failed)? {
            Lock::Held(directory) => directory,
            Lock::Busy => return Err(StagingError::Busy(target.to_owned())),
            Lock::Foreign => return Err(StagingError::Foreign(target.with_file_name(unfinished))),
        };
        let (target, name) = (target.to_owned(), name.to_owned());
        let staging = Self {
            target,
            parent,
            name,
            unfinished,
            directory,
            completed: false,
        };
        empty_directory(staging.directory()).map_err(failed)?;
        Ok(staging)
    }

    /// The directory the bundle is made in.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Puts the bundle in its place, in one step.
    pub(super) fn complete(mut self) -> Result<(), StagingError> {
        // An empty directory is replaced, nothing else.
        let (from, to) = (&self.unfinished, &self.name);
        match rustix::fs::renameat(&self.parent, from, &self.parent, to) {
            Ok(()) => {
                self.completed = true;
                Ok(())
            }
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {
                Err(StagingError::Exists(self.target.clone()))
            }
            Err(source) => Err(StagingError::Call {
                path: self.target.clone(),
                source,
            }),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        // The error that led here is the one to report; the next attempt removes what is left.
        if empty_directory(self.directory.as_fd()).is_ok() {
            let _ = rustix::fs::unlinkat(&self.parent, &self.unfinished, AtFlags::REMOVEDIR);
        }
    }
}

/// Whether a bundle can go to `name`: nothing is there, or an empty directory.
fn is_free(parent: BorrowedFd<'_>, name: &OsStr) -> CallResult<bool> {
    let directory = match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(true),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in rustix::fs::Dir::read_from(&directory)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What became of an attempt to lock a directory.
enum Lock {
    Held(OwnedFd),
    Busy,
    Foreign,
}

/// Makes the directory `name` if it is not there, and locks it.
fn lock(parent: BorrowedFd<'_>, name: &OsStr) -> CallResult<Lock> {
    for _ in 0..LOCK_ATTEMPTS {
        match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let directory = match rustix::fs::openat(parent, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Lock::Foreign),
            result => result?,
        };
        // In a directory like /tmp, anybody could have made it first.
        let status = rustix::fs::fstat(&directory)?;
        let ours = status.st_uid == rustix::process::geteuid().as_raw();
        if !ours || Mode::from_raw_mode(status.st_mode).intersects(Mode::RWXG | Mode::RWXO) {
            return Ok(Lock::Foreign);
        }
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Lock::Busy),
            result => result?,
        }
        // The process that held the lock before may have removed or renamed the directory.
        let current = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
        if current.is_ok_and(|current| current.st_ino == status.st_ino) {
            return Ok(Lock::Held(directory));
        }
    }
    Ok(Lock::Busy)
}
