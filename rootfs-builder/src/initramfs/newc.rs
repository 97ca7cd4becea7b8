//! A deterministic writer of "newc" cpio archives, the format Linux unpacks as its initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Called by the parent module and by tests that boot their own programs. Knows nothing of what
//! the archive is for.
//!
//! The bytes depend only on the entries: they are sorted by path, numbered from 1, owned by root,
//! and dated at the epoch. The content of a file starts on a page boundary of the archive (which
//! is itself loaded at one), so that the kernel copies whole pages from whole pages. The padding
//! that takes is zeros after the file's name: the format counts them as part of the name, and the
//! kernel, like `cpio`, reads a name up to its first zero.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Length of an entry's header: a magic and 13 fields of 8 hexadecimal digits.
const HEADER_BYTES: usize = 110;
/// The alignment of headers and of content that the format asks for.
const FIELD_ALIGN: usize = 4;
/// Where the content of a file is put: the page size of every guest we have.
const CONTENT_ALIGN: usize = 4096;
/// The longest name, terminator and padding included, that the kernel accepts (`PATH_MAX`).
const MAX_NAME_BYTES: usize = 4096;
/// Sizes and positions are 32-bit in the format.
const MAX_FILE_BYTES: u64 = u32::MAX as u64;
/// Device numbers Linux can represent (`MINORBITS` is 20).
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;
/// The entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

const TYPE_FIFO: u32 = 0o010_000;
const TYPE_CHARACTER: u32 = 0o020_000;
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_BLOCK: u32 = 0o060_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_SYMLINK: u32 = 0o120_000;
const PERMISSIONS: u32 = 0o7777;

/// Why an entry cannot be in an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The path is not of the form `a/b/c`.
    #[error("path {0:?} is not relative and plain (no empty, `.` or `..` part, no zero byte)")]
    Path(String),
    /// The path, or the target of a symlink, is longer than the kernel takes.
    #[error("path {0:?} is longer than {MAX_NAME_BYTES} bytes")]
    TooLong(String),
    /// The path was added before.
    #[error("path {0:?} is in the archive twice")]
    Duplicate(String),
    /// The directory that holds the path was not added before it.
    #[error("path {0:?} has no parent directory in the archive")]
    NoParent(String),
    /// The file does not fit the format's 32-bit size.
    #[error("file {0:?} is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge(String),
    /// The permission bits go beyond 0o7777.
    #[error("mode {mode:#o} of {path:?} has more than permission bits")]
    Mode {
        /// The entry.
        path: String,
        /// The mode that was asked for.
        mode: u32,
    },
    /// Linux has no such device number.
    #[error("device number {major}:{minor} of {path:?} is out of range")]
    DeviceNumber {
        /// The entry.
        path: String,
        /// The major number that was asked for.
        major: u32,
        /// The minor number that was asked for.
        minor: u32,
    },
    /// The archive could not be written out.
    #[error("archive cannot be written")]
    Write(#[source] io::Error),
}

/// The two kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device, such as a terminal.
    Character,
    /// A block device, such as a disk.
    Block,
}

/// One entry, without its path.
#[derive(Debug)]
struct Node<'a> {
    /// Type and permission bits, as in `st_mode`.
    mode: u32,
    /// Device number; zeros where there is none.
    device: (u32, u32),
    /// A file's bytes or a symlink's target; empty for everything else.
    content: Cow<'a, [u8]>,
}

/// An archive in the making. Paths are relative (`dev/console`), parents come before children.
#[derive(Debug, Default)]
pub struct Archive<'a> {
    nodes: BTreeMap<String, Node<'a>>,
}

