//! Attributes, extended attributes, symbolic links' targets and file system statistics.

use std::{
    ffi::CStr,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use fuse_backend_rs::{
    abi::fuse_abi::{stat64, statvfs64},
    api::filesystem::{GetxattrReply, ListxattrReply, SetattrValid},
};
use rustix::{
    fs::{
        AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags,
        chmodat, chownat, ftruncate, getxattr, getxattr_query, listxattr, listxattr_query,
        readlinkat, removexattr, setxattr, utimensat,
    },
    io::Errno,
    path::DecInt,
};

use super::{
    CACHE_TIMEOUT, Share, attributes, errno,
    identity::{self, WithoutFsetid},
    inodes::Known,
    status,
};

/// Largest value of an extended attribute, and largest list of their names (xattr(7)).
const XATTR_MAX_BYTES: u32 = 64 << 10;
/// Nanoseconds of a second.
const NANOSECONDS: i64 = 1_000_000_000;

impl Share {
    pub(super) fn get_attributes(&self, inode: u64) -> io::Result<(stat64, Duration)> {
        let inode = self.inodes.get(inode)?;
        let status = status(&inode)?;
        Ok((attributes(&status, &inode).into(), CACHE_TIMEOUT))
    }

    pub(super) fn set_attributes(
        &self,
        inode: u64,
        wanted: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let id = inode;
        let inode = self.inodes.get(id)?;
        if valid.contains(SetattrValid::MODE) {
            let mode = Mode::from_raw_mode(wanted.st_mode);
            let name = DecInt::from_fd(&inode);
            chmodat(&self.proc_fds, name, mode, AtFlags::empty())?;
        }
        // Nothing to set is what chown(2) with two times -1 comes down to: it clears set-id bits.
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) || valid.is_empty() {
            change_owner(&inode, wanted, valid)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            self.truncate(&inode, wanted.st_size, handle, valid)?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let times = Timestamps {
                last_access: time(
                    valid.contains(SetattrValid::ATIME),
                    valid.contains(SetattrValid::ATIME_NOW),
                    (wanted.st_atime, wanted.st_atime_nsec),
                )?,
                last_modification: time(
                    valid.contains(SetattrValid::MTIME),
                    valid.contains(SetattrValid::MTIME_NOW),
                    (wanted.st_mtime, wanted.st_mtime_nsec),
                )?,
            };
            let name = DecInt::from_fd(&inode);
            utimensat(&self.proc_fds, name, &times, AtFlags::empty())?;
        }
        self.get_attributes(id)
    }

    fn truncate(
        &self,
        inode: &Known,
        size: i64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<()> {
        let size = u64::try_from(size).map_err(|_| errno(libc::EINVAL))?;
        let _ordinary = if valid.contains(SetattrValid::KILL_SUIDGID) {
            Some(WithoutFsetid::new(&self.proc_fds)?)
        } else {
            None
        };
        if let Some(handle) = handle {
            return Ok(ftruncate(&*self.handles.get(handle, inode.id)?, size)?);
        }
        if !inode.is_regular() {
            return Err(errno(libc::EINVAL));
        }
        Ok(ftruncate(self.reopen(inode, OFlags::WRONLY)?, size)?)
    }

    pub(super) fn read_symlink(&self, inode: u64) -> io::Result<Vec<u8>> {
        let target = readlinkat(self.inodes.get(inode)?, c"", Vec::new())?;
        Ok(target.into_bytes())
    }

    pub(super) fn statistics(&self, inode: u64) -> io::Result<statvfs64> {
        let inode = self.inodes.get(inode)?;
        let descriptor = inode.as_fd().as_raw_fd();
        let mut out = MaybeUninit::<statvfs64>::zeroed();
        // SAFETY: the descriptor is open while `inode` lives, and `out` has room for the result.
        let result = unsafe { libc::fstatvfs64(descriptor, out.as_mut_ptr()) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all bytes were zeroed and then filled in; any value of them is valid.
        Ok(unsafe { out.assume_init() })
    }

    pub(super) fn set_xattr(
        &self,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        let inode = self.inodes.get(inode)?;
        identity::enter(self.proc_fds())?;
        let flags = XattrFlags::from_bits_retain(flags);
        Ok(setxattr(DecInt::from_fd(&inode), name, value, flags)?)
    }

    pub(super) fn get_xattr(
        &self,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let inode = self.inodes.get(inode)?;
        identity::enter(self.proc_fds())?;
        let path = DecInt::from_fd(&inode);
        let result = if size == 0 {
            getxattr_query(path, name).map(|length| GetxattrReply::Count(count(length)))
        } else {
            let mut value = vec![0; size.min(XATTR_MAX_BYTES) as usize];
            getxattr(path, name, value.as_mut_slice()).map(|length| {
                value.truncate(length);
                GetxattrReply::Value(value)
            })
        };
        result.map_err(|error| {
            // The guest's kernel asks for ACLs whenever somebody else than the owner comes by,
            // and takes every error but "there is none" for a refusal.
            let is_acl = name.to_bytes().starts_with(b"system.posix_acl_");
            if is_acl && error == Errno::OPNOTSUPP {
                errno(libc::ENODATA)
            } else {
                error.into()
            }
        })
    }

    pub(super) fn list_xattr(&self, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let inode = self.inodes.get(inode)?;
        identity::enter(self.proc_fds())?;
        let path = DecInt::from_fd(&inode);
        if size == 0 {
            return Ok(ListxattrReply::Count(count(listxattr_query(path)?)));
        }
        let mut names = vec![0; size.min(XATTR_MAX_BYTES) as usize];
        let length = listxattr(path, names.as_mut_slice())?;
        names.truncate(length);
        Ok(ListxattrReply::Names(names))
    }

    pub(super) fn remove_xattr(&self, inode: u64, name: &CStr) -> io::Result<()> {
        let inode = self.inodes.get(inode)?;
        identity::enter(self.proc_fds())?;
        Ok(removexattr(DecInt::from_fd(&inode), name)?)
    }
}

fn change_owner(inode: &Known, wanted: &stat64, valid: SetattrValid) -> io::Result<()> {
    // -1 would mean "as it is" to the system call; the guest says that by leaving the bit out.
    let id = |bit, id: u32| match (valid.contains(bit), id) {
        (false, _) => Ok(None),
        (true, u32::MAX) => Err(errno(libc::EINVAL)),
        (true, id) => Ok(Some(id)),
    };
    let user = id(SetattrValid::UID, wanted.st_uid)?.map(Uid::from_raw);
    let group = id(SetattrValid::GID, wanted.st_gid)?.map(Gid::from_raw);
    Ok(chownat(inode, c"", user, group, AtFlags::EMPTY_PATH)?)
}

fn time(set: bool, now: bool, (tv_sec, tv_nsec): (i64, i64)) -> io::Result<Timespec> {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    match (set, now) {
        (false, _) => Ok(special(UTIME_OMIT)),
        (true, true) => Ok(special(UTIME_NOW)),
        (true, false) if (0..NANOSECONDS).contains(&tv_nsec) => Ok(Timespec { tv_sec, tv_nsec }),
        (true, false) => Err(errno(libc::EINVAL)),
    }
}

/// Lengths of attributes come from the kernel and fit.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
