//! Makes what an entry describes: a file, a directory, a link, a device, a pipe.
//!
//! Called by `layer`, with the directory opened and the name a single path component. Every
//! object is made anew: nothing that was there is opened, written to or followed.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::layer::{Layer, in_entry};
use super::metadata::Metadata;
use super::path::EntryPath;
use super::removal::READ_DIRECTORY;
use super::tree::Directory;
use super::{EntryError, UnpackError};
use crate::tarball::{Entry, Kind, Reader};

/// Device numbers Linux can represent (`MINORBITS` is 20).
const MAX_MAJOR: u64 = (1 << 12) - 1;
const MAX_MINOR: u64 = (1 << 20) - 1;
/// Objects are made for their owner only, and get the mode they should have when they are done.
const UNFINISHED: Mode = Mode::RUSR.union(Mode::WUSR);

impl Layer<'_, '_> {
    /// Makes the object `entry` describes at `name` in `parent`.
    pub(super) fn object<R: Read>(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        match &entry.kind {
            Kind::File => return self.file(parent, name, entry, reader),
            Kind::Directory => self.directory(parent, name, entry),
            Kind::HardLink(target) => self.hard_link(parent, name, target),
            Kind::Symlink(target) => self.symlink(parent, name, target, entry),
            Kind::Fifo => self.node(parent, name, FileType::Fifo, (0, 0), entry),
            Kind::Character(major, minor) => self.node(
                parent,
                name,
                FileType::CharacterDevice,
                (*major, *minor),
                entry,
            ),
            Kind::Block(major, minor) => {
                self.node(parent, name, FileType::BlockDevice, (*major, *minor), entry)
            }
        }
        .map_err(in_entry(entry))
    }

    fn file<R: Read>(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        let limit = self.unpacker.limits.unpacked_bytes;
        if entry.size > limit {
            return Err(in_entry(entry)(EntryError::TooLarge {
                bytes: entry.size,
                limit,
            }));
        }
        let metadata = Metadata::new(entry).map_err(in_entry(entry))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = self
            .replace(parent, name, || {
                rustix::fs::openat(&parent.fd, name, flags, UNFINISHED)
            })
            .map_err(EntryError::call("make the file"))
            .map_err(in_entry(entry))?;
        self.content(&file, entry, reader)?;
        let unpacker = &mut self.unpacker;
        metadata
            .set_on_open(
                file.as_fd(),
                unpacker.observer,
                &mut unpacker.warned_of_xattrs,
            )
            .map_err(in_entry(entry))
    }

    /// Writes a file's stored parts to where they belong; what lies between them stays a hole.
    fn content<R: Read>(
        &mut self,
        file: &OwnedFd,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), UnpackError> {
        let cannot_write = |error| in_entry(entry)(EntryError::call("write the file")(error));
        let buffer = &mut self.unpacker.buffer;
        let mut end = 0;
        // An empty part is how GNU tar marks a hole at the end: nothing is written there.
        for extent in entry.extents.iter().filter(|extent| extent.length > 0) {
            let (mut offset, mut left) = (extent.offset, extent.length);
            while left > 0 {
                let limit = left.min(buffer.len() as u64) as usize;
                let count = reader.read_content(&mut buffer[..limit])?;
                write_all_at(file, &buffer[..count], offset).map_err(cannot_write)?;
                offset += count as u64;
                left -= count as u64;
                if self.unpacker.observer.is_cancelled() {
                    return Err(UnpackError::Cancelled);
                }
            }
            end = offset;
        }
        if end < entry.size {
            rustix::fs::ftruncate(file, entry.size).map_err(cannot_write)?;
        }
        Ok(())
    }

