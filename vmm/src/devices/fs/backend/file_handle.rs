//! Names the kernel gives to files (`name_to_handle_at(2)`), by which a file can be found again
//! without holding a descriptor of it. Used by the table of inodes when descriptors run short; it
//! takes `CAP_DAC_READ_SEARCH`.

use std::{
    collections::HashMap,
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::{
    fs::{Mode, OFlags, openat},
    path::DecInt,
};

use super::inodes::Found;

/// Longest handle (`MAX_HANDLE_SZ` of the kernel).
const NAME_MAX_BYTES: usize = 128;

/// `struct file_handle` with room for every handle.
#[repr(C)]
struct RawHandle {
    handle_bytes: u32,
    handle_type: i32,
    name: [u8; NAME_MAX_BYTES],
}

/// A file by name for the kernel.
#[derive(Debug)]
pub(super) struct FileHandle {
    /// Any open file on the mount the file was found through.
    mount: Arc<OwnedFd>,
    name: Name,
}

/// Two are equal exactly when they name the same file: they have its generation.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    kind: i32,
    bytes: Box<[u8]>,
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Name {
    fn of(descriptor: impl AsFd) -> io::Result<Self> {
        let mut raw = RawHandle {
            handle_bytes: NAME_MAX_BYTES as u32,
            handle_type: 0,
            name: [0; NAME_MAX_BYTES],
        };
        let mut mount_id = 0;
        // SAFETY: the descriptor is open and the path a string; `raw` has `handle_bytes` bytes of
        // room behind its two first fields, as `struct file_handle` wants.
        let result = unsafe {
            libc::name_to_handle_at(
                descriptor.as_fd().as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let bytes = (raw.handle_bytes as usize).min(NAME_MAX_BYTES);
        Ok(Self {
            kind: raw.handle_type,
            bytes: raw.name[..bytes].into(),
        })
    }
}

impl FileHandle {
    /// Whether this is the file `descriptor` is of.
    pub(super) fn is_of(&self, descriptor: impl AsFd) -> bool {
        Name::of(descriptor).is_ok_and(|name| name == self.name)
    }

    /// An `O_PATH` descriptor of the file.
    ///
    /// # Errors
    /// `ESTALE` when the file is gone.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let mut raw = RawHandle {
            handle_bytes: self.name.bytes.len() as u32,
            handle_type: self.name.kind,
            name: [0; NAME_MAX_BYTES],
        };
        raw.name[..self.name.bytes.len()].copy_from_slice(&self.name.bytes);
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let mount = self.mount.as_raw_fd();
        // SAFETY: `raw` is a `struct file_handle` with the bytes it says it has.
        let opened = unsafe { libc::open_by_handle_at(mount, (&raw mut raw).cast(), flags) };
        if opened < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and belongs to nobody.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }
}

/// An open file on each mount that has handles.
#[derive(Debug, Default)]
pub(super) struct Mounts(Mutex<HashMap<u64, Weak<OwnedFd>>>);

impl Mounts {
    /// The handle of `found`. `proc_fds` is `/proc/self/fd`.
    ///
    /// # Errors
    /// `ENFILE` when its file system has no handles, or the VMM may not use them: then
    /// descriptors are all there is, and they ran out.
    pub(super) fn handle(&self, found: &Found, proc_fds: BorrowedFd<'_>) -> io::Result<FileHandle> {
        self.try_handle(found, proc_fds)
            .map_err(|_| io::Error::from_raw_os_error(libc::ENFILE))
    }

    fn try_handle(&self, found: &Found, proc_fds: BorrowedFd<'_>) -> io::Result<FileHandle> {
        let name = Name::of(&found.descriptor)?;
        let mut mounts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = mounts.get(&found.key.mount).and_then(Weak::upgrade);
        let mount = match known {
            Some(mount) => mount,
            None => {
                if !matches!(found.format, libc::S_IFREG | libc::S_IFDIR) {
                    return Err(io::Error::from_raw_os_error(libc::ENFILE));
                }
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                let path = DecInt::from_fd(&found.descriptor);
                let opened = Arc::new(openat(proc_fds, path, flags, Mode::empty())?);
                mounts.retain(|_, mount| mount.strong_count() > 0);
                mounts.insert(found.key.mount, Arc::downgrade(&opened));
                opened
            }
        };
        drop(mounts);
        let handle = FileHandle { mount, name };
        // A handle that cannot be opened is of no use; better to know now.
        handle.open().map(|opened| {
            mem::drop(opened);
            handle
        })
    }
}
