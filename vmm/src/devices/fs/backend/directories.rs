//! Reading directories.

use std::{
    ffi::CStr,
    io,
    mem::MaybeUninit,
    sync::{Arc, MutexGuard, PoisonError},
};

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, OFlags, RawDir, RawDirEntry, SeekFrom, seek};

use super::{Share, errno, handles::Handle, inodes::Known};

/// Bytes of directory entries read from the host at once; about what fits into the page a guest
/// asks for. The longest entry is 280 bytes.
const BUFFER_BYTES: usize = 4096;

impl Share {
    pub(super) fn open_directory(&self, inode: u64) -> io::Result<u64> {
        let inode = self.inodes.get(inode)?;
        if !inode.is_directory() {
            return Err(errno(libc::ENOTDIR));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        self.handles
            .insert(inode.id, self.reopen(&inode, flags)?, false)
    }

    /// Calls `add` with entries from position `offset` on until it returns 0, which means that
    /// there is no room left.
    pub(super) fn read_entries(
        &self,
        handle: (u64, u64),
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.each_entry(handle, offset, &mut |directory, raw| {
            add(entry(directory, raw)).map(|bytes| bytes != 0)
        })
    }

    /// The same, with a look-up of each entry.
    pub(super) fn read_entries_plus(
        &self,
        handle: (u64, u64),
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.each_entry(handle, offset, &mut |directory, raw| {
            let known = self.known_entry(directory, raw.file_name());
            let added = add(entry(directory, raw), known.unwrap_or_default());
            if let (Ok(0) | Err(_), Some(known)) = (&added, known) {
                self.unfind(&known);
            }
            added.map(|bytes| bytes != 0)
        })
    }

    /// The entry to send along with a name. None, which leaves the look-up to the guest, for `.`
    /// and `..`, for what vanished meanwhile, and for places of other file systems.
    fn known_entry(&self, directory: &Known, name: &CStr) -> Option<Entry> {
        if matches!(name.to_bytes(), b"." | b"..") {
            return None;
        }
        let entry = self.find(directory, name).ok()?;
        if entry.attr_flags != 0 {
            self.unfind(&entry);
            return None;
        }
        Some(entry)
    }

    fn each_entry(
        &self,
        (inode, handle): (u64, u64),
        offset: u64,
        visit: &mut dyn FnMut(&Known, &RawDirEntry<'_>) -> io::Result<bool>,
    ) -> io::Result<()> {
        let directory = self.inodes.get(inode)?;
        let handle: Arc<Handle> = self.handles.get(handle, inode)?;
        let _position: MutexGuard<'_, ()> = handle
            .position
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seek(&*handle, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut entries = RawDir::new(&*handle, &mut buffer);
        let mut first = true;
        while let Some(raw) = entries.next() {
            match raw
                .map_err(io::Error::from)
                .and_then(|raw| visit(&directory, &raw))
            {
                Ok(true) => first = false,
                Ok(false) => break,
                Err(error) if first => return Err(error),
                // The guest has look-ups to remember from before: they go first, the error will
                // come again.
                Err(_) => break,
            }
        }
        Ok(())
    }
}

fn entry<'a>(directory: &Known, raw: &'a RawDirEntry<'_>) -> DirEntry<'a> {
    DirEntry {
        ino: directory.shown_ino(raw.ino()),
        offset: raw.next_entry_cookie(),
        type_: u32::from(match raw.file_type() {
            FileType::RegularFile => libc::DT_REG,
            FileType::Directory => libc::DT_DIR,
            FileType::Symlink => libc::DT_LNK,
            FileType::Fifo => libc::DT_FIFO,
            FileType::Socket => libc::DT_SOCK,
            FileType::CharacterDevice => libc::DT_CHR,
            FileType::BlockDevice => libc::DT_BLK,
            FileType::Unknown => libc::DT_UNKNOWN,
        }),
        name: raw.file_name().to_bytes(),
    }
}
