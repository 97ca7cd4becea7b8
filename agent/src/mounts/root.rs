//! The root mount of a container and what is done to paths in it once all mounts are there.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lazaret_protocol::container::Root;
use rustix::fs::{CWD, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};

use super::{MountError, clone_shared, clone_tree, is_directory, move_tree, set_flags};
use crate::errno::Os;
use crate::rootfs::Rootfs;
use crate::sys::{MountAttr, mount_setattr};

/// Cuts this mount namespace off from all others.
///
/// # Errors
/// The kernel's.
pub fn mount_namespace_private() -> Result<(), MountError> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(MountError::step("make the guest's mounts private"))
}

/// Clones a container's root of the share, with its flags.
///
/// # Errors
/// As [`super::clone_shared`]; the kernel's.
pub fn clone_root(share: &Path, root: &Root) -> Result<OwnedFd, MountError> {
    let tree = clone_shared(share, &root.share_path, true)?;
    set_flags(&tree, root.flags)?;
    Ok(tree)
}

/// Attaches the container's root tree at `staging`, an existing directory that serves for nothing
/// else.
///
/// # Errors
/// The kernel's.
pub fn attach_root(tree: OwnedFd, staging: &Path) -> Result<Rootfs, MountError> {
    let attach = || {
        let destination = openat(
            CWD,
            staging,
            OFlags::PATH | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        move_tree(tree.as_fd(), destination.as_fd())
    };
    attach().map_err(MountError::step("attach the container's root"))?;
    Ok(Rootfs::new(tree))
}

/// Remounts `path` of the container read-only, with everything below it. A missing path is fine.
///
/// # Errors
/// Naming the path.
pub fn protect(rootfs: &Rootfs, path: &str) -> Result<(), MountError> {
    let Some(found) = rootfs.find(path)? else {
        return Ok(());
    };
    let bind = || {
        let tree = clone_tree(found.as_fd(), "", true)?;
        mount_setattr(tree.as_fd(), true, read_only())?;
        move_tree(tree.as_fd(), found.as_fd())
    };
    bind().map_err(|errno| on_path("make read-only", path, errno))
}

/// Makes the mounts read-only that [`super::make`] has left for the end.
///
/// # Errors
/// The kernel's.
pub fn seal(mounts: &[OwnedFd]) -> Result<(), MountError> {
    for mount in mounts {
        mount_setattr(mount.as_fd(), false, read_only())
            .map_err(MountError::step("make a mount read-only"))?;
    }
    Ok(())
}

/// Hides `paths` of the container: files behind `/dev/null`, directories behind one empty
/// read-only tmpfs. Missing paths are fine.
///
/// # Errors
/// Naming the path.
pub fn mask(rootfs: &Rootfs, paths: &[String]) -> Result<(), MountError> {
    let mut empty: Option<OwnedFd> = None;
    for path in paths {
        let Some(found) = rootfs.find(path)? else {
            continue;
        };
        let hide = || {
            if !is_directory(found.as_fd()) {
                // The guest's own: the container's may be anything.
                let null = clone_tree(CWD, "/dev/null", false)?;
                return move_tree(null.as_fd(), found.as_fd());
            }
            if let Some(empty) = &empty {
                let tree = clone_tree(empty.as_fd(), "", false)?;
                return move_tree(tree.as_fd(), found.as_fd());
            }
            fchdir(&found)?;
            let flags =
                MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("tmpfs", ".", "tmpfs", flags, c"size=4k,nr_inodes=2")?;
            Ok(())
        };
        hide().map_err(|errno| on_path("mask", path, errno))?;
        if empty.is_none() && is_directory(found.as_fd()) {
            empty = Some(rootfs.open(path, OFlags::PATH)?);
        }
    }
    Ok(())
}

/// Makes the container's root `/` of this process and lets go of the guest's mounts.
///
/// # Errors
/// The kernel's.
pub fn become_root(rootfs: &Rootfs, readonly: bool) -> Result<(), MountError> {
    if readonly {
        mount_setattr(rootfs.as_fd(), false, read_only())
            .map_err(MountError::step("make the root read-only"))?;
    }
    fchdir(rootfs.as_fd()).map_err(MountError::step("enter the root"))?;
    // Both arguments being ".", the old root comes to lie on top of the new one, from where it
    // is taken away: no directory in the container is needed for it.
    pivot_root(".", ".").map_err(MountError::step("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(MountError::step("let go of the guest's mounts"))?;
    chdir("/").map_err(MountError::step("enter the new root"))
}

/// Sets the propagation of `/`, flags as in `container::Root::propagation`.
///
/// # Errors
/// The kernel's.
pub fn set_propagation(propagation: u64) -> Result<(), MountError> {
    if propagation == 0 {
        return Ok(());
    }
    mount_change(
        "/",
        MountPropagationFlags::from_bits_retain(propagation as u32),
    )
    .map_err(MountError::step("set the propagation of the root"))
}

fn read_only() -> MountAttr {
    MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    }
}

fn on_path(action: &'static str, path: &str, errno: Errno) -> MountError {
    MountError::Protect {
        action,
        path: path.to_owned(),
        source: Os(errno),
    }
}
