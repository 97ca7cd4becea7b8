//! A streaming reader of tar archives: one pass, bounded memory, no seeking needed.
//!
//! [`crate::unpack`] reads layers with it, [`crate::image`] finds blobs in image archives with it.
//! Reads ustar, GNU and PAX archives as `tar`, Docker, BuildKit and buildah write them (POSIX.1-2024
//! `pax`, "ustar Interchange Format"; GNU tar manual, "Tar Internals"). Gives names as they
//! are written: what a name may do to a file system is the caller's to judge.
//!
//! The `tar` crate would do but for three things a hostile or merely unusual layer needs: it splits
//! PAX records at newlines (binary attributes have them), reads extended headers of any
//! length into memory, and knows no PAX sparse files.

mod header;
mod pax;
mod sparse;

use std::io::{self, Read};

pub use header::{Kind, Timestamp};
pub use sparse::Extent;

use header::Header;
use pax::Records;

/// The unit archives are made of.
pub(crate) const BLOCK_BYTES: usize = 512;
/// The longest extended header or long name. Linux takes names of 4 KiB and attributes of
/// 64 KiB each, so this holds more than a dozen of the largest attributes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes could not be read, or not decompressed.
    #[error("archive cannot be read")]
    Read(#[source] io::Error),
    /// The archive ends within an entry.
    #[error("archive ends in the middle of an entry")]
    Truncated,
    /// A header's checksum is wrong: this is no tar archive, or it is damaged.
    #[error("tar header at byte {offset} has a wrong checksum")]
    Checksum {
        /// Where the header starts, in the uncompressed archive.
        offset: u64,
    },
    /// A number in a header is none.
    #[error("field `{field}` of {path:?} is not a number in range")]
    Number {
        /// The field's name in the tar format.
        field: &'static str,
        /// The entry, as far as its name is known.
        path: String,
    },
    /// An extended header is longer than any sensible one.
    #[error("extended header of {bytes} bytes is over the limit of {MAX_EXTENSION_BYTES}")]
    ExtensionTooLong {
        /// Its length.
        bytes: u64,
    },
    /// An extended header is not a list of PAX records.
    #[error("PAX header at byte {offset} is malformed")]
    Pax {
        /// Where the records start, in the uncompressed archive.
        offset: u64,
    },
    /// A name is empty or has a zero byte in it.
    #[error("name {0:?} is not one a file can have")]
    Name(String),
    /// The entry is of a kind that layers do not have.
    #[error("entry {path:?} has the unknown type {kind:?}")]
    Kind {
        /// The entry.
        path: String,
        /// The type's character.
        kind: char,
    },
    /// The map of a sparse file does not fit the file.
    #[error("sparse map of {0:?} is malformed")]
    Sparse(String),
    /// The map of a sparse file has too many parts.
    #[error("sparse map of {0:?} has more than {max} parts", max = sparse::MAX_EXTENTS)]
    SparseParts(String),
}

/// One member of an archive, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as it stands in the archive; no zero bytes, not empty.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// When the content was last changed.
    pub mtime: Timestamp,
    /// Extended attributes, in the archive's order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A regular file's length in bytes, holes included; 0 for everything else.
    pub size: u64,
    /// The parts of a regular file that are stored, in order; the rest is zeros. Their bytes
    /// follow one another in [`Reader::read_content`].
    pub extents: Vec<Extent>,
}