    fn directory(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), EntryError> {
        let make = || rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU);
        let open = || rustix::fs::openat(&parent.fd, name, READ_DIRECTORY, Mode::empty());
        let made = match make() {
            Err(Errno::EXIST) => match open() {
                // A directory that is there keeps what is in it.
                Ok(directory) => return self.describe_directory(directory, entry),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.make_room(parent, name).and_then(|()| make())
                }
                Err(error) => Err(error),
            },
            result => result,
        };
        let directory = made.and_then(|()| open());
        self.describe_directory(
            directory.map_err(EntryError::call("make the directory"))?,
            entry,
        )
    }

    /// Gives an open directory what the entry says of it.
    pub(super) fn describe_directory(
        &mut self,
        directory: OwnedFd,
        entry: &Entry,
    ) -> Result<(), EntryError> {
        let unpacker = &mut self.unpacker;
        let metadata = Metadata::new(entry)?;
        metadata.drop_other_xattrs(directory.as_fd())?;
        metadata.set_on_open(
            directory.as_fd(),
            unpacker.observer,
            &mut unpacker.warned_of_xattrs,
        )?;
        let directory = Directory::new(directory).map_err(EntryError::call("read its status"))?;
        let mtime = (entry.mtime.seconds, entry.mtime.nanoseconds);
        let path = EntryPath::new(&entry.path)?;
        self.date(directory.inode, path.as_bytes(), mtime);
        Ok(())
    }

    fn hard_link(
        &mut self,
        parent: &Directory,
        name: &[u8],
        target: &[u8],
    ) -> Result<(), EntryError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| EntryError::HardLink {
            target: String::from_utf8_lossy(target).into_owned(),
            source,
        };
        let path = EntryPath::new(target).map_err(|error| failed(error.into()))?;
        let (target_parent, target_name) = path
            .split()
            .ok_or_else(|| failed(EntryError::RootNotDirectory.into()))?;
        let target_parent = self.unpacker.tree.directory(target_parent);
        let target_parent = target_parent.map_err(|error| failed(error.into()))?;
        // The target itself is not followed: a link to a symbolic link is what GNU tar makes of it.
        let link = || {
            let flags = AtFlags::empty();
            rustix::fs::linkat(&target_parent.fd, target_name, &parent.fd, name, flags)
        };
        let same = || -> rustix::io::Result<bool> {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            let target = rustix::fs::statat(&target_parent.fd, target_name, flags)?;
            let existing = rustix::fs::statat(&parent.fd, name, flags)?;
            Ok(target.st_ino == existing.st_ino)
        };
        match link() {
            Err(Errno::EXIST) => match same() {
                Ok(true) => Ok(()),
                Ok(false) => self.make_room(parent, name).and_then(|()| link()),
                Err(error) => Err(error),
            },
            result => result,
        }
        .map_err(|error| failed(error.into()))
    }

    fn symlink(
        &mut self,
        parent: &Directory,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), EntryError> {
        self.replace(parent, name, || {
            rustix::fs::symlinkat(target, &parent.fd, name)
        })
        .map_err(EntryError::call("make the symbolic link"))?;
        self.describe(parent, name, entry)
    }

    fn node(
        &mut self,
        parent: &Directory,
        name: &[u8],
        kind: FileType,
        (major, minor): (u64, u64),
        entry: &Entry,
    ) -> Result<(), EntryError> {
        for (field, value, limit) in [
            ("device major", major, MAX_MAJOR),
            ("device minor", minor, MAX_MINOR),
        ] {
            if value > limit {
                return Err(EntryError::OutOfRange { field, value });
            }
        }
        let device = rustix::fs::makedev(major as u32, minor as u32);
        self.replace(parent, name, || {
            rustix::fs::mknodat(&parent.fd, name, kind, UNFINISHED, device)
        })
        .map_err(EntryError::call("make the node"))?;
        self.describe(parent, name, entry)
    }

    /// Gives an object that must not be opened what the entry says of it.
    fn describe(
        &mut self,
        parent: &Directory,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), EntryError> {
        let unpacker = &mut self.unpacker;
        let warned = &mut unpacker.warned_of_xattrs;
        Metadata::new(entry)?.set_on_name(parent.fd.as_fd(), name, unpacker.observer, warned)
    }

    /// Makes an object, in the place of what may be there.
    fn replace<T>(
        &mut self,
        parent: &Directory,
        name: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match make() {
            Err(Errno::EXIST) => self.make_room(parent, name).and_then(|()| make()),
            result => result,
        }
    }
}

fn write_all_at(file: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, offset) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
