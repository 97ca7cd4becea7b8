//! The host side: a directory tree served as a FUSE file system.
//!
//! [`Session`] takes one descriptor chain at a time, from any worker thread; `fuse-backend-rs`
//! decodes the message, a [`Share`] does what it asks. The operations lie in the sibling files:
//! `names` (what changes directories), `files` (what has an open file), `metadata`,
//! `directories`, and `extra` (the messages `fuse-backend-rs` does not know).
//!
//! It must not know virtqueues, interrupts or life cycle.

mod descriptors;
mod directories;
mod extra;
mod file_handle;
mod files;
mod filesystem;
mod handles;
mod identity;
mod inodes;
mod metadata;
mod names;
mod session;

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use fuse_backend_rs::{
    abi::fuse_abi::{ATTR_SUBMOUNT, Attr},
    api::filesystem::{Entry, FsOptions},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, Statx, StatxFlags, open, openat, statx},
    path::DecInt,
};

pub(super) use self::session::Session;
use self::{
    descriptors::Limits,
    handles::Handles,
    inodes::{Device, Found, Inode, Inodes, Known},
};
use super::CACHE_TIMEOUT;

/// What the guest's kernel is asked to do, where it can. Left out on purpose:
///
/// - `WRITEBACK_CACHE`: the guest would be the authority on sizes and times, and changes made on
///   the host to a file it has cached would never show.
/// - `POSIX_LOCKS`, `FLOCK_LOCKS`: locks are between the processes of the guest. A lock request
///   that waits would hold up its queue.
/// - `ZERO_MESSAGE_OPEN`, `ZERO_MESSAGE_OPENDIR`: without a handle an unlinked file could not be
///   told from its successor, and `O_APPEND` and `O_TRUNC` would be lost.
/// - `EXPORT_SUPPORT`: no look-ups of `.` and `..`.
const OPTIONS: FsOptions = FsOptions::from_bits_truncate(
    FsOptions::ASYNC_READ.bits()
        | FsOptions::ATOMIC_O_TRUNC.bits()
        | FsOptions::BIG_WRITES.bits()
        | FsOptions::DONT_MASK.bits()
        | FsOptions::AUTO_INVAL_DATA.bits()
        | FsOptions::DO_READDIRPLUS.bits()
        | FsOptions::READDIRPLUS_AUTO.bits()
        | FsOptions::ASYNC_DIO.bits()
        | FsOptions::PARALLEL_DIROPS.bits()
        | FsOptions::POSIX_ACL.bits()
        | FsOptions::MAX_PAGES.bits()
        | FsOptions::CACHE_SYMLINKS.bits()
        | FsOptions::SUBMOUNTS.bits()
        | FsOptions::HANDLE_KILLPRIV_V2.bits(),
);

/// A directory tree and what the guest knows of it.
#[derive(Debug)]
struct Share {
    inodes: Inodes,
    handles: Handles,
    /// `/proc/self/fd`: the way from an `O_PATH` descriptor to one for reading and writing.
    proc_fds: OwnedFd,
    /// Whether the guest has started a session and not ended it.
    started: AtomicBool,
    /// Whether the guest mounts announced file systems at their own places.
    submounts: AtomicBool,
}

