//! The share: a small tmpfs in the monitor's own mount namespace, with a clone of each host path
//! attached where the plan says. Called by the monitor only. Read-only is enforced here, by the
//! host's mounts, whatever the guest believes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use lazaret_protocol::container::CreateContainer;
use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use crate::{
    plan,
    sys::{self, MountAttributes},
};

mod view;

/// Mount point of the share in the state directory.
const MOUNT_POINT: &str = "share";

/// What the tmpfs may take: it holds nothing but mount points, one inode each.
const TMPFS_OPTIONS: &std::ffi::CStr = c"size=64k,mode=755";

/// Why the share could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShareError {
    /// A host path of the bundle is not there, or cannot be shared.
    #[error("{field}: cannot share {}", source_path.display())]
    Source {
        /// Field of the spec.
        field: String,
        /// Host path.
        source_path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The share itself could not be made.
    #[error("cannot {action} for the share")]
    Mount {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn mount_error(action: &'static str) -> impl FnOnce(rustix::io::Errno) -> ShareError {
    move |error| ShareError::Mount {
        action,
        source: error.into(),
    }
}

/// The share, mounted.
#[derive(Debug)]
pub(crate) struct Share {
    top: OwnedFd,
    mount_point: PathBuf,
    /// The root file system's clone, if it becomes read-only once the container is made.
    sealed_later: Option<OwnedFd>,
}

impl Share {
    /// Leaves the caller's mount namespace for a private one and mounts an empty share in
    /// `state_dir`.
    ///
    /// # Errors
    /// [`ShareError::Mount`].
    pub(crate) fn mount(state_dir: &Path) -> Result<Self, ShareError> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).map_err(|error| ShareError::Mount {
            action: "make a mount namespace",
            source: error.into(),
        })?;
        // Nothing of ours spreads to the host, but the host's unmounts reach us, so that the
        // namespace keeps no file system busy that the host has let go.
        let receive_only = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", receive_only).map_err(mount_error("isolate mounts"))?;
        let mount_point = state_dir.join(MOUNT_POINT);
        rustix::fs::mkdir(&mount_point, Mode::RWXU).map_err(mount_error("make a directory"))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        rustix::mount::mount("lazaret", &mount_point, "tmpfs", flags, TMPFS_OPTIONS)
            .map_err(mount_error("mount a tmpfs"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::open(&mount_point, flags, Mode::empty())
            .map_err(mount_error("open the tmpfs"))?;
        Ok(Self {
            top,
            mount_point,
            sealed_later: None,
        })
    }

    /// The share's top, `O_PATH`.
    pub(crate) fn top(&self) -> &OwnedFd {
        &self.top
    }

    /// Attaches everything container `id` shares. The first one, the root file system, stays
    /// writable until [`Share::seal`]: the agent has to make mount points in it.
    ///
    /// # Errors
    /// [`ShareError`].
    pub(crate) fn attach(&mut self, id: &str, shares: &[plan::Share]) -> Result<(), ShareError> {
        self.make_directory(id)?;
        if shares.len() > 1 {
            self.make_directory(&format!("{id}/mounts"))?;
        }
        for (index, share) in shares.iter().enumerate() {
            let is_root = index == 0;
            let clone = self.attach_one(share, is_root)?;
            if is_root && share.readonly {
                self.sealed_later = Some(clone);
            }
        }
        // From now on the guest cannot fill it with files of its own.
        let readonly = MountAttributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttributes::default()
        };
        sys::set_mount_attributes(self.top.as_fd(), readonly, false).map_err(|source| {
            ShareError::Mount {
                action: "seal the tmpfs",
                source,
            }
        })
    }

    /// Makes a read-only root file system read-only.
    ///
    /// # Errors
    /// [`ShareError::Mount`].
    pub(crate) fn seal(&mut self) -> Result<(), ShareError> {
        let Some(root) = self.sealed_later.take() else {
            return Ok(());
        };
        let readonly = MountAttributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..MountAttributes::default()
        };
        sys::set_mount_attributes(root.as_fd(), readonly, false).map_err(|source| {
            ShareError::Mount {
                action: "make the root file system read-only",
                source,
            }
        })
    }

    /// Shows the container's files to those who join this mount namespace. What the namespace's own
    /// processes see stays what it is.
    ///
    /// # Errors
    /// [`ShareError::Mount`].
    pub(crate) fn show(&self, container: &CreateContainer) -> Result<(), ShareError> {
        view::cover_root(&self.top, container).map_err(mount_error(
            "show the container's files to joining processes",
        ))
    }

    /// Takes the share away, so that its mount point can be removed from within this namespace.
    pub(crate) fn unmount(self) {
        // It vanishes with the namespace in any case.
        let _ = rustix::mount::unmount(&self.mount_point, UnmountFlags::DETACH);
    }

    fn attach_one(&self, share: &plan::Share, is_root: bool) -> Result<OwnedFd, ShareError> {
        let failed = |source: io::Error| ShareError::Source {
            field: share.field.clone(),
            source_path: share.source.clone(),
            source,
        };
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        if share.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let clone =
            rustix::mount::open_tree(CWD, &share.source, flags).map_err(|e| failed(e.into()))?;
        restrict(share, &clone, is_root).map_err(failed)?;
        let stat = rustix::fs::fstat(&clone).map_err(|e| failed(e.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => self.make_directory(&share.share_path)?,
            _ if is_root => return Err(failed(io::ErrorKind::NotADirectory.into())),
            _ => self.make_file(&share.share_path)?,
        }
        if kind == FileType::Socket {
            tracing::warn!(
                "{}: {} is a socket, which cannot be connected to from the guest",
                share.field,
                share.source.display()
            );
        }
        rustix::mount::move_mount(
            &clone,
            "",
            &self.top,
            &share.share_path,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|e| failed(e.into()))?;
        Ok(clone)
    }

    fn make_directory(&self, path: &str) -> Result<(), ShareError> {
        let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
        rustix::fs::mkdirat(&self.top, path, mode).map_err(mount_error("make a directory"))
    }

    fn make_file(&self, path: &str) -> Result<(), ShareError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        rustix::fs::openat(&self.top, path, flags, Mode::RUSR | Mode::WUSR)
            .map(drop)
            .map_err(mount_error("make a file"))
    }
}

/// Sets what the clone may be used for. Programs with set-user-id bits and device nodes mean
/// something to the guest's kernel only: on the host nobody opens them through this mount.
fn restrict(share: &plan::Share, clone: &OwnedFd, is_root: bool) -> io::Result<()> {
    let readonly = libc::MOUNT_ATTR_RDONLY;
    let all = MountAttributes {
        set: libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | if share.readonly_recursive {
                readonly
            } else {
                0
            },
        clear: 0,
        propagation: share.propagation,
    };
    sys::set_mount_attributes(clone.as_fd(), all, true)?;
    if share.readonly && !share.readonly_recursive && !is_root {
        let top = MountAttributes {
            set: readonly,
            ..MountAttributes::default()
        };
        sys::set_mount_attributes(clone.as_fd(), top, false)?;
    }
    Ok(())
}