impl<'a> Archive<'a> {
    /// Returns an archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory with the permission bits `mode`.
    ///
    /// # Errors
    ///
    /// When the path or the mode is not valid, is a duplicate, or has no parent.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), ArchiveError> {
        self.add(path, TYPE_DIRECTORY, mode, (0, 0), Cow::Borrowed(&[]))
    }

    /// Adds a regular file with the permission bits `mode`.
    ///
    /// # Errors
    ///
    /// As for [`Archive::directory`], and when the content is 4 GiB or more.
    pub fn file(
        &mut self,
        path: &str,
        mode: u32,
        content: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), ArchiveError> {
        let content = content.into();
        if content.len() as u64 > MAX_FILE_BYTES {
            return Err(ArchiveError::TooLarge(path.to_owned()));
        }
        self.add(path, TYPE_FILE, mode, (0, 0), content)
    }

    /// Adds a symbolic link at `path` that says `target`.
    ///
    /// # Errors
    ///
    /// As for [`Archive::directory`], and when the target is empty, has a zero byte or is too long.
    pub fn symlink(&mut self, path: &str, target: &'a str) -> Result<(), ArchiveError> {
        if target.is_empty() || target.contains('\0') {
            return Err(ArchiveError::Path(target.to_owned()));
        }
        if target.len() >= MAX_NAME_BYTES {
            return Err(ArchiveError::TooLong(target.to_owned()));
        }
        self.add(
            path,
            TYPE_SYMLINK,
            0o777,
            (0, 0),
            Cow::Borrowed(target.as_bytes()),
        )
    }

    /// Adds a device node.
    ///
    /// # Errors
    ///
    /// As for [`Archive::directory`], and when the number is none that Linux has.
    pub fn device(
        &mut self,
        path: &str,
        kind: DeviceKind,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), ArchiveError> {
        if major > MAX_MAJOR || minor > MAX_MINOR {
            return Err(ArchiveError::DeviceNumber {
                path: path.to_owned(),
                major,
                minor,
            });
        }
        let file_type = match kind {
            DeviceKind::Character => TYPE_CHARACTER,
            DeviceKind::Block => TYPE_BLOCK,
        };
        self.add(path, file_type, mode, (major, minor), Cow::Borrowed(&[]))
    }

    /// Adds a named pipe.
    ///
    /// # Errors
    ///
    /// As for [`Archive::directory`].
    pub fn fifo(&mut self, path: &str, mode: u32) -> Result<(), ArchiveError> {
        self.add(path, TYPE_FIFO, mode, (0, 0), Cow::Borrowed(&[]))
    }

    /// Returns the archive's bytes.
    ///
    /// # Errors
    ///
    /// None at present: every entry was checked when it was added.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ArchiveError> {
        let content: usize = self.nodes.values().map(|node| node.content.len()).sum();
        let mut bytes = Vec::with_capacity(content + (self.nodes.len() + 1) * 2 * CONTENT_ALIGN);
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the archive to `output`.
    ///
    /// # Errors
    ///
    /// When `output` cannot be written to.
    pub fn write_to(&self, output: &mut impl Write) -> Result<(), ArchiveError> {
        let mut writer = Writer {
            output,
            offset: 0,
            inode: 0,
        };
        for (path, node) in &self.nodes {
            writer.entry(path, node).map_err(ArchiveError::Write)?;
        }
        let trailer = Node {
            mode: 0,
            device: (0, 0),
            content: Cow::Borrowed(&[]),
        };
        writer.entry(TRAILER, &trailer).map_err(ArchiveError::Write)
    }

    fn add(
        &mut self,
        path: &str,
        file_type: u32,
        permissions: u32,
        device: (u32, u32),
        content: Cow<'a, [u8]>,
    ) -> Result<(), ArchiveError> {
        let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !plain || path.contains('\0') || path == TRAILER {
            return Err(ArchiveError::Path(path.to_owned()));
        }
        if path.len() >= MAX_NAME_BYTES {
            return Err(ArchiveError::TooLong(path.to_owned()));
        }
        if permissions & !PERMISSIONS != 0 {
            return Err(ArchiveError::Mode {
                path: path.to_owned(),
                mode: permissions,
            });
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            let found = self.nodes.get(parent);
            if found.is_none_or(|node| node.mode & !PERMISSIONS != TYPE_DIRECTORY) {
                return Err(ArchiveError::NoParent(path.to_owned()));
            }
        }
        if self.nodes.contains_key(path) {
            return Err(ArchiveError::Duplicate(path.to_owned()));
        }
        let node = Node {
            mode: file_type | permissions,
            device,
            content,
        };
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }
}

/// Writes entries one after another and knows how far it has come.
struct Writer<'w, W> {
    output: &'w mut W,
    offset: usize,
    inode: u32,
}

impl<W: Write> Writer<'_, W> {
    fn entry(&mut self, path: &str, node: &Node<'_>) -> io::Result<()> {
        // The trailer is the only entry without a mode, and has no inode of its own.
        let (inode, links) = match node.mode & !PERMISSIONS {
            0 => (0, 1),
            TYPE_DIRECTORY => (self.inode + 1, 2),
            _ => (self.inode + 1, 1),
        };
        self.inode = inode;
        let name_bytes = self.name_bytes(path, node);
        // `add` keeps content below 4 GiB and names below a page, so neither cast cuts.
        let fields = [
            inode,
            node.mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            node.content.len() as u32,
            0, // major number of the file system it came from
            0, // minor number of it
            node.device.0,
            node.device.1,
            name_bytes as u32,
            0, // checksum, unused in this variant of the format
        ];
        let mut head = String::with_capacity(HEADER_BYTES + path.len());
        head.push_str("070701");
        for field in fields {
            head.push_str(&format!("{field:08X}"));
        }
        head.push_str(path);
        self.write(head.as_bytes())?;
        self.zeros(name_bytes - path.len())?;
        self.align()?;
        self.write(&node.content)?;
        self.align()
    }

    /// The length of the name field: the name, its terminator, and what moves the content of a
    /// file to a page boundary.
    fn name_bytes(&self, path: &str, node: &Node<'_>) -> usize {
        let shortest = path.len() + 1;
        let is_file = node.mode & !PERMISSIONS == TYPE_FILE;
        if !is_file || node.content.len() < CONTENT_ALIGN {
            return shortest;
        }
        let start = self.offset + HEADER_BYTES;
        let aligned = (start + shortest).next_multiple_of(CONTENT_ALIGN) - start;
        // Alignment is a matter of speed: a name too long for it stays as it is.
        if aligned <= MAX_NAME_BYTES {
            aligned
        } else {
            shortest
        }
    }

    fn align(&mut self) -> io::Result<()> {
        self.zeros(self.offset.next_multiple_of(FIELD_ALIGN) - self.offset)
    }

    fn zeros(&mut self, count: usize) -> io::Result<()> {
        self.write(&[0; CONTENT_ALIGN][..count])
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len();
        self.output.write_all(bytes)
    }
}