impl Share {
    /// A share of `root`, an `O_PATH` descriptor of a directory.
    fn new(root: OwnedFd, limits: Limits) -> io::Result<Self> {
        let proc_fds = open(
            "/proc/self/fd",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (root, _) = identify(root, None)?;
        if root.format != libc::S_IFDIR {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        Ok(Self {
            inodes: Inodes::new(root, limits.cached)?,
            handles: Handles::new(limits.open),
            proc_fds,
            started: AtomicBool::new(false),
            submounts: AtomicBool::new(false),
        })
    }

    fn start(&self, capable: FsOptions) -> FsOptions {
        self.end();
        let options = OPTIONS & capable;
        self.submounts
            .store(options.contains(FsOptions::SUBMOUNTS), Ordering::Relaxed);
        self.started.store(true, Ordering::Relaxed);
        options
    }

    fn end(&self) {
        self.started.store(false, Ordering::Relaxed);
        self.handles.clear();
        self.inodes.clear();
    }

    fn proc_fds(&self) -> BorrowedFd<'_> {
        self.proc_fds.as_fd()
    }

    /// Opens what `descriptor` is with `flags`. Only for regular files and directories: opening
    /// anything else could block, or reach a driver of the host.
    fn reopen(&self, descriptor: impl AsFd, flags: OFlags) -> io::Result<File> {
        let name = DecInt::from_fd(descriptor);
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = openat(&self.proc_fds, name, flags, Mode::empty())?;
        Ok(File::from(opened))
    }

    /// Looks `name` up in `parent`, never through a symbolic link, and counts the look-up.
    fn find(&self, parent: &Known, name: &CStr) -> io::Result<Entry> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor = openat(parent, name, flags, Mode::empty())?;
        self.adopt(parent, descriptor)
    }

    /// Makes the file behind the `O_PATH` `descriptor`, found in `parent`, known to the guest.
    fn adopt(&self, parent: &Inode, descriptor: OwnedFd) -> io::Result<Entry> {
        let hidden_by = (!self.submounts.load(Ordering::Relaxed)).then_some(parent.shown);
        let (mut found, status) = identify(descriptor, hidden_by)?;
        // A mounted file can be announced by nobody: it stays where its directory is shown.
        if found.format != libc::S_IFDIR {
            found.shown = parent.shown;
        }
        let inode = self.inodes.adopt(found, self.proc_fds())?;
        let flags = if inode.is_submount_of(parent) {
            ATTR_SUBMOUNT
        } else {
            0
        };
        Ok(Entry {
            inode: inode.id,
            generation: 0,
            attr: attributes(&status, &inode).into(),
            attr_flags: flags,
            attr_timeout: CACHE_TIMEOUT,
            entry_timeout: CACHE_TIMEOUT,
        })
    }

    /// Takes back the look-up of an entry the guest will not see.
    fn unfind(&self, entry: &Entry) {
        self.inodes.forget(&[(entry.inode, 1)]);
    }
}

fn status(descriptor: impl AsFd) -> io::Result<Statx> {
    Ok(statx(
        descriptor,
        Path::new(""),
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )?)
}

fn identify(descriptor: OwnedFd, hidden_by: Option<Device>) -> io::Result<(Found, Statx)> {
    let status = status(&descriptor)?;
    let device = u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor);
    let found = Found {
        key: inodes::Key {
            device,
            ino: status.stx_ino,
            mount: status.stx_mnt_id,
        },
        descriptor,
        format: u32::from(status.stx_mode) & libc::S_IFMT,
        shown: hidden_by.unwrap_or(device),
    };
    Ok((found, status))
}

/// What `stat(2)` in the guest shows of `inode`.
fn attributes(status: &Statx, inode: &Inode) -> Attr {
    let (major, minor) = (status.stx_rdev_major, status.stx_rdev_minor);
    Attr {
        ino: inode.shown_ino(status.stx_ino),
        size: status.stx_size,
        blocks: status.stx_blocks,
        // FUSE carries seconds before 1970 in two's complement.
        atime: status.stx_atime.tv_sec.cast_unsigned(),
        mtime: status.stx_mtime.tv_sec.cast_unsigned(),
        ctime: status.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: status.stx_atime.tv_nsec,
        mtimensec: status.stx_mtime.tv_nsec,
        ctimensec: status.stx_ctime.tv_nsec,
        mode: u32::from(status.stx_mode),
        nlink: status.stx_nlink,
        uid: status.stx_uid,
        gid: status.stx_gid,
        // The kernel's 32-bit encoding of a device number (`new_encode_dev`).
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: status.stx_blksize,
        flags: 0,
    }
}

/// Whether `name` may be the name of a directory entry.
fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

#[cfg(test)]
mod tests;
