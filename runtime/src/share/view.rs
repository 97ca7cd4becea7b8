//! What those see who join the monitor's mount namespace by the container's pid: the container's
//! files, as they would under runc. Called by `share`; knows nothing of the guest.
//!
//! Podman copies files into and out of a running container so (`podman cp`): it joins the mount
//! namespace of the pid and works from there on. If the host's root were found there, it would
//! silently read and write the host's files instead.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_protocol::container::{CreateContainer, Mount, MountSource};
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
};

/// Puts the container's root file system, with its binds in it, on top of the namespace's root.
///
/// A process that joins the namespace starts at the topmost mount of its root (`setns(2)`); a
/// process whose root is below, as the monitor's and the VMM's, goes on seeing the host. The mount
/// points are there: the agent has made them. Where the container has a file system of processes at
/// `/proc`, `proc` is attached.
///
/// # Errors
/// As `open_tree(2)` and `move_mount(2)`. A bind whose mount point cannot be reached is left out:
/// it may lie on a file system of the guest, which nobody on the host can see.
pub(super) fn cover_root(
    top: &OwnedFd,
    container: &CreateContainer,
    proc: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    let root = clone(top, &container.root.share_path)?;
    put(&root, CWD, "/")?;
    for mount in &container.mounts {
        if let MountSource::Share(source) = &mount.source
            && let Some(place) = mount_point(&root, mount)
        {
            put(&clone(top, source.as_str())?, place, "")?;
        }
        if let Some(proc) = proc.filter(|_| is_proc(mount))
            && let Some(place) = mount_point(&root, mount)
        {
            put(proc, place, "")?;
        }
    }
    Ok(())
}

/// A detached copy of what the share has at `path`, with the mounts below it.
///
/// # Errors
/// As `open_tree(2)`.
pub(super) fn clone(top: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(top, path, flags)
}

/// Where a mount belongs. Its path is resolved as if the root were `/`, whatever links the image
/// has.
fn mount_point(root: &OwnedFd, mount: &Mount) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = mount.destination.as_str();
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()
}

fn is_proc(mount: &Mount) -> bool {
    mount.destination == "/proc"
        && matches!(&mount.source, MountSource::Filesystem { fs_type, .. } if fs_type == "proc")
}

fn put(tree: impl AsFd, directory: impl AsFd, path: &str) -> Result<(), Errno> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    rustix::mount::move_mount(tree, "", directory, path, flags)
}
