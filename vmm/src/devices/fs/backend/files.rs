//! Regular files: opening, creating, reading, writing and what else needs an open file.

use std::{
    ffi::CStr,
    fs::File,
    io,
    mem::ManuallyDrop,
    os::fd::{AsRawFd, FromRawFd},
    sync::atomic::Ordering,
};

use fuse_backend_rs::{
    abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID, WRITE_KILL_PRIV},
    api::filesystem::{Context, Entry, OpenOptions, ZeroCopyReader, ZeroCopyWriter},
};
use rustix::{
    fs::{
        FallocateFlags, Mode, OFlags, SeekFrom, fallocate, fcntl_getfl, fcntl_setfl, fdatasync,
        fsync, openat, seek,
    },
    io::Errno,
    time::{ClockId, clock_gettime},
};

use super::{
    Share, check_name, errno,
    handles::Handle,
    identity::{Creator, WithoutFsetid},
    inodes::Known,
    status,
};

/// Flags of an open file that mean the same on the host. `O_DIRECT` is not one of them: the guest
/// bypasses its own cache by itself, and the alignment that the host's file system wants is not
/// something a guest can know of the memory its requests end up in. `O_NONBLOCK` means nothing
/// for regular files.
const OPEN_FLAGS: OFlags = OFlags::RWMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::NOATIME)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);
/// A file that changed in the last so many seconds may change again without a new time stamp: the
/// guest may not keep what it has cached of it.
const RACY_SECONDS: i64 = 2;
/// Set-user-id and set-group-id.
const SET_ID_BITS: u16 = 0o6000;
/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Share {
    pub(super) fn open_file(
        &self,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(u64, OpenOptions)> {
        let inode = self.inodes.get(inode)?;
        if !inode.is_regular() {
            return Err(errno(libc::ENXIO));
        }
        let _ordinary = if fuse_flags & FOPEN_IN_KILL_SUIDGID != 0 {
            Some(WithoutFsetid::new(&self.proc_fds)?)
        } else {
            None
        };
        let flags = open_flags(flags);
        let file = self.reopen(&inode, flags)?;
        let options = if keeps_cache(&file)? {
            OpenOptions::KEEP_CACHE
        } else {
            OpenOptions::empty()
        };
        let append = flags.contains(OFlags::APPEND);
        Ok((self.handles.insert(inode.id, file, append)?, options))
    }

    pub(super) fn create_file(
        &self,
        caller: &Context,
        parent: u64,
        name: &CStr,
        args: &CreateIn,
    ) -> io::Result<(Entry, u64)> {
        check_name(name)?;
        let parent = self.inodes.get(parent)?;
        let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        match self.create_in(caller, &parent, name, exclusive, args) {
            Err(error)
                if error.raw_os_error() == Some(libc::EEXIST)
                    && OFlags::from_bits_retain(args.flags).contains(OFlags::EXCL) =>
            {
                Err(error)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                // Somebody on the host was faster: then this is an open.
                let entry = self.find(&parent, name)?;
                self.open_file(entry.inode, args.flags, args.fuse_flags)
                    .map(|(handle, _)| (entry, handle))
                    .inspect_err(|_| self.unfind(&entry))
            }
            created => created,
        }
    }

    /// Creates `name` in `parent`, which must not exist, or with [`OFlags::TMPFILE`] a file
    /// without a name in the directory called `name`.
    pub(super) fn create_in(
        &self,
        caller: &Context,
        parent: &Known,
        name: &CStr,
        how: OFlags,
        args: &CreateIn,
    ) -> io::Result<(Entry, u64)> {
        let flags = open_flags(args.flags) - OFlags::TRUNC;
        let file = {
            let _creator = Creator::new(self.proc_fds(), caller.uid, caller.gid, args.umask)?;
            let flags = flags | how | OFlags::CLOEXEC | OFlags::NOCTTY;
            File::from(openat(parent, name, flags, Mode::from_raw_mode(args.mode))?)
        };
        let descriptor = self.reopen(&file, OFlags::PATH)?;
        let entry = self.adopt(parent, descriptor.into())?;
        let append = flags.contains(OFlags::APPEND);
        self.handles
            .insert(entry.inode, file, append)
            .map(|handle| (entry, handle))
            .inspect_err(|_| self.unfind(&entry))
    }

    pub(super) fn read_file(
        &self,
        (inode, handle): (u64, u64),
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, inode)?;
        to.write_from(&mut *borrowed(&handle), size as usize, offset)
    }

    pub(super) fn write_file(
        &self,
        (inode, handle): (u64, u64),
        from: &mut dyn ZeroCopyReader,
        (size, offset): (u32, u64),
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let handle = self.handles.get(handle, inode)?;
        // fcntl(2) can change O_APPEND while a file is open; the guest says so with each write.
        let append = OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        if handle.append.load(Ordering::Relaxed) != append {
            let mut flags = fcntl_getfl(&*handle)?;
            flags.set(OFlags::APPEND, append);
            fcntl_setfl(&*handle, flags)?;
            handle.append.store(append, Ordering::Relaxed);
        }
        let _ordinary = self.without_fsetid_if(fuse_flags & WRITE_KILL_PRIV != 0, &handle)?;
        from.read_to(&mut *borrowed(&handle), size as usize, offset)
    }

    /// Drops `CAP_FSETID` if `ordinary`, the caller lacks it, and the file has a set-id bit.
    pub(super) fn without_fsetid_if(
        &self,
        ordinary: bool,
        handle: &Handle,
    ) -> io::Result<Option<WithoutFsetid>> {
        if !ordinary || status(handle)?.stx_mode & SET_ID_BITS == 0 {
            return Ok(None);
        }
        WithoutFsetid::new(&self.proc_fds).map(Some)
    }

    pub(super) fn sync_file(&self, (inode, handle): (u64, u64), data_only: bool) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        Ok(if data_only {
            fdatasync(&*handle)
        } else {
            fsync(&*handle)
        }?)
    }

    pub(super) fn allocate(
        &self,
        caller: &Context,
        (inode, handle): (u64, u64),
        mode: u32,
        (offset, length): (u64, u64),
    ) -> io::Result<()> {
        let handle = self.handles.get(handle, inode)?;
        // The message does not say whether the caller has CAP_FSETID; user 0 commonly has it.
        let _ordinary = self.without_fsetid_if(caller.uid != 0, &handle)?;
        let mode = FallocateFlags::from_bits_retain(mode);
        Ok(fallocate(&*handle, mode, offset, length)?)
    }

    pub(super) fn seek_file(
        &self,
        (inode, handle): (u64, u64),
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        let handle = self.handles.get(handle, inode)?;
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(errno(libc::EINVAL)),
        };
        if offset > i64::MAX.cast_unsigned() {
            return Err(Errno::NXIO.into());
        }
        Ok(seek(&*handle, to)?)
    }
}

fn open_flags(flags: u32) -> OFlags {
    OFlags::from_bits_retain(flags) & OPEN_FLAGS
}

/// Whether what the guest has cached of `file` can be told from its present content: the guest
/// drops what it has when size or modification time change, and time stamps are coarse.
fn keeps_cache(file: &File) -> io::Result<bool> {
    let status = status(file)?;
    let changed = status.stx_mtime.tv_sec.max(status.stx_ctime.tv_sec);
    Ok(clock_gettime(ClockId::RealtimeCoarse).tv_sec - changed > RACY_SECONDS)
}

/// The file of a handle as `fuse-backend-rs` wants it, exclusively borrowed.
fn borrowed(handle: &Handle) -> ManuallyDrop<File> {
    // SAFETY: the caller keeps `handle` for longer than the result, which is never dropped, so
    // the descriptor is open all the time and closed by its owner only.
    ManuallyDrop::new(unsafe { File::from_raw_fd(handle.file().as_raw_fd()) })
}
