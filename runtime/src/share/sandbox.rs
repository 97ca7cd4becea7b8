//! The share of a sandbox that has containers already: its directory lies in the mount namespace of
//! its VMM, where a further container's files are put and taken away. Called by [`super`].
//!
//! It is mounted in the state directory of one of the containers: the one that the VM was made for,
//! and when that is deleted, another one. The kernel unmounts what is mounted on a directory that is
//! removed, in all namespaces.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{MOUNT_POINT, view};
use crate::{
    process::ProcessId,
    sys::{self, MountAttributes},
};

/// A share in another mount namespace.
#[derive(Debug)]
pub(crate) struct SandboxShare {
    namespace: OwnedFd,
    /// Root of its VMM, which a process that enters the namespace may not find there.
    root: OwnedFd,
    /// The share's top.
    top: OwnedFd,
    /// The state directory that it is mounted in.
    place: PathBuf,
}

impl SandboxShare {
    /// Opens the share of the VM `vmm`, which was mounted in the state directory `owner`.
    ///
    /// # Errors
    /// `ENOENT` when it is mounted in no state directory; `ESRCH` when the VM has ended; as `open(2)`.
    pub(crate) fn open(vmm: ProcessId, owner: &Path) -> Result<Self, Errno> {
        let process = format!("/proc/{}", vmm.pid);
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(format!("{process}/root"), path, Mode::empty())?;
        let (place, top) = find(&root, owner)?;
        let share = Self {
            namespace: rustix::fs::open(format!("{process}/ns/mnt"), read, Mode::empty())?,
            root,
            top,
            place,
        };
        // Alive after opening: all of that was its.
        if vmm.is_alive() {
            Ok(share)
        } else {
            Err(Errno::SRCH)
        }
    }

    /// Puts a copy of what `own` has in its directory `id` into the directory `id` here.
    pub(super) fn attach(&self, own: &OwnedFd, id: &str) -> Result<(), Errno> {
        let tree = view::clone(own, id)?;
        self.within(|| {
            let writable = self.writable()?;
            let mode = Mode::from_raw_mode(0o755);
            match rustix::fs::mkdirat(&writable, id, mode) {
                // Left by the container that the VM was made for.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&tree, "", &self.top, id, flags).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = rustix::fs::unlinkat(&writable, id, AtFlags::REMOVEDIR);
            })
        })
    }

    /// Makes the mount at `path` read-only.
    pub(super) fn seal(&self, path: &str) -> Result<(), Errno> {
        self.within(|| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let mount = rustix::fs::openat(&self.top, path, flags, Mode::empty())?;
            set(&mount, libc::MOUNT_ATTR_RDONLY, 0)
        })
    }

    /// Takes the directory `id` away, and the view of it that covers the namespace's root if it is
    /// that of the container `id`. What is gone already is no error.
    pub(super) fn detach(&self, id: &str, owns_view: bool) -> Result<(), Errno> {
        self.within(|| {
            if owns_view && mount_id(CWD, "/")? != mount_id(&self.root, "")? {
                rustix::mount::unmount("/", UnmountFlags::DETACH)?;
            }
            rustix::process::fchdir(&self.top)?;
            // One that joined is attached as a whole; the parts are those of the first container.
            if !unmount(id)? {
                unmount(&format!("{id}/rootfs"))?;
                for number in 0.. {
                    if !unmount(&format!("{id}/mounts/{number}"))? {
                        break;
                    }
                }
            }
            match rustix::fs::unlinkat(self.writable()?, id, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }

    /// Moves the share to the state directory `to` if it is in `from`, which is going to be removed.
    pub(super) fn hand_over(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        if self.place != from {
            return Ok(());
        }
        let (_, place) = mount_point(&self.root, to)?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        self.within(|| rustix::mount::move_mount(&self.top, "", &place, "", flags))
    }

    /// The share's directory for writing, which it is not for the guest.
    fn writable(&self) -> Result<OwnedFd, Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let clone = rustix::mount::open_tree(&self.top, "", flags)?;
        set(&clone, 0, libc::MOUNT_ATTR_RDONLY)?;
        Ok(clone)
    }

    /// Does `work` in the share's mount namespace, where this process has no path of the host's.
    fn within<T>(&self, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", path, Mode::empty())?;
        let directory = rustix::fs::open(".", path, Mode::empty())?;
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = rustix::fs::open("/proc/self/ns/mnt", read, Mode::empty())?;
        let mount = Some(LinkNameSpaceType::Mount);
        move_into_link_name_space(self.namespace.as_fd(), mount)?;
        let result = work();
        move_into_link_name_space(own.as_fd(), mount)?;
        // Entering a namespace takes a process to the topmost mount of its root.
        rustix::process::fchdir(&root)?;
        rustix::process::chroot(".")?;
        rustix::process::fchdir(&directory)?;
        result
    }
}

/// The state directory that the share is mounted in, below the VMM's `root`: `owner`, or another one
/// beside it; and the share's top.
fn find(root: &OwnedFd, owner: &Path) -> Result<(PathBuf, OwnedFd), Errno> {
    let mounted = |directory: &Path| -> Result<Option<OwnedFd>, Errno> {
        match mount_point(root, directory) {
            Ok((state, top)) => Ok((mount_id(&state, "")? != mount_id(&top, "")?).then_some(top)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    };
    if let Some(top) = mounted(owner)? {
        return Ok((owner.to_owned(), top));
    }
    let others = fs::read_dir(owner.parent().ok_or(Errno::NOENT)?);
    for other in others.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))? {
        // One that cannot be read is not there any more.
        if let Ok(other) = other
            && let Some(top) = mounted(&other.path())?
        {
            return Ok((other.path(), top));
        }
    }
    Err(Errno::NOENT)
}

/// A state directory as it is below `root`, and the directory in it that a share is mounted on.
fn mount_point(root: &OwnedFd, state: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = state.strip_prefix("/").unwrap_or(state);
    let state = rustix::fs::openat(root, inside, flags, Mode::empty())?;
    let point = rustix::fs::openat(&state, MOUNT_POINT, flags, Mode::empty())?;
    Ok((state, point))
}

fn set(mount: &OwnedFd, set: u64, clear: u64) -> Result<(), Errno> {
    let attributes = MountAttributes {
        set,
        clear,
        propagation: 0,
    };
    sys::set_mount_attributes(mount.as_fd(), attributes, false)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Unmounts what is mounted at `path`; tells whether something was.
fn unmount(path: &str) -> Result<bool, Errno> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path, flags) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The kernel's number of the mount that `path` is on.
fn mount_id(directory: impl AsFd, path: &str) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let statx = rustix::fs::statx(directory, path, flags, StatxFlags::MNT_ID)?;
    Ok(statx.stx_mnt_id)
}
