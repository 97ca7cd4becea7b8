//! One layer being applied: which directory an entry goes to, and what whiteouts remove.
//!
//! Called by the parent module; `object` makes what the entries describe.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::path::{EntryPath, Meaning};
use super::removal::{self, READ_DIRECTORY};
use super::tree::Directory;
use super::{EntryError, UnpackError, Unpacker};
use crate::tarball::{Entry, Kind, Reader};

/// The most levels that are walked to tell what this layer made from what it hides. Each holds a
/// file descriptor, of which a process commonly has 1024.
const MAX_DEPTH: usize = 512;
/// The permission bits of directories that no layer describes.
const IMPLIED_DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// The state of one layer's application.
pub(super) struct Layer<'u, 'o> {
    pub(super) unpacker: &'u mut Unpacker<'o>,
    /// What this layer has made, by directory and name: whiteouts hide lower layers only, wherever
    /// in the archive they stand. Not kept for the first layer, which hides nothing.
    placed: HashSet<(u64, Box<[u8]>)>,
    /// The directories this layer has changed, by inode: how to reach them, and the time they are to have
    /// been changed at in the end.
    directories: HashMap<u64, (Vec<u8>, (i64, u32))>,
    /// The directory of the entry before, which is mostly that of the next.
    recent: Option<(Vec<u8>, Rc<Directory>)>,
}

impl<'u, 'o> Layer<'u, 'o> {
    pub(super) fn new(unpacker: &'u mut Unpacker<'o>) -> Self {
        let (placed, directories) = (HashSet::new(), HashMap::new());
        Self {
            unpacker,
            placed,
            directories,
            recent: None,
        }
    }

    pub(super) fn apply(mut self, archive: impl Read) -> Result<(), UnpackError> {
        let mut reader = Reader::new(archive);
        while let Some(entry) = reader.next_entry()? {
            if self.unpacker.observer.is_cancelled() {
                return Err(UnpackError::Cancelled);
            }
            self.entry(&entry, &mut reader)?;
        }
        self.recent = None;
        self.date_directories()
            .map_err(|source| UnpackError::Directory {
                action: "date directories of",
                source,
            })
    }

