//! The 512-byte header of a tar entry: fields by their place, nothing interpreted twice.
//!
//! Called by the parent module. Field places are those of POSIX ustar; GNU's differ only where
//! the comments say so.

use std::ops::Range;

use super::{BLOCK_BYTES, TarError};

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const UID: Range<usize> = 108..116;
const GID: Range<usize> = 116..124;
const SIZE: Range<usize> = 124..136;
const MTIME: Range<usize> = 136..148;
const CHECKSUM: Range<usize> = 148..156;
const TYPE_FLAG: usize = 156;
const LINK: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const MAJOR: Range<usize> = 329..337;
const MINOR: Range<usize> = 337..345;
/// In GNU archives this place holds times and the sparse map instead.
const PREFIX: Range<usize> = 345..500;
/// POSIX archives have a terminated magic, GNU's have spaces there.
const POSIX_MAGIC: &[u8] = b"ustar\0";

/// What an entry of an archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, sparse or not.
    File,
    /// Another name for the file of this name in the archive.
    HardLink(Vec<u8>),
    /// A symbolic link that says this.
    Symlink(Vec<u8>),
    /// A directory.
    Directory,
    /// A character device with its major and minor number.
    Character(u64, u64),
    /// A block device with its major and minor number.
    Block(u64, u64),
    /// A named pipe.
    Fifo,
}

/// A point in time, counted from the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timestamp {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after that second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// A header whose checksum was right.
#[derive(Debug)]
pub(super) struct Header {
    block: [u8; BLOCK_BYTES],
}

impl Header {
    /// Returns the header in `block`, or none if its checksum is wrong.
    pub(super) fn new(block: [u8; BLOCK_BYTES]) -> Option<Self> {
        let header = Self { block };
        let written = number(&block[CHECKSUM])?;
        // The field itself counts as spaces. Some ancient writers summed signed bytes.
        let outside = || block[..CHECKSUM.start].iter().chain(&block[CHECKSUM.end..]);
        let spaces = CHECKSUM.len() as i64 * i64::from(b' ');
        let unsigned: i64 = outside().map(|&byte| i64::from(byte)).sum::<i64>() + spaces;
        let signed: i64 = outside().map(|&byte| i64::from(byte as i8)).sum::<i64>() + spaces;
        [unsigned, signed].contains(&written).then_some(header)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[TYPE_FLAG]
    }

    /// The name; POSIX archives may keep its beginning in a field of its own.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[NAME]);
        let prefix = text(&self.block[PREFIX]);
        if &self.block[MAGIC] != POSIX_MAGIC || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, name].join(&b'/')
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[LINK]).to_vec()
    }

    pub(super) fn mode(&self) -> Option<u64> {
        natural(&self.block[MODE])
    }

    pub(super) fn uid(&self) -> Option<u64> {
        natural(&self.block[UID])
    }

    pub(super) fn gid(&self) -> Option<u64> {
        natural(&self.block[GID])
    }

    pub(super) fn size(&self) -> Option<u64> {
        natural(&self.block[SIZE])
    }

    pub(super) fn mtime(&self) -> Option<Timestamp> {
        number(&self.block[MTIME]).map(|seconds| Timestamp {
            seconds,
            nanoseconds: 0,
        })
    }

    /// A part of the block, for the fields only sparse files have.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.block[range]
    }

    /// What the entry is; `link` gives the target that extended headers or this one name.
    pub(super) fn kind(
        &self,
        path: &[u8],
        link: impl FnOnce() -> Result<Vec<u8>, TarError>,
    ) -> Result<Kind, TarError> {
        Ok(match self.type_flag() {
            _ if self.is_legacy_directory(path) => Kind::Directory,
            b'0' | b'7' | b'S' | 0 => Kind::File,
            b'1' => Kind::HardLink(link()?),
            b'2' => Kind::Symlink(link()?),
            b'3' => self
                .device(path)
                .map(|(major, minor)| Kind::Character(major, minor))?,
            b'4' => self
                .device(path)
                .map(|(major, minor)| Kind::Block(major, minor))?,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            kind => {
                let path = String::from_utf8_lossy(path).into_owned();
                return Err(TarError::Kind {
                    path,
                    kind: char::from(kind),
                });
            }
        })
    }

    /// Archives older than ustar mark a directory only by a slash at the end of its name.
    pub(super) fn is_legacy_directory(&self, path: &[u8]) -> bool {
        self.type_flag() == 0 && path.ends_with(b"/")
    }

    fn device(&self, path: &[u8]) -> Result<(u64, u64), TarError> {
        let field = |field, range| {
            let path = || String::from_utf8_lossy(path).into_owned();
            natural(&self.block[range]).ok_or_else(|| TarError::Number {
                field,
                path: path(),
            })
        };
        Ok((field("devmajor", MAJOR)?, field("devminor", MINOR)?))
    }
}

/// The text of a field, up to its terminator if it has one.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(field)
}

/// A number that cannot be negative.
pub(super) fn natural(field: &[u8]) -> Option<u64> {
    number(field).and_then(|number| u64::try_from(number).ok())
}

/// A number: octal digits between spaces and terminators, or, with the highest bit set, a
/// big-endian two's complement (GNU's "base-256").
fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // The flag bit is not part of the number, the next bit is its sign.
    let start = if first & 0x40 == 0 {
        i64::from(first & 0x3f)
    } else {
        i64::from(first as i8)
    };
    field[1..].iter().try_fold(start, |value, &byte| {
        value.checked_mul(256).map(|value| value | i64::from(byte))
    })
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end]
        .iter()
        .try_fold(0i64, |value, &digit| match digit {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
            _ => None,
        })
}