/// What extended headers said about the entry that follows them.
#[derive(Debug, Default)]
struct Extensions {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

/// Reads the entries of an archive in order.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    /// Bytes read so far.
    offset: u64,
    /// Bytes of the current entry's content that are still to come.
    content: u64,
    /// Zeros that follow the content.
    padding: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Returns a reader of the uncompressed archive `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            offset: 0,
            content: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Returns the next entry, or none at the archive's end. What is left of the current entry's
    /// content is skipped.
    ///
    /// # Errors
    ///
    /// When the archive is malformed or cannot be read. There is no going on after an error.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip(self.content + self.padding)?;
            (self.content, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            match header.type_flag() {
                b'x' => {
                    let offset = self.offset;
                    let bytes = self.extension(&header)?;
                    extensions.records = Records::parse(&bytes).ok_or(TarError::Pax { offset })?;
                }
                // Global records: comments in practice, and no image tool applies them.
                b'g' => drop(self.extension(&header)?),
                b'L' => extensions.long_name = Some(self.extension(&header)?),
                b'K' => extensions.long_link = Some(self.extension(&header)?),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads from the current entry's stored content; 0 at its end.
    ///
    /// # Errors
    ///
    /// When the archive ends early or cannot be read.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let limit = usize::try_from(self.content)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let count = self.read_some(&mut buffer[..limit])?;
        if count == 0 {
            return Err(TarError::Truncated);
        }
        self.content -= count as u64;
        Ok(count)
    }

    /// The position of the next byte to be read, and so of the current entry's content.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Makes the reader take the rest of the current entry for read, and returns how many bytes the
    /// caller has to move the source by.
    pub(crate) fn leave_content(&mut self) -> u64 {
        // No overflow: `padding` has checked this very sum.
        let count = self.content + self.padding;
        self.offset = self.offset.saturating_add(count);
        (self.content, self.padding) = (0, 0);
        count
    }

    /// The archive the entries come from.
    pub fn source_mut(&mut self) -> &mut R {
        &mut self.source
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, TarError> {
        let Extensions {
            records,
            long_name,
            long_link,
        } = extensions;
        let name = records
            .sparse_name
            .or(records.path)
            .or(long_name)
            .unwrap_or(header.path());
        let path = checked_name(name)?;
        let not_a_number = |field| {
            let path = String::from_utf8_lossy(&path).into_owned();
            move || TarError::Number { field, path }
        };
        let link = || checked_name(records.link.or(long_link).unwrap_or(header.link()));
        let kind = header.kind(&path, link)?;
        let stored = match records.size {
            Some(size) => size,
            None => header.size().ok_or_else(not_a_number("size"))?,
        };
        // Only files have content, whatever the size field of the others says.
        if kind == Kind::File || header.is_legacy_directory(&path) {
            self.content = stored;
            self.padding = padding(stored).ok_or(TarError::Truncated)?;
        }
        let mut entry = Entry {
            mode: header.mode().ok_or_else(not_a_number("mode"))? as u32 & 0o7777,
            uid: records
                .uid
                .or(header.uid())
                .ok_or_else(not_a_number("uid"))?,
            gid: records
                .gid
                .or(header.gid())
                .ok_or_else(not_a_number("gid"))?,
            mtime: records
                .mtime
                .or(header.mtime())
                .ok_or_else(not_a_number("mtime"))?,
            xattrs: records.xattrs,
            size: 0,
            extents: Vec::new(),
            kind,
            path,
        };
        if entry.kind == Kind::File {
            entry.size = stored;
            self.file_extents(header, records.sparse, &mut entry)?;
        }
        Ok(entry)
    }

    /// Reads the whole content of an extended header.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let path = || String::from_utf8_lossy(&header.path()).into_owned();
        let bytes = header.size().ok_or_else(|| TarError::Number {
            field: "size",
            path: path(),
        })?;
        if bytes > MAX_EXTENSION_BYTES {
            return Err(TarError::ExtensionTooLong { bytes });
        }
        let mut content = vec![0; bytes as usize];
        self.read_exactly(&mut content)?;
        self.skip(padding(bytes).unwrap_or(0))?;
        Ok(content)
    }

    /// Reads a header; none at the end: two blocks of zeros, or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let offset = self.offset;
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block != [0; BLOCK_BYTES] {
            return Header::new(block)
                .map(Some)
                .ok_or(TarError::Checksum { offset });
        }
        self.ended = true;
        match self.block()? {
            Some(block) if block != [0; BLOCK_BYTES] => Err(TarError::Checksum {
                offset: offset + BLOCK_BYTES as u64,
            }),
            _ => Ok(None),
        }
    }

    /// Reads a block; none when the archive ended before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let first = self.read_some(&mut block)?;
        if first == 0 {
            self.ended = true;
            return Ok(None);
        }
        self.read_exactly(&mut block[first..])?;
        Ok(Some(block))
    }

    fn skip(&mut self, mut count: u64) -> Result<(), TarError> {
        let mut buffer = [0; 16 * BLOCK_BYTES];
        while count > 0 {
            let limit = count.min(buffer.len() as u64) as usize;
            let read = self.read_some(&mut buffer[..limit])?;
            if read == 0 {
                return Err(TarError::Truncated);
            }
            count -= read as u64;
        }
        Ok(())
    }

    fn read_exactly(&mut self, mut buffer: &mut [u8]) -> Result<(), TarError> {
        while !buffer.is_empty() {
            let count = self.read_some(buffer)?;
            if count == 0 {
                return Err(TarError::Truncated);
            }
            buffer = &mut buffer[count..];
        }
        Ok(())
    }

    /// Reads at least one byte; 0 at the end.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.source.read(buffer) {
                Ok(count) => {
                    self.offset += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
    }
}

/// The zeros that fill the last block of `size` bytes of content; none if the two overflow.
fn padding(size: u64) -> Option<u64> {
    size.checked_next_multiple_of(BLOCK_BYTES as u64)
        .map(|end| end - size)
}

/// Removes what follows a terminator (GNU long names carry one); a zero elsewhere is an error.
fn checked_name(mut name: Vec<u8>) -> Result<Vec<u8>, TarError> {
    if name.last() == Some(&0) {
        name.pop();
    }
    if name.is_empty() || name.contains(&0) {
        return Err(TarError::Name(String::from_utf8_lossy(&name).into_owned()));
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
