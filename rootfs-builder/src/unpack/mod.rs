//! Applies the layers of an image to a root file system (image-spec, layer.md).
//!
//! [`crate::bundle`] calls it with one decompressed archive after another. A layer is hostile
//! input: no name and no link in it reaches outside the root file system (see `tree`), and what it
//! may take of memory, disk and inodes is bounded by [`Limits`]. Knows nothing of blobs, digests
//! and compression.

mod layer;
mod metadata;
mod object;
mod path;
mod removal;
mod tree;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use crate::tarball::TarError;
use crate::{Limits, Observer};
use layer::Layer;
pub(crate) use removal::empty_directory;
pub(crate) use tree::Tree;

/// The unit in which file content is moved.
const COPY_BYTES: usize = 256 << 10;

/// Why a layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The layer's archive cannot be read.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// An entry of the layer asks for something that cannot or must not be done.
    #[error("entry {path:?}")]
    Entry {
        /// The entry's name, as it stands in the archive.
        path: String,
        /// What is wrong with it.
        #[source]
        source: EntryError,
    },
    /// The directories the layers are applied in cannot be worked with.
    #[error("cannot {action} the root file system")]
    Directory {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The observer asked to stop.
    #[error("interrupted")]
    Cancelled,
}

/// What is wrong with an entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// The name is longer than Linux takes.
    #[error("path is longer than 4095 bytes")]
    PathTooLong,
    /// The name has a `..` in it, which no image tool writes.
    #[error("path has a `..` in it")]
    ParentComponent,
    /// A directory on the way is named like a whiteout.
    #[error("path leads through a whiteout")]
    InsideWhiteout,
    /// The whiteout's name names nothing, `.` or `..`.
    #[error("whiteout does not name a file")]
    WhiteoutOfNothing,
    /// The root is a file, a link or a device.
    #[error("the root of the file system is not a directory")]
    RootNotDirectory,
    /// A user, group or device number is more than Linux has.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// What the number is.
        field: &'static str,
        /// The number.
        value: u64,
    },
    /// The file is longer than all layers together may be.
    #[error("file of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// The file's length, holes included.
        bytes: u64,
        /// [`Limits::unpacked_bytes`].
        limit: u64,
    },
    /// The image has more entries than it may.
    #[error("image has more than {0} entries")]
    TooMany(u64),
    /// A whiteout hides more levels of directories than are walked.
    #[error("whiteout hides directories more than {0} levels deep")]
    TooDeep(usize),
    /// The target of a hard link cannot be linked to.
    #[error("hard link to {target:?}")]
    HardLink {
        /// The target, as it stands in the archive.
        target: String,
        /// What the kernel said, or which rule the target breaks.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An extended attribute cannot be set.
    #[error("extended attribute {name:?} cannot be set")]
    Xattr {
        /// The attribute.
        name: String,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The kernel refused to make the object.
    #[error("cannot {action}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

impl EntryError {
    /// Returns the conversion of a kernel's refusal to do `action`.
    fn call(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Call { action, source }
    }
}

/// A root file system under construction.
pub struct Unpacker<'o> {
    tree: Tree,
    /// Where directories go that a later layer hides, until they are removed.
    trash: OwnedFd,
    trashed: u64,
    limits: Limits,
    observer: &'o dyn Observer,
    /// Objects made so far, by all layers.
    made: u64,
    layers: usize,
    buffer: Vec<u8>,
    warned_of_xattrs: bool,
}

impl std::fmt::Debug for Unpacker<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = formatter.debug_struct("Unpacker");
        debug
            .field("tree", &self.tree)
            .field("made", &self.made)
            .field("layers", &self.layers);
        debug.finish_non_exhaustive()
    }
}

impl<'o> Unpacker<'o> {
    /// Returns an unpacker into the empty directory `root`. `trash` is another empty directory of the
    /// same file system. Nobody else may be able to write to either.
    #[must_use]
    pub fn new(root: OwnedFd, trash: OwnedFd, limits: Limits, observer: &'o dyn Observer) -> Self {
        Self {
            tree: Tree::new(root),
            trash,
            trashed: 0,
            limits,
            observer,
            made: 0,
            layers: 0,
            buffer: vec![0; COPY_BYTES],
            warned_of_xattrs: false,
        }
    }

    /// Applies a layer, an uncompressed tar archive, on top of those before it.
    ///
    /// # Errors
    ///
    /// When the archive is malformed, breaks a limit, asks to leave the root file system, or when the
    /// kernel refuses something. What was made is then left half done, for the caller to remove.
    pub fn apply(&mut self, archive: impl Read) -> Result<(), UnpackError> {
        Layer::new(self).apply(archive)?;
        self.layers += 1;
        removal::empty_directory(self.trash.as_fd()).map_err(|source| UnpackError::Directory {
            action: "empty the trash of",
            source,
        })
    }
}

#[cfg(test)]
mod tests;
