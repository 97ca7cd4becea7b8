//! The files and directories the guest has open. Used by the operations in the sibling files.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::descriptors::{DescriptorShare, Lease};

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    inode: u64,
    file: File,
    _lease: Lease,
    /// Whether the descriptor has `O_APPEND` now.
    pub(super) append: AtomicBool,
    /// Held while the position of a directory is in use.
    pub(super) position: Mutex<()>,
}

impl Handle {
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The table of handles. Its size is bounded by the descriptors the share may use.
#[derive(Debug)]
pub(super) struct Handles {
    by_id: RwLock<HashMap<u64, Arc<Handle>>>,
    next_id: AtomicU64,
    descriptors: Arc<DescriptorShare>,
}

impl Handles {
    pub(super) fn new(descriptors: Arc<DescriptorShare>) -> Self {
        Self {
            by_id: RwLock::default(),
            next_id: AtomicU64::new(1),
            descriptors,
        }
    }

    /// Keeps `file`, which is `inode` opened, and returns its handle.
    ///
    /// # Errors
    /// `ENFILE` when the share has no descriptor left for it.
    pub(super) fn insert(&self, inode: u64, file: File, append: bool) -> io::Result<u64> {
        let handle = Arc::new(Handle {
            inode,
            file,
            _lease: self.descriptors.lease()?,
            append: AtomicBool::new(append),
            position: Mutex::new(()),
        });
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.by_id
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, handle);
        Ok(id)
    }

    /// The handle `id`, which must be of `inode`.
    ///
    /// # Errors
    /// `EBADF` when it is not.
    pub(super) fn get(&self, id: u64, inode: u64) -> io::Result<Arc<Handle>> {
        self.by_id
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .filter(|handle| handle.inode == inode)
            .cloned()
            .ok_or_else(bad_handle)
    }

    /// Closes the handle `id`, which must be of `inode`.
    ///
    /// # Errors
    /// `EBADF` when it is not.
    pub(super) fn remove(&self, id: u64, inode: u64) -> io::Result<()> {
        self.get(id, inode)?;
        // The lock is released at the end of the statement, the file closed after it.
        let removed = self
            .by_id
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id);
        removed.map(drop).ok_or_else(bad_handle)
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        let closed =
            std::mem::take(&mut *self.by_id.write().unwrap_or_else(PoisonError::into_inner));
        drop(closed);
    }

    /// Number of open handles.
    pub(super) fn len(&self) -> usize {
        self.by_id
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
