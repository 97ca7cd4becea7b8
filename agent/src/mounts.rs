//! The mounts of a container, made in its own mount namespace and below its root. Called by
//! [`crate::init`]; [`clone_source`] also by [`crate::launch`], for containers whose user
//! namespace may not clone the guest's mounts.
//!
//! A bind is a clone of the source tree (`open_tree(2)`) that gets its attributes while it is
//! attached nowhere, and is then moved to a descriptor of its destination: no path is looked up
//! twice.

mod below;
mod copy_up;
mod root;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use lazaret_protocol::container::{Mount, MountSource};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, mount, mount_remount, move_mount, open_tree,
};
use rustix::process::fchdir;

use crate::errno::Os;
use crate::rootfs::{Missing, PathError, Rootfs};
use crate::sys::{MountAttr, mount_setattr};

pub use root::{
    attach_root, become_root, clone_root, mask, mount_namespace_private, protect, seal,
    set_propagation,
};

/// `MOUNT_ATTR_*` by the `MS_*` flag that means the same (`mount_setattr(2)`).
const ATTRIBUTES: [(u64, u64); 7] = [
    (libc::MS_RDONLY, libc::MOUNT_ATTR_RDONLY),
    (libc::MS_NOSUID, libc::MOUNT_ATTR_NOSUID),
    (libc::MS_NODEV, libc::MOUNT_ATTR_NODEV),
    (libc::MS_NOEXEC, libc::MOUNT_ATTR_NOEXEC),
    (libc::MS_NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
    (libc::MS_NOATIME, libc::MOUNT_ATTR_NOATIME),
    (libc::MS_STRICTATIME, libc::MOUNT_ATTR_STRICTATIME),
];
/// `MS_NOSYMFOLLOW`, which the C library's headers of this generation lack.
const MS_NOSYMFOLLOW: u64 = 256;
const MOUNT_ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

/// Names of flags in messages, in the order `mount(8)` prints them.
const FLAG_NAMES: [(u64, &str); 10] = [
    (libc::MS_RDONLY, "ro"),
    (libc::MS_NOSUID, "nosuid"),
    (libc::MS_NODEV, "nodev"),
    (libc::MS_NOEXEC, "noexec"),
    (libc::MS_NOATIME, "noatime"),
    (libc::MS_STRICTATIME, "strictatime"),
    (libc::MS_BIND, "bind"),
    (libc::MS_REC, "rec"),
    (libc::MS_REMOUNT, "remount"),
    (libc::MS_SYNCHRONOUS, "sync"),
];

/// A mount could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// One of the container's mounts.
    #[error("mount {what} on {destination} ({options})")]
    Mount {
        /// Type of file system, or source of a bind.
        what: String,
        /// Path in the container.
        destination: String,
        /// Flags and data.
        options: String,
        /// What failed in doing so.
        #[source]
        source: Box<MountError>,
    },
    /// The source of a bind.
    #[error("source {path}")]
    Source {
        /// Path in the share or in the guest.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// A bind of a guest path that holds more than the kernel's own file systems.
    #[error("source {0} is not below /proc, /sys or /dev")]
    NotKernel(String),
    /// A path in the container.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A path in the container, by what was done to it.
    #[error("{action} {path}")]
    Protect {
        /// What was done.
        action: &'static str,
        /// Path in the container.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Something else than a directory where one of the kernel's own file systems belongs; the
    /// wording is runc's.
    #[error("filesystem {0:?} must be mounted on ordinary directory")]
    NotOrdinary(String),
    /// A step of making the mount.
    #[error("{step}")]
    Step {
        /// Which.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Copying what a tmpfs covers.
    #[error("copy up {name}")]
    CopyUp {
        /// Name of the file in its directory.
        name: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The options hold a NUL character.
    #[error("options hold a NUL character")]
    Nul,
}

impl MountError {
    /// Makes a `map_err` function for `step`.
    fn step(step: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Step {
            step,
            source: Os(errno),
        }
    }
}

/// What the mounts of a container depend on beside their own description.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Where the sandbox's share is mounted.
    pub share: &'a Path,
    /// Directory of the container's cgroup if it sees the guest's cgroup namespace: its cgroup
    /// mounts then show this directory only.
    pub cgroup: Option<&'a Path>,
}

/// Makes one mount of the container. `tree` is the clone of its source if the agent has made it.
/// Returns the mount if it has to be made read-only by [`seal`] once everything below it is there.
///
/// # Errors
/// [`MountError::Mount`], naming destination and flags.
pub fn make(
    rootfs: &Rootfs,
    context: Context<'_>,
    wanted: &Mount,
    tree: Option<OwnedFd>,
) -> Result<Option<OwnedFd>, MountError> {
    let made = match tree {
        Some(tree) => attach(rootfs, wanted, &tree).map(|()| None),
        None => make_from_description(rootfs, context, wanted),
    };
    made.map_err(|error| MountError::Mount {
        what: describe_source(&wanted.source),
        destination: wanted.destination.clone(),
        options: describe_options(wanted.flags, &wanted.data),
        source: Box::new(error),
    })
}

fn make_from_description(
    rootfs: &Rootfs,
    context: Context<'_>,
    wanted: &Mount,
) -> Result<Option<OwnedFd>, MountError> {
    let MountSource::Filesystem { fs_type, source } = &wanted.source else {
        if let Some(tree) = clone_source(context.share, wanted)? {
            attach(rootfs, wanted, &tree)?;
        }
        return Ok(None);
    };
    match (cgroup_type(fs_type), context.cgroup) {
        (false, _) => make_filesystem(rootfs, wanted, fs_type, source),
        (true, None) => make_filesystem(rootfs, wanted, "cgroup2", source),
        (true, Some(directory)) => {
            let tree = clone_tree(CWD, directory, true).map_err(|errno| MountError::Source {
                path: directory.display().to_string(),
                source: Os(errno),
            })?;
            attach(rootfs, wanted, &tree).map(|()| None)
        }
    }
}

/// Whether `fs_type` is a cgroup file system; the guest has version 2 only.
fn cgroup_type(fs_type: &str) -> bool {
    matches!(fs_type, "cgroup" | "cgroup2")
}

/// Clones the tree that a bind shows, in the caller's mount namespace; `None` for what is no bind.
///
/// # Errors
/// [`MountError::Source`] and [`MountError::NotKernel`].
pub fn clone_source(share: &Path, wanted: &Mount) -> Result<Option<OwnedFd>, MountError> {
    let recursive = wanted.flags & libc::MS_REC != 0;
    match &wanted.source {
        MountSource::Filesystem { .. } => Ok(None),
        MountSource::Share(path) => clone_shared(share, path, recursive).map(Some),
        MountSource::Guest(path) => {
            let below = |top: &&str| path == top || path.starts_with(&format!("{top}/"));
            if !["/proc", "/sys", "/dev"].iter().any(below) {
                return Err(MountError::NotKernel(path.clone()));
            }
            let tree = clone_tree(CWD, path.as_str(), recursive);
            tree.map(Some).map_err(|errno| MountError::Source {
                path: path.clone(),
                source: Os(errno),
            })
        }
    }
}

/// Sets `MS_*` flags of a bind.
fn set_flags(tree: &OwnedFd, flags: u64) -> Result<(), MountError> {
    let attributes = bind_attributes(flags);
    if attributes == MountAttr::default() {
        return Ok(());
    }
    mount_setattr(tree.as_fd(), false, attributes)
        .map_err(MountError::step("set the mount's attributes"))
}

/// Clones the tree at `path` of the share, which must not lead out of it.
///
/// # Errors
/// [`MountError::Source`].
fn clone_shared(share: &Path, path: &str, recursive: bool) -> Result<OwnedFd, MountError> {
    let clone = || {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let share = openat(CWD, share, flags | OFlags::DIRECTORY, Mode::empty())?;
        let open = |flags| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            openat2(&share, path, flags, Mode::empty(), resolve)
        };
        // A directory that is a mount on the host is a mount of its own here, which the kernel
        // makes on the way to something that has to be a directory. What lies below it otherwise
        // would be cloned, to be covered by that mount at the first lookup.
        let source = match open(flags | OFlags::DIRECTORY) {
            Err(Errno::NOTDIR) => open(flags),
            opened => opened,
        }?;
        clone_tree(source.as_fd(), "", recursive)
    };
    clone().map_err(|errno| MountError::Source {
        path: path.to_owned(),
        source: Os(errno),
    })
}

/// `open_tree(2)` with `OPEN_TREE_CLONE`; an empty path means `directory` itself.
///
/// # Errors
/// The kernel's answer.
pub fn clone_tree(
    directory: BorrowedFd<'_>,
    path: impl rustix::path::Arg,
    recursive: bool,
) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(directory, path, flags)
}

/// Attaches an unattached tree to `destination`.
fn move_tree(tree: BorrowedFd<'_>, destination: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", destination, "", flags)
}

/// Attaches a bind's tree to its destination, with its attributes.
fn attach(rootfs: &Rootfs, wanted: &Mount, tree: &OwnedFd) -> Result<(), MountError> {
    let stat = fstat(tree).map_err(MountError::step("stat the source"))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let missing = if directory {
        Missing::Directory
    } else {
        Missing::File
    };
    set_flags(tree, wanted.flags)?;
    let destination = rootfs.open_or_create(&wanted.destination, missing)?;
    move_tree(tree.as_fd(), destination.as_fd()).map_err(|errno| {
        // What the kernel calls invalid here is mostly this, and the user's mistake.
        let other = is_directory(destination.as_fd()) != directory;
        let errno = if other { Errno::NOTDIR } else { errno };
        MountError::step("attach the tree")(errno)
    })?;
    below::set_flags(tree.as_fd(), &wanted.below)?;
    set_attributes(tree.as_fd(), wanted)
}

fn is_directory(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A container can bind a file on a pts of its own; see [`crate::init`].
///
/// # Errors
/// [`MountError::Protect`].
pub fn bind_over(
    source: BorrowedFd<'_>,
    destination: BorrowedFd<'_>,
    path: &str,
) -> Result<(), MountError> {
    clone_tree(source, "", false)
        .and_then(|tree| move_tree(tree.as_fd(), destination))
        .map_err(on_bind(path))
}

/// Attaches an unattached mount at `destination`, which is `path` in the container.
///
/// # Errors
/// [`MountError::Protect`].
pub fn place_over(
    tree: BorrowedFd<'_>,
    destination: BorrowedFd<'_>,
    path: &str,
) -> Result<(), MountError> {
    move_tree(tree, destination).map_err(on_bind(path))
}

fn on_bind(path: &str) -> impl FnOnce(Errno) -> MountError {
    let path = path.to_owned();
    |errno| MountError::Protect {
        action: "bind on",
        path,
        source: Os(errno),
    }
}

/// Mounts a new instance of a file system. A tmpfs, and whatever is at `/dev`, is writable until
/// mount points and devices are made in it, as runc has it.
fn make_filesystem(
    rootfs: &Rootfs,
    wanted: &Mount,
    fs_type: &str,
    source: &str,
) -> Result<Option<OwnedFd>, MountError> {
    let mut data = wanted.data.clone();
    if fs_type == "tmpfs" && !data.split(',').any(|word| word.starts_with("mode=")) {
        inherit_mode(rootfs, &wanted.destination, &mut data)?;
    }
    let data = CString::new(data).map_err(|_| MountError::Nul)?;
    let data = (!data.is_empty()).then_some(data.as_c_str());
    let destination = mount_point(rootfs, wanted, fs_type)?;
    fchdir(&destination).map_err(MountError::step("enter the mount point"))?;
    let flags = wanted.flags & !(libc::MS_BIND | libc::MS_REC);
    if flags & libc::MS_REMOUNT != 0 {
        let flags = to_mount_flags(flags & !libc::MS_REMOUNT);
        return mount_remount(".", flags, data.unwrap_or_default())
            .map(|()| None)
            .map_err(MountError::step("remount"));
    }
    let copy_up = wanted.copy_up && fs_type == "tmpfs";
    let covered = copy_up
        .then(|| {
            openat(
                &destination,
                ".",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })
        .transpose()
        .map_err(MountError::step("open the mount point"))?;
    let is_dev = wanted.destination.trim_end_matches('/') == "/dev";
    let sealed = flags & libc::MS_RDONLY != 0 && (fs_type == "tmpfs" || is_dev);
    let first = if sealed {
        flags & !libc::MS_RDONLY
    } else {
        flags
    };
    mount(source, ".", fs_type, to_mount_flags(first), data).map_err(MountError::step("mount"))?;
    let changed =
        wanted.recursive_set != 0 || wanted.recursive_clear != 0 || !wanted.propagation.is_empty();
    if covered.is_none() && !changed && !sealed {
        return Ok(None);
    }
    // The descriptor of the destination lies below the new mount; look it up again.
    let top = rootfs.open(&wanted.destination, OFlags::PATH)?;
    if let Some(covered) = covered {
        copy_up::copy(covered.as_fd(), top.as_fd())?;
    }
    set_attributes(top.as_fd(), wanted)?;
    Ok(sealed.then_some(top))
}

/// Where a file system is mounted. For proc and sysfs, on whose place the container's safety
/// depends, an image must not have put a symbolic link there.
fn mount_point(rootfs: &Rootfs, wanted: &Mount, fs_type: &str) -> Result<OwnedFd, MountError> {
    let path = wanted.destination.as_str();
    if matches!(fs_type, "proc" | "sysfs")
        && let Some(found) = rootfs.find_itself(path)?
    {
        return match is_directory(found.as_fd()) {
            true => Ok(found),
            false => Err(MountError::NotOrdinary(fs_type.to_owned())),
        };
    }
    Ok(rootfs.open_or_create(path, Missing::Directory)?)
}

/// Has a tmpfs whose options say no mode take that of the directory it is going to cover, as runc
/// does.
fn inherit_mode(rootfs: &Rootfs, destination: &str, data: &mut String) -> Result<(), MountError> {
    let Some(covered) = rootfs.find(destination)? else {
        return Ok(());
    };
    let stat = fstat(&covered).map_err(MountError::step("stat the mount point"))?;
    let separator = if data.is_empty() { "" } else { "," };
    let mode = stat.st_mode & 0o7777;
    data.push_str(&format!("{separator}mode={mode:o}"));
    Ok(())
}

/// Applies recursive attributes and propagation to an attached mount.
fn set_attributes(mount: BorrowedFd<'_>, wanted: &Mount) -> Result<(), MountError> {
    if wanted.recursive_set != 0 || wanted.recursive_clear != 0 {
        let attributes = MountAttr {
            set: wanted.recursive_set,
            clear: wanted.recursive_clear,
            ..MountAttr::default()
        };
        mount_setattr(mount, true, attributes)
            .map_err(MountError::step("set recursive attributes"))?;
    }
    for propagation in &wanted.propagation {
        let attributes = MountAttr {
            propagation: propagation & !libc::MS_REC,
            ..MountAttr::default()
        };
        mount_setattr(mount, propagation & libc::MS_REC != 0, attributes)
            .map_err(MountError::step("set the propagation"))?;
    }
    Ok(())
}

fn to_mount_flags(flags: u64) -> MountFlags {
    // Every MS_* flag lies in the lower 32 bits.
    MountFlags::from_bits_retain(flags as u32)
}

/// The attributes a bind gets for its `MS_*` flags; those not listed have no meaning for a bind.
fn bind_attributes(flags: u64) -> MountAttr {
    let mut attributes = MountAttr::default();
    for (flag, attribute) in ATTRIBUTES {
        if flags & flag != 0 {
            attributes.set |= attribute;
        }
    }
    if flags & MS_NOSYMFOLLOW != 0 {
        attributes.set |= MOUNT_ATTR_NOSYMFOLLOW;
    }
    if flags & (libc::MS_NOATIME | libc::MS_STRICTATIME | libc::MS_RELATIME) != 0 {
        // The three exclude each other; relatime is the absence of the others.
        attributes.clear = libc::MOUNT_ATTR__ATIME;
    }
    attributes
}

fn describe_source(source: &MountSource) -> String {
    match source {
        MountSource::Share(path) | MountSource::Guest(path) => path.clone(),
        MountSource::Filesystem { fs_type, .. } => fs_type.clone(),
    }
}

fn describe_options(flags: u64, data: &str) -> String {
    let names = FLAG_NAMES
        .iter()
        .filter(|(flag, _)| flags & flag != 0)
        .map(|(_, name)| *name);
    let all: Vec<&str> = names.chain((!data.is_empty()).then_some(data)).collect();
    if all.is_empty() {
        "no options".to_owned()
    } else {
        all.join(",")
    }
}

#[cfg(test)]
mod tests;
