//! Flags of the mounts below a recursive bind. Called once the bind is attached, before anything of
//! the container runs.
//!
//! A mount of the host is a mount of its own here only when the kernel has come across it, and is
//! then given the flags of the mount it is on: a read-only bind would have everything below it
//! read-only. A file, and another part of the same file system, is never a mount of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_protocol::container::Submount;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{MountError, bind_attributes, clone_tree, move_tree};
use crate::errno::Os;
use crate::sys::{MountAttr, mount_setattr};

/// Every attribute that a mount's flags decide.
const ALL: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR__ATIME
    | libc::MOUNT_ATTR_NODIRATIME
    | super::MOUNT_ATTR_NOSYMFOLLOW;

/// Gives the mounts below `top` their flags. One that has vanished meanwhile is fine.
///
/// # Errors
/// [`MountError::Protect`], naming the path.
pub(super) fn set_flags(top: BorrowedFd<'_>, below: &[Submount]) -> Result<(), MountError> {
    for submount in below {
        match set(top, submount) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(MountError::Protect {
                    action: "set the flags of submount",
                    path: submount.path.clone(),
                    source: Os(errno),
                });
            }
        }
    }
    Ok(())
}

fn set(top: BorrowedFd<'_>, submount: &Submount) -> Result<(), Errno> {
    let attributes = MountAttr {
        set: bind_attributes(submount.flags).set,
        clear: ALL,
        ..MountAttr::default()
    };
    let found = open(top, &submount.path)?;
    match mount_setattr(found.as_fd(), false, attributes) {
        // No mount here: it becomes one.
        Err(Errno::INVAL) => {
            let tree = clone_tree(found.as_fd(), "", true)?;
            mount_setattr(tree.as_fd(), false, attributes)?;
            move_tree(tree.as_fd(), found.as_fd())
        }
        set => set,
    }
}

/// Opens `path` below `top`; asking for a directory has the kernel mount what is a mount there.
fn open(top: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let open = |flags| {
        openat2(
            top,
            path,
            OFlags::PATH | OFlags::CLOEXEC | flags,
            Mode::empty(),
            resolve,
        )
    };
    match open(OFlags::DIRECTORY) {
        Err(Errno::NOTDIR) => open(OFlags::empty()),
        opened => opened,
    }
}
