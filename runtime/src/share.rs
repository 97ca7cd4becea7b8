//! The share: a small tmpfs in the monitor's own mount namespace, with a clone of each host path
//! attached where the plan says. Called by the monitor only. Read-only is enforced here, by the
//! host's mounts, whatever the guest believes.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use lazaret_protocol::container::{CreateContainer, Mount, MountSource};
use nix::sched::CloneFlags;
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags},
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};

use crate::{
    plan,
    process::ProcessId,
    sys::{self, MountAttributes},
    user_namespace,
};

mod flags;
mod sandbox;
mod view;

use sandbox::SandboxShare;

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
    /// The root file system is reached by a symbolic link; the wording is runc's.
    #[error("root.path: invalid rootfs: {}: not an absolute path, or a symlink", path.display())]
    Link {
        /// Host path.
        path: PathBuf,
    },
    /// An overlay could not be mounted.
    #[error("{field}: cannot mount overlay ({options})")]
    Overlay {
        /// Field of the spec.
        field: String,
        /// As the kernel was told.
        options: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The ids of a mount could not be mapped.
    #[error("{field}: cannot map the ids of {}", source_path.display())]
    IdMap {
        /// Field of the spec.
        field: String,
        /// Host path.
        source_path: PathBuf,
        /// Why not.
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
    /// Where the guest sees it, if its VM was made for another container.
    elsewhere: Option<SandboxShare>,
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
            elsewhere: None,
        })
    }

    /// The share's top, `O_PATH`.
    pub(crate) fn top(&self) -> &OwnedFd {
        &self.top
    }

    /// Attaches everything a container shares. The first one, the root file system, stays
    /// writable until [`Share::seal`]: the agent has to make mount points in it. The container's
    /// root and binds learn the flags that the mounts of their sources have.
    ///
    /// # Errors
    /// [`ShareError`].
    pub(crate) fn attach(
        &mut self,
        container: &mut CreateContainer,
        shares: &[plan::Share],
    ) -> Result<(), ShareError> {
        let id = container.id.as_str();
        self.make_directory(id)?;
        if shares.len() > 1 {
            self.make_directory(&format!("{id}/mounts"))?;
        }
        let mut table = flags::MountTable::default();
        for (index, share) in shares.iter().enumerate() {
            let is_root = index == 0;
            let clone = self.attach_one(share, is_root, container, &mut table)?;
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

    /// Shows what is attached for `container` to the guest of `vmm`, whose share was mounted in the
    /// state directory `owner`.
    ///
    /// # Errors
    /// [`ShareError::Mount`].
    pub(crate) fn join(
        &mut self,
        vmm: ProcessId,
        owner: &Path,
        container: &CreateContainer,
    ) -> Result<(), ShareError> {
        let elsewhere = SandboxShare::open(vmm, owner).map_err(mount_error("open the sandbox"))?;
        let elsewhere = self.elsewhere.insert(elsewhere);
        let attached = elsewhere.attach(&self.top, &container.id);
        attached.map_err(mount_error("attach files in the sandbox"))
    }

    /// Makes a read-only root file system read-only.
    ///
    /// # Errors
    /// [`ShareError::Mount`].
    pub(crate) fn seal(&mut self, container: &CreateContainer) -> Result<(), ShareError> {
        let Some(root) = self.sealed_later.take() else {
            return Ok(());
        };
        if let Some(elsewhere) = &self.elsewhere {
            let sealed = elsewhere.seal(&container.root.share_path);
            sealed.map_err(mount_error("make the root file system read-only"))?;
        }
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

    /// Shows the container's files to those who join this mount namespace, and the mount `proc` where
    /// the container has its `/proc`. What the namespace's own processes see stays what it is.
    ///
    /// # Errors
    /// [`ShareError::Mount`].
    pub(crate) fn show(
        &self,
        container: &CreateContainer,
        proc: Option<BorrowedFd<'_>>,
    ) -> Result<(), ShareError> {
        view::cover_root(&self.top, container, proc).map_err(mount_error(
            "show the container's files to joining processes",
        ))
    }

    /// Takes the share away, so that its mount point can be removed from within this namespace.
    pub(crate) fn unmount(self) {
        // It vanishes with the namespace in any case.
        let _ = rustix::mount::unmount(&self.mount_point, UnmountFlags::DETACH);
    }

    fn attach_one(
        &self,
        share: &plan::Share,
        is_root: bool,
        container: &mut CreateContainer,
        table: &mut flags::MountTable,
    ) -> Result<OwnedFd, ShareError> {
        if let Some(options) = &share.overlay {
            return self.mount_overlay(share, options);
        }
        let failed = |source: io::Error| ShareError::Source {
            field: share.field.clone(),
            source_path: share.source.clone(),
            source,
        };
        let clone = clone_source(share, is_root)?;
        if let Some(id_map) = &share.id_map {
            map_ids(&clone, id_map).map_err(|source| ShareError::IdMap {
                field: share.field.clone(),
                source_path: share.source.clone(),
                source,
            })?;
        }
        let stat = rustix::fs::fstat(&clone).map_err(|e| failed(e.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Before they become what the host wants them to be.
        if is_root {
            flags::hand_on_to_root(share, &clone, &mut container.root).map_err(failed)?;
        } else if let Some(bind) = bind_of(share, container) {
            flags::hand_on(share, &clone, kind, bind, table).map_err(failed)?;
        }
        restrict(share, &clone, is_root).map_err(failed)?;
        match kind {
            FileType::Directory => self.make_directory(&share.share_path)?,
            _ if is_root => return Err(failed(io::ErrorKind::NotADirectory.into())),
            _ => self.make_file(&share.share_path)?,
        }
        warn_of_kind(share, kind);
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

    /// Mounts an overlay of host directories at its place in the share.
    fn mount_overlay(&self, share: &plan::Share, options: &str) -> Result<OwnedFd, ShareError> {
        let failed = |source: io::Error| ShareError::Overlay {
            field: share.field.clone(),
            options: options.to_owned(),
            source,
        };
        self.make_directory(&share.share_path)?;
        let data = CString::new(options).map_err(|error| failed(error.into()))?;
        let path = format!(
            "/proc/self/fd/{}/{}",
            self.top.as_raw_fd(),
            share.share_path
        );
        rustix::mount::mount("overlay", path, "overlay", MountFlags::empty(), &*data)
            .map_err(|error| failed(error.into()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mounted = rustix::fs::openat(&self.top, &share.share_path, flags, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        restrict(share, &mounted, false).map_err(failed)?;
        Ok(mounted)
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

/// Takes the files of container `id` away from the guest of `vmm`, whose share was mounted in the
/// state directory `owner`.
///
/// # Errors
/// As the system calls; what is gone already is no error, but for the whole share.
pub(crate) fn withdraw(vmm: ProcessId, owner: &Path, id: &str) -> io::Result<()> {
    let is_owner = owner.file_name().is_some_and(|name| name == id);
    SandboxShare::open(vmm, owner)?.detach(id, is_owner)?;
    Ok(())
}

/// Moves the share of `vmm`, which was mounted in the state directory `owner`, to the state directory
/// `heir` if it is in `leaving`, which is about to be removed.
///
/// # Errors
/// As the system calls.
pub(crate) fn hand_over(
    vmm: ProcessId,
    owner: &Path,
    leaving: &Path,
    heir: &Path,
) -> io::Result<()> {
    SandboxShare::open(vmm, owner)?.hand_over(leaving, heir)?;
    Ok(())
}

/// The container's mount that shows `share`.
fn bind_of<'a>(share: &plan::Share, container: &'a mut CreateContainer) -> Option<&'a mut Mount> {
    let mut mounts = container.mounts.iter_mut();
    mounts.find(
        |mount| matches!(&mount.source, MountSource::Share(path) if *path == share.share_path),
    )
}

/// Clones what is shared, with what is mounted below it if that is wanted.
fn clone_source(share: &plan::Share, is_root: bool) -> Result<OwnedFd, ShareError> {
    let failed = |error: rustix::io::Errno| ShareError::Source {
        field: share.field.clone(),
        source_path: share.source.clone(),
        source: error.into(),
    };
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if share.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !is_root {
        return rustix::mount::open_tree(CWD, &share.source, flags).map_err(failed);
    }
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS;
    let root = rustix::fs::openat2(CWD, &share.source, path, Mode::empty(), resolve);
    let root = root.map_err(|error| match error {
        rustix::io::Errno::LOOP => ShareError::Link {
            path: share.source.clone(),
        },
        error => failed(error),
    })?;
    rustix::mount::open_tree(&root, "", flags | OpenTreeFlags::AT_EMPTY_PATH).map_err(failed)
}

/// Has the mounts of `clone` show ids as `id_map` says.
fn map_ids(clone: &OwnedFd, id_map: &plan::IdMap) -> io::Result<()> {
    let namespace = user_namespace::make(&id_map.uids, &id_map.gids)?;
    sys::map_mount_ids(clone.as_fd(), namespace.as_fd(), id_map.recursive)
}

/// Says what of a file does not reach into the guest.
fn warn_of_kind(share: &plan::Share, kind: FileType) {
    let what = match kind {
        FileType::Socket => "a socket, which cannot be connected to from the guest",
        FileType::Fifo => "a pipe, which connects only processes in the guest with each other",
        _ => return,
    };
    tracing::warn!("{}: {} is {what}", share.field, share.source.display());
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
