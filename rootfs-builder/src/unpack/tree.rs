//! The root file system being built, as a directory that paths cannot leave.
//!
//! Called by the parent module, and by [`crate::bundle`] to read `/etc/passwd`. Every path of
//! an image is opened here, by the kernel, with `openat2(RESOLVE_IN_ROOT)`: absolute symbolic
//! links and `..` in links end at this root, as they would for a process chrooted to it; magic links
//! and other file systems are refused (openat2(2)). Everything else then works on one name
//! in an opened directory.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// The kernel gives up on `..` in a link with `EAGAIN` when anything on the machine is renamed or
/// mounted at that moment, so the call is repeated. So many in a row do not happen by chance.
const RESOLVE_ATTEMPTS: u32 = 4096;

/// How directories are opened to reach what is in them.
const REACH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory all paths are resolved in.
#[derive(Debug)]
pub(crate) struct Tree {
    root: OwnedFd,
}

/// A directory in the tree.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    /// Tells directories apart, however they were reached: there is one file system.
    pub(super) inode: u64,
    /// When it was last changed, as it was when it was opened.
    pub(super) mtime: (i64, u32),
}

impl Tree {
    /// Returns the tree whose root is the open directory `root`.
    pub(crate) fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens `path` as a process would for which this tree is `/`.
    pub(crate) fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 1..RESOLVE_ATTEMPTS {
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens the directory at `path`.
    pub(super) fn directory(&self, path: &[u8]) -> Result<Directory> {
        Directory::new(self.open(path, REACH)?)
    }
}

impl Directory {
    /// Returns the open directory `fd`.
    pub(super) fn new(fd: OwnedFd) -> Result<Self> {
        let status = rustix::fs::fstat(&fd)?;
        let mtime = (status.st_mtime, status.st_mtime_nsec as u32);
        Ok(Self {
            fd,
            inode: status.st_ino,
            mtime,
        })
    }
}
