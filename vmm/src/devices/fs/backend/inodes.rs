//! The files the guest knows: a table from node ids (what FUSE calls them) to `O_PATH`
//! descriptors, or file handles when there are too many. Used by the operations in the sibling files; it must not know FUSE messages.

use std::{
    collections::HashMap,
    io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;

use super::{
    descriptors::{DescriptorShare, Lease},
    file_handle::{FileHandle, Mounts},
};

/// Most files a guest's cache may hold: about 300 bytes each.
const INODES_MAX: usize = 1 << 20;

/// A device of the host, as `major << 32 | minor`.
pub(super) type Device = u64;

/// Identity of a file on the host. The mount belongs to it: a file that can be reached through a
/// read-only and a writable mount is two files to the guest, or one would lend its descriptor to
/// the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Device of the file system.
    pub(super) device: Device,
    /// Inode number on it.
    pub(super) ino: u64,
    /// Mount id.
    pub(super) mount: u64,
}

/// How a file is found again.
#[derive(Debug)]
enum Anchor {
    /// By a descriptor, which also keeps the inode number from being used again.
    Descriptor(
        Arc<OwnedFd>,
        #[expect(dead_code, reason = "held, not read")] Lease,
    ),
    /// By name for the kernel, when descriptors run short.
    Handle(FileHandle),
}

/// A file the guest knows.
#[derive(Debug)]
pub(super) struct Inode {
    /// Node id: never used twice in a session, so a late request cannot meet another file.
    pub(super) id: u64,
    key: Key,
    anchor: Anchor,
    /// Type bits of the mode (`S_IFMT`).
    pub(super) format: u32,
    /// Device of the file system at whose place the guest sees this file: its own, or that of an
    /// outer one when its mount could not be announced.
    pub(super) shown: Device,
    /// What the guest must forget before the file is closed.
    lookups: AtomicU64,
}

impl Inode {
    pub(super) fn is_regular(&self) -> bool {
        self.format == libc::S_IFREG
    }

    pub(super) fn is_directory(&self) -> bool {
        self.format == libc::S_IFDIR
    }

    /// The inode number the guest sees for inode `ino` of this file's file system. Unique among
    /// everything that is shown at the same place: the numbers of a file system that hides
    /// behind another one are scattered over the upper half, where no host file system has any.
    pub(super) fn shown_ino(&self, ino: u64) -> u64 {
        if self.key.device == self.shown {
            return ino;
        }
        let mixed = (ino ^ self.key.device.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 32)) | 1 << 63
    }

    /// Whether this directory is where the guest should mount another file system.
    pub(super) fn is_submount_of(&self, parent: &Self) -> bool {
        self.is_directory() && self.shown != parent.shown
    }
}

/// An inode and an `O_PATH` descriptor of it.
#[derive(Debug)]
pub(super) struct Known {
    inode: Arc<Inode>,
    descriptor: Arc<OwnedFd>,
}

impl Deref for Known {
    type Target = Inode;

    fn deref(&self) -> &Inode {
        &self.inode
    }
}

impl AsFd for Known {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A file that was just opened and may be known already.
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) descriptor: OwnedFd,
    pub(super) format: u32,
    pub(super) shown: Device,
}

#[derive(Debug, Default)]
struct Table {
    by_id: HashMap<u64, Arc<Inode>>,
    by_key: HashMap<Key, u64>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Inodes {
    table: RwLock<Table>,
    next_id: AtomicU64,
    descriptors: Arc<DescriptorShare>,
    mounts: Mounts,
}

impl Inodes {
    /// A table that knows `root` only, which is never forgotten.
    pub(super) fn new(root: Found, descriptors: Arc<DescriptorShare>) -> io::Result<Self> {
        let mut table = Table::default();
        let lease = descriptors.lease()?;
        let inode = Inode {
            id: ROOT_ID,
            key: root.key,
            anchor: Anchor::Descriptor(Arc::new(root.descriptor), lease),
            format: root.format,
            shown: root.shown,
            lookups: AtomicU64::new(1),
        };
        table.by_key.insert(root.key, ROOT_ID);
        table.by_id.insert(ROOT_ID, Arc::new(inode));
        Ok(Self {
            table: RwLock::new(table),
            next_id: AtomicU64::new(ROOT_ID + 1),
            descriptors,
            mounts: Mounts::default(),
        })
    }