    fn entry<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), UnpackError> {
        let path = EntryPath::new(&entry.path).map_err(in_entry(entry))?;
        match path.meaning().map_err(in_entry(entry))? {
            Meaning::Reserved => Ok(()),
            Meaning::Root => self.root(entry).map_err(in_entry(entry)),
            Meaning::Whiteout { parent, name } => {
                self.whiteout(parent, name).map_err(in_entry(entry))
            }
            Meaning::Opaque(path) => self.opaque(path).map_err(in_entry(entry)),
            Meaning::Object { parent, name } => {
                self.count().map_err(in_entry(entry))?;
                let parent = self.parent(parent).map_err(in_entry(entry))?;
                if self.unpacker.layers > 0 {
                    self.placed.insert((parent.inode, name.into()));
                }
                self.object(&parent, name, entry, reader)
            }
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<(), EntryError> {
        if entry.kind != Kind::Directory {
            return Err(EntryError::RootNotDirectory);
        }
        let root = self
            .unpacker
            .tree
            .open(b"", OFlags::RDONLY | OFlags::DIRECTORY);
        self.describe_directory(root.map_err(EntryError::call("open the root"))?, entry)
    }

    /// Counts an object that is about to be made.
    fn count(&mut self) -> Result<(), EntryError> {
        self.unpacker.made += 1;
        let limit = self.unpacker.limits.entries;
        if self.unpacker.made > limit {
            Err(EntryError::TooMany(limit))
        } else {
            Ok(())
        }
    }

    /// Opens the directory at `path`, made with its parents if it is not there.
    fn parent(&mut self, path: &[u8]) -> Result<Rc<Directory>, EntryError> {
        if let Some((recent, directory)) = &self.recent
            && recent == path
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match self.unpacker.tree.directory(path) {
            Err(Errno::NOENT) => self.make_parents(path)?,
            result => result.map_err(EntryError::call("open its directory"))?,
        };
        self.touch(path, &directory);
        let directory = Rc::new(directory);
        self.recent = Some((path.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    fn make_parents(&mut self, path: &[u8]) -> Result<Directory, EntryError> {
        let tree = |layer: &Self, path: &[u8]| layer.unpacker.tree.directory(path);
        let mut parent = tree(self, b"").map_err(EntryError::call("open the root"))?;
        let mut start = 0;
        while start < path.len() {
            let length = path[start..].iter().position(|&byte| byte == b'/');
            let end = length.map_or(path.len(), |length| start + length);
            let (prefix, name) = (&path[..end], &path[start..end]);
            parent = match tree(self, prefix) {
                Err(Errno::NOENT) => {
                    self.count()?;
                    self.make_parent(&parent, name)
                        .and_then(|()| tree(self, prefix))
                        .map_err(EntryError::call("make its directory"))
                        .inspect(|made| self.date(made.inode, prefix, (0, 0)))?
                }
                result => result.map_err(EntryError::call("open its directory"))?,
            };
            start = end + 1;
        }
        Ok(parent)
    }

    fn make_parent(&mut self, parent: &Directory, name: &[u8]) -> rustix::io::Result<()> {
        rustix::fs::mkdirat(&parent.fd, name, Mode::RWXU)?;
        self.placed.insert((parent.inode, name.into()));
        // The mode given to mkdirat() is cut by the process's umask, this is not.
        rustix::fs::chmodat(&parent.fd, name, IMPLIED_DIRECTORY_MODE, AtFlags::empty())
    }

    /// Sees to it that a directory which this layer does not describe keeps the time it has.
    fn touch(&mut self, path: &[u8], directory: &Directory) {
        let keep = || (path.to_vec(), directory.mtime);
        self.directories.entry(directory.inode).or_insert_with(keep);
    }

    /// Sets the time a directory will have in the end.
    pub(super) fn date(&mut self, inode: u64, path: &[u8], mtime: (i64, u32)) {
        self.directories.insert(inode, (path.to_vec(), mtime));
    }

    /// Dates all directories, now that nothing more is put into them.
    fn date_directories(&self) -> rustix::io::Result<()> {
        for (inode, (path, (seconds, nanoseconds))) in &self.directories {
            // One that the layer made and removed again is not there, or no longer the same.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = match self
                .unpacker
                .tree
                .open(path, flags)
                .and_then(Directory::new)
            {
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                result => result?,
            };
            if opened.inode == *inode {
                let time = Timespec {
                    tv_sec: *seconds,
                    tv_nsec: i64::from(*nanoseconds),
                };
                let times = Timestamps {
                    last_access: time,
                    last_modification: time,
                };
                rustix::fs::futimens(&opened.fd, &times)?;
            }
        }
        Ok(())
    }

    /// Removes what stands in the way of an object. What the layer made before is no exception: the
    /// last entry of a name is the one that counts.
    pub(super) fn make_room(&mut self, parent: &Directory, name: &[u8]) -> rustix::io::Result<()> {
        // It may have been a link on the way to the recent directory, or that directory.
        self.recent = None;
        match rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => self.discard(parent.fd.as_fd(), name),
            result => result,
        }
    }

    /// Moves a directory to the trash.
    fn discard(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        self.unpacker.trashed += 1;
        let target = self.unpacker.trashed.to_string();
        rustix::fs::renameat(parent, name, &self.unpacker.trash, target)
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<(), EntryError> {
        let Some(directory) = self.lower_directory(parent)? else {
            return Ok(());
        };
        self.hide(&directory, name, 0)
    }

    fn opaque(&mut self, path: &[u8]) -> Result<(), EntryError> {
        let Some(directory) = self.lower_directory(path)? else {
            return Ok(());
        };
        self.hide_content(&directory, 0)
    }

    /// Opens the directory in which a whiteout hides something; none if nothing can be there.
    fn lower_directory(&mut self, path: &[u8]) -> Result<Option<Directory>, EntryError> {
        self.recent = None;
        if self.unpacker.layers == 0 {
            return Ok(None);
        }
        let directory = match self.unpacker.tree.directory(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            result => result.map_err(EntryError::call("open its directory"))?,
        };
        self.touch(path, &directory);
        Ok(Some(directory))
    }

    /// Removes `name` from `parent`, except what this layer made there.
    fn hide(&mut self, parent: &Directory, name: &[u8], depth: usize) -> Result<(), EntryError> {
        let placed = self.placed.contains(&(parent.inode, name.into()));
        if !placed && self.placed.is_empty() {
            return match self.make_room(parent, name) {
                Err(Errno::NOENT) => Ok(()),
                result => result.map_err(EntryError::call("remove what it hides")),
            };
        }
        let opened = rustix::fs::openat(&parent.fd, name, READ_DIRECTORY, Mode::empty());
        let directory = match opened.and_then(Directory::new) {
            Err(Errno::NOENT) => return Ok(()),
            // Not a directory: hidden whole or not at all.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) if placed => return Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => {
                return rustix::fs::unlinkat(&parent.fd, name, AtFlags::empty())
                    .map_err(EntryError::call("remove what it hides"));
            }
            result => result.map_err(EntryError::call("open what it hides"))?,
        };
        self.hide_content(&directory, depth + 1)?;
        if placed {
            return Ok(());
        }
        match rustix::fs::unlinkat(&parent.fd, name, AtFlags::REMOVEDIR) {
            // This layer made something in it, so it stays.
            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            Err(error) => Err(EntryError::call("remove what it hides")(error)),
        }
    }

    /// Removes what `directory` holds, except what this layer made.
    fn hide_content(&mut self, directory: &Directory, depth: usize) -> Result<(), EntryError> {
        if depth > MAX_DEPTH {
            return Err(EntryError::TooDeep(MAX_DEPTH));
        }
        let readable = rustix::fs::openat(&directory.fd, ".", READ_DIRECTORY, Mode::empty());
        let names = readable
            .and_then(|readable| removal::names(readable.as_fd()))
            .map_err(EntryError::call("read the directory it hides"))?;
        names
            .iter()
            .try_for_each(|name| self.hide(directory, name, depth))
    }
}

/// Returns the conversion of what is wrong with an entry to an error that names it.
pub(super) fn in_entry(entry: &Entry) -> impl FnOnce(EntryError) -> UnpackError {
    let path = String::from_utf8_lossy(&entry.path).into_owned();
    move |source| UnpackError::Entry { path, source }
}
