//! Owner, mode, extended attributes and time of an object.
//!
//! Called by `object` and `layer`. The order matters to the kernel: a change of owner clears setuid,
//! setgid and file capabilities, so these come after it, and the time comes last.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::EntryError;
use crate::Observer;
use crate::tarball::{Entry, Kind};

/// Attributes that belong to the host, not to the image: its SELinux labels, and what overlayfs
/// would take for its own if the root file system became a lower directory of one.
const HOST_ATTRIBUTES: [&[u8]; 3] = [b"security.selinux", b"trusted.overlay.", b"user.overlay."];
/// The attributes an image may have, and so the ones that go when a layer describes a directory anew.
const IMAGE_ATTRIBUTES: [&[u8]; 4] = [
    b"user.",
    b"trusted.",
    b"security.capability",
    b"system.posix_acl_",
];
/// Attributes a program may do without, on file systems that do not have them.
const OPTIONAL_ATTRIBUTES: [&[u8]; 2] = [b"user.", b"trusted."];
/// The longest list of attribute names Linux returns (`XATTR_LIST_MAX`).
const MAX_LIST_BYTES: usize = 64 << 10;

/// What an entry says of an object besides its content.
pub(super) struct Metadata<'e> {
    owner: (Uid, Gid),
    mode: Mode,
    xattrs: &'e [(Vec<u8>, Vec<u8>)],
    times: Timestamps,
    is_symlink: bool,
}

impl<'e> Metadata<'e> {
    /// Returns the metadata in `entry`, if Linux can represent it.
    pub(super) fn new(entry: &'e Entry) -> Result<Self, EntryError> {
        let time = Timespec {
            tv_sec: entry.mtime.seconds,
            tv_nsec: i64::from(entry.mtime.nanoseconds),
        };
        Ok(Self {
            owner: (
                Uid::from_raw(id("user id", entry.uid)?),
                Gid::from_raw(id("group id", entry.gid)?),
            ),
            mode: Mode::from_raw_mode(entry.mode),
            xattrs: &entry.xattrs,
            times: Timestamps {
                last_access: time,
                last_modification: time,
            },
            is_symlink: matches!(entry.kind, Kind::Symlink(_)),
        })
    }

    /// Sets everything on an open file or directory.
    pub(super) fn set_on_open(
        &self,
        file: BorrowedFd<'_>,
        observer: &dyn Observer,
        warned: &mut bool,
    ) -> Result<(), EntryError> {
        let (uid, gid) = self.owner;
        rustix::fs::fchown(file, Some(uid), Some(gid))
            .map_err(EntryError::call("set the owner"))?;
        rustix::fs::fchmod(file, self.mode).map_err(EntryError::call("set the mode"))?;
        self.set_xattrs(observer, warned, |name, value| {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
        })?;
        rustix::fs::futimens(file, &self.times).map_err(EntryError::call("set the time"))
    }

    /// Sets everything on a link, device or pipe, which must not be opened.
    pub(super) fn set_on_name(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        observer: &dyn Observer,
        warned: &mut bool,
    ) -> Result<(), EntryError> {
        let (uid, gid) = self.owner;
        rustix::fs::chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(EntryError::call("set the owner"))?;
        if !self.is_symlink {
            rustix::fs::chmodat(parent, name, self.mode, AtFlags::empty())
                .map_err(EntryError::call("set the mode"))?;
        }
        // There is no lsetxattr() that takes a directory; this path leads to one.
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        self.set_xattrs(observer, warned, |name, value| {
            rustix::fs::lsetxattr(path.as_slice(), name, value, XattrFlags::empty())
        })?;
        rustix::fs::utimensat(parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(EntryError::call("set the time"))
    }

    /// Removes attributes that lower layers gave an open directory and this entry does not.
    pub(super) fn drop_other_xattrs(&self, directory: BorrowedFd<'_>) -> Result<(), EntryError> {
        let mut list = Vec::with_capacity(MAX_LIST_BYTES);
        let listed = rustix::fs::flistxattr(directory, rustix::buffer::spare_capacity(&mut list));
        match listed {
            Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
            result => result.map_err(EntryError::call("list its extended attributes"))?,
        };
        for name in list.split(|&byte| byte == 0) {
            let described = self.xattrs.iter().any(|(other, _)| other == name);
            if has_prefix(name, &IMAGE_ATTRIBUTES) && !described {
                rustix::fs::fremovexattr(directory, name)
                    .map_err(EntryError::call("remove its extended attributes"))?;
            }
        }
        Ok(())
    }

    fn set_xattrs(
        &self,
        observer: &dyn Observer,
        warned: &mut bool,
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), EntryError> {
        for (name, value) in self.xattrs {
            if has_prefix(name, &HOST_ATTRIBUTES) {
                continue;
            }
            let text = || String::from_utf8_lossy(name).into_owned();
            match set(name, value) {
                Ok(()) => {}
                Err(Errno::NOTSUP) if has_prefix(name, &OPTIONAL_ATTRIBUTES) => {
                    if !*warned {
                        *warned = true;
                        let name = text();
                        observer.warning(&format!(
                            "the file system has no extended attributes like {name:?}: left out"
                        ));
                    }
                }
                Err(source) => {
                    return Err(EntryError::Xattr {
                        name: text(),
                        source,
                    });
                }
            }
        }
        Ok(())
    }
}

fn has_prefix(name: &[u8], prefixes: &[&[u8]]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// A user or group id; the highest means "no change" to the kernel.
fn id(field: &'static str, value: u64) -> Result<u32, EntryError> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(EntryError::OutOfRange { field, value })
}
