//! Where an image's files are: in a directory, or in a tar archive.
//!
//! Called by the other modules of [`crate::image`]. Knows names and bytes, nothing of images.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::tarball::{Kind, Reader, TarError};

/// The most files an image archive may have. Real ones have a few for each layer.
const MAX_MEMBERS: usize = 1 << 16;
/// The most links that are followed from one name in an archive.
const MAX_LINKS: usize = 8;

/// Why an image's files cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The image cannot be opened.
    #[error("image {path} cannot be opened")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The archive is compressed as a whole: its parts cannot be found without unpacking it.
    #[error("image {path} is compressed: decompress it first ({remedy})")]
    Compressed {
        /// The image.
        path: PathBuf,
        /// The program that does it.
        remedy: &'static str,
    },
    /// The archive cannot be read.
    #[error("image {path}")]
    Archive {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TarError,
    },
    /// The archive has more files than any image.
    #[error("image {0} has more than {MAX_MEMBERS} files")]
    TooManyMembers(PathBuf),
}

/// The files of an image.
#[derive(Debug)]
pub(super) enum Source {
    /// They are in this directory.
    Directory(PathBuf),
    /// They are in this archive.
    Archive {
        /// The archive.
        file: File,
        /// Its members, by normalised name.
        members: HashMap<Vec<u8>, Member>,
    },
}

/// Where to find a member's content.
#[derive(Debug)]
pub(super) enum Member {
    /// A file: where it starts in the archive, and its length.
    File(u64, u64),
    /// A link to another member: its normalised name.
    Link(Vec<u8>),
}

impl Source {
    /// Opens the image at `path`; of an archive, the headers are read.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Open {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            return Ok(Self::Directory(path.to_owned()));
        }
        let file = open_file(path).map_err(failed)?;
        let mut magic = [0; 6];
        let length = file.read_at(&mut magic, 0).map_err(failed)?;
        let remedy = match &magic[..length] {
            [0x1f, 0x8b, ..] => Some("gunzip"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("unzstd"),
            [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("unxz"),
            _ => None,
        };
        if let Some(remedy) = remedy {
            return Err(SourceError::Compressed {
                path: path.to_owned(),
                remedy,
            });
        }
        let members = members(&file, path)?;
        Ok(Self::Archive { file, members })
    }

    /// Whether the image has a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Directory(directory) => directory.join(name).is_file(),
            Self::Archive { members, .. } => members.contains_key(name.as_bytes()),
        }
    }

    /// Opens the file of this name and says how long it is; fails with `NotFound` if there is none.
    pub(super) fn file(&self, name: &str) -> io::Result<(Box<dyn Read + '_>, u64)> {
        match self {
            Self::Directory(directory) => {
                let name = normalised(name.as_bytes());
                let file = open_file(&directory.join(OsStr::from_bytes(&name)))?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Archive { file, members } => {
                let mut name = normalised(name.as_bytes());
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        Some(&Member::File(offset, size)) => {
                            return Ok((
                                Box::new(Section {
                                    file,
                                    offset,
                                    left: size,
                                }),
                                size,
                            ));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => break,
                    }
                }
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }
}

/// Opens a regular file. A pipe or device in its place is refused, not waited for.
fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

/// Reads the headers of an archive, and of nothing else.
fn members(file: &File, path: &Path) -> Result<HashMap<Vec<u8>, Member>, SourceError> {
    let broken = |source| SourceError::Archive {
        path: path.to_owned(),
        source,
    };
    let mut members = HashMap::new();
    let mut position = file;
    let rewound = position.seek(SeekFrom::Start(0));
    rewound.map_err(|error| broken(TarError::Read(error)))?;
    let length = file
        .metadata()
        .map_err(|error| broken(TarError::Read(error)))?
        .len();
    let mut reader = Reader::new(file);
    while let Some(entry) = reader.next_entry().map_err(broken)? {
        let name = normalised(&entry.path);
        let start = reader.offset();
        let end = start
            .checked_add(reader.leave_content())
            .filter(|end| *end <= length);
        let end = end.ok_or_else(|| broken(TarError::Truncated))?;
        let moved = reader.source_mut().seek(SeekFrom::Start(end));
        moved.map_err(|error| broken(TarError::Read(error)))?;
        let member = match entry.kind {
            // A sparse file's content is in pieces; nothing writes blobs so.
            Kind::File if entry.extents.len() == 1 => Member::File(start, entry.size),
            Kind::HardLink(target) => Member::Link(normalised(&target)),
            Kind::Symlink(target) => Member::Link(beside(&name, &target)),
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MAX_MEMBERS {
            return Err(SourceError::TooManyMembers(path.to_owned()));
        }
    }
    Ok(members)
}

/// The name a symbolic link at `name` leads to.
fn beside(name: &[u8], target: &[u8]) -> Vec<u8> {
    let directory = name
        .iter()
        .rposition(|&byte| byte == b'/')
        .map_or(0, |slash| slash + 1);
    normalised(&[&name[..directory], target].concat())
}

/// A name without `.`, `..` and empty parts.
fn normalised(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// A part of a file, read without moving the file's own position.
struct Section<'f> {
    file: &'f File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..limit], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