    // No code panics while it holds the lock, so it is never poisoned; if it were, the table
    // would still be whole.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The file with node id `id`.
    ///
    /// # Errors
    /// `ENOENT` when there is none, `ESTALE` when it is gone from the host.
    pub(super) fn get(&self, id: u64) -> io::Result<Known> {
        let inode = self
            .read()
            .by_id
            .get(&id)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        let descriptor = match &inode.anchor {
            Anchor::Descriptor(descriptor, _) => Arc::clone(descriptor),
            Anchor::Handle(handle) => Arc::new(handle.open()?),
        };
        Ok(Known { inode, descriptor })
    }

    /// The inode of `found`, with one lookup more. `proc_fds` is `/proc/self/fd`.
    ///
    /// # Errors
    /// `ENFILE` when there are too many.
    pub(super) fn adopt(&self, found: Found, proc_fds: BorrowedFd<'_>) -> io::Result<Arc<Inode>> {
        // `forget` takes the write lock, so what is found here cannot be on its way out.
        if let Some(inode) = known(&self.read(), &found) {
            return Ok(inode);
        }
        let anchor = match self.descriptors.lease() {
            Ok(lease) => Anchor::Descriptor(Arc::new(found.descriptor), lease),
            Err(_) => Anchor::Handle(self.mounts.handle(&found, proc_fds)?),
        };
        let mut table = self.write();
        // Another thread may have been faster.
        if let Some(inode) = same(&table, &found.key, &anchor) {
            return Ok(inode);
        }
        if table.by_id.len() >= INODES_MAX {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let inode = Arc::new(Inode {
            id: self.next_id.fetch_add(1, Ordering::Relaxed),
            key: found.key,
            anchor,
            format: found.format,
            shown: found.shown,
            lookups: AtomicU64::new(1),
        });
        table.by_key.insert(found.key, inode.id);
        table.by_id.insert(inode.id, Arc::clone(&inode));
        Ok(inode)
    }

    /// Takes `count` lookups from each inode and drops those with none left.
    pub(super) fn forget(&self, requests: &[(u64, u64)]) {
        // Closed after the lock is released.
        let mut dropped = Vec::new();
        let mut table = self.write();
        for (id, count) in requests {
            if *id == ROOT_ID {
                continue;
            }
            let Some(inode) = table.by_id.get(id) else {
                continue;
            };
            let left = inode.lookups.load(Ordering::Relaxed).saturating_sub(*count);
            inode.lookups.store(left, Ordering::Relaxed);
            if left == 0 {
                let key = inode.key;
                dropped.extend(table.by_id.remove(id));
                // Unless the number belongs to a newer file meanwhile.
                if table.by_key.get(&key) == Some(id) {
                    table.by_key.remove(&key);
                }
            }
        }
        drop(table);
    }

    /// Forgets everything but the root.
    pub(super) fn clear(&self) {
        let mut table = self.write();
        let root = table.by_id.remove(&ROOT_ID);
        let dropped = std::mem::take(&mut *table);
        if let Some(root) = root {
            table.by_key.insert(root.key, ROOT_ID);
            table.by_id.insert(ROOT_ID, root);
        }
        drop(table);
        drop(dropped);
    }

    /// Number of files known.
    pub(super) fn len(&self) -> usize {
        self.read().by_id.len()
    }
}

/// The inode of `found` in `table`, with one lookup more.
fn known(table: &Table, found: &Found) -> Option<Arc<Inode>> {
    let inode = table.by_id.get(table.by_key.get(&found.key)?)?;
    if let Anchor::Handle(handle) = &inode.anchor
        && !handle.is_of(&found.descriptor)
    {
        // Nothing kept the number from being used again, and it was.
        return None;
    }
    inode.lookups.fetch_add(1, Ordering::Relaxed);
    Some(Arc::clone(inode))
}

/// The inode in `table` that is the file of `key` and `anchor`, with one lookup more.
fn same(table: &Table, key: &Key, anchor: &Anchor) -> Option<Arc<Inode>> {
    let inode = table.by_id.get(table.by_key.get(key)?)?;
    let is_same = match (&inode.anchor, anchor) {
        (Anchor::Descriptor(..), _) => true,
        (Anchor::Handle(old), Anchor::Descriptor(new, _)) => old.is_of(new),
        (Anchor::Handle(old), Anchor::Handle(new)) => old == new,
    };
    is_same.then(|| {
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Arc::clone(inode)
    })
}
