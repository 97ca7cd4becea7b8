//! Sparse files: where the stored parts of a file belong.
//!
//! Called by the parent module. Reads all four ways GNU tar has written them: the old header, and
//! the PAX formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse Files").

use std::io::Read;

use super::header::{Header, natural};
use super::pax::decimal;
use super::{BLOCK_BYTES, Entry, Reader, TarError};

/// The most parts one file may have: 4 MiB of map.
pub(super) const MAX_EXTENTS: usize = 1 << 18;
/// Places of the old GNU format.
const MAP_OFFSET: usize = 386;
const MAP_PARTS: usize = 4;
const EXTENDED_FLAG: usize = 482;
const REAL_SIZE: std::ops::Range<usize> = 483..495;
const EXTENSION_PARTS: usize = 21;
const EXTENSION_EXTENDED_FLAG: usize = 504;
const PART_BYTES: usize = 24;
const NUMBER_BYTES: usize = 12;
/// The longest number in a map of format 1.0, with its newline.
const MAX_MAP_LINE_BYTES: usize = 21;

/// A stored part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// The `GNU.sparse.*` records of a PAX header.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    major: Option<u64>,
    minor: Option<u64>,
    real_size: Option<u64>,
    /// Offsets and lengths by turns.
    map: Vec<u64>,
}

impl SparseRecords {
    /// Takes a record; others than sparse ones are ignored, malformed ones give none.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"GNU.sparse.major" => self.major = Some(decimal(value)?),
            b"GNU.sparse.minor" => self.minor = Some(decimal(value)?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.real_size = Some(decimal(value)?),
            b"GNU.sparse.map" => {
                self.map = value
                    .split(|&byte| byte == b',')
                    .map(decimal)
                    .collect::<Option<_>>()?;
            }
            b"GNU.sparse.offset" if self.map.len().is_multiple_of(2) => {
                self.map.push(decimal(value)?);
            }
            b"GNU.sparse.numbytes" if !self.map.len().is_multiple_of(2) => {
                self.map.push(decimal(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => return None,
            _ => {}
        }
        Some(())
    }
}

impl<R: Read> Reader<R> {
    /// Fills in the size and the extents of the regular file `entry`; its stored content follows.
    pub(super) fn file_extents(
        &mut self,
        header: &Header,
        records: SparseRecords,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let path = || String::from_utf8_lossy(&entry.path).into_owned();
        let malformed = || TarError::Sparse(path());
        let (size, map) = if header.type_flag() == b'S' {
            let size = natural(header.bytes(REAL_SIZE)).ok_or_else(malformed)?;
            (size, self.old_map(header, &path)?)
        } else if let Some(size) = records.real_size {
            match (records.major.unwrap_or(0), records.minor.unwrap_or(1)) {
                (0, 0 | 1) => (size, records.map),
                (1, 0) => (size, self.leading_map(&path)?),
                _ => return Err(malformed()),
            }
        } else {
            entry.extents.push(Extent {
                offset: 0,
                length: self.content,
            });
            return Ok(());
        };
        if map.len() / 2 > MAX_EXTENTS {
            return Err(TarError::SparseParts(path()));
        }
        let extents = checked_extents(&map, size, self.content).ok_or_else(malformed)?;
        entry.size = size;
        entry.extents = extents;
        Ok(())
    }

    /// Reads the map of the old format, which goes on in blocks between header and content.
    fn old_map(
        &mut self,
        header: &Header,
        path: &dyn Fn() -> String,
    ) -> Result<Vec<u64>, TarError> {
        let mut map = Vec::new();
        let parts = header.bytes(MAP_OFFSET..MAP_OFFSET + MAP_PARTS * PART_BYTES);
        let mut more = header.bytes(EXTENDED_FLAG..EXTENDED_FLAG + 1) != [0];
        old_parts(parts, &mut map).ok_or_else(|| TarError::Sparse(path()))?;
        while more {
            let block = self.block()?.ok_or(TarError::Truncated)?;
            let parts = &block[..EXTENSION_PARTS * PART_BYTES];
            old_parts(parts, &mut map).ok_or_else(|| TarError::Sparse(path()))?;
            more = block[EXTENSION_EXTENDED_FLAG] != 0;
            if map.len() / 2 > MAX_EXTENTS {
                return Err(TarError::SparseParts(path()));
            }
        }
        Ok(map)
    }

    /// Reads the map of format 1.0: decimal lines in the content's first blocks.
    fn leading_map(&mut self, path: &dyn Fn() -> String) -> Result<Vec<u64>, TarError> {
        let mut lines = Lines {
            reader: self,
            block: [0; BLOCK_BYTES],
            used: BLOCK_BYTES,
        };
        let malformed = || TarError::Sparse(path());
        let parts = lines.number(&malformed)?;
        if parts > MAX_EXTENTS as u64 {
            return Err(TarError::SparseParts(path()));
        }
        (0..parts * 2).map(|_| lines.number(&malformed)).collect()
    }
}

/// Reads lines from whole blocks of content.
struct Lines<'r, R> {
    reader: &'r mut Reader<R>,
    block: [u8; BLOCK_BYTES],
    used: usize,
}

impl<R: Read> Lines<'_, R> {
    fn number(&mut self, malformed: &dyn Fn() -> TarError) -> Result<u64, TarError> {
        let mut digits = [0; MAX_MAP_LINE_BYTES];
        for length in 0..digits.len() {
            if self.used == BLOCK_BYTES {
                if self.reader.content < BLOCK_BYTES as u64 {
                    return Err(malformed());
                }
                self.reader.read_exactly(&mut self.block)?;
                self.reader.content -= BLOCK_BYTES as u64;
                self.used = 0;
            }
            let byte = self.block[self.used];
            self.used += 1;
            if byte == b'\n' {
                return decimal(&digits[..length]).ok_or_else(malformed);
            }
            digits[length] = byte;
        }
        Err(malformed())
    }
}

/// Appends the parts in a table of the old format, which ends at the first unused one.
fn old_parts(table: &[u8], map: &mut Vec<u64>) -> Option<()> {
    for part in table.chunks_exact(PART_BYTES) {
        let (offset, length) = part.split_at(NUMBER_BYTES);
        if offset[0] == 0 || length[0] == 0 {
            break;
        }
        map.push(natural(offset)?);
        map.push(natural(length)?);
    }
    Some(())
}

/// Returns the extents of `map` if they follow one another within `size` and hold `stored` bytes.
fn checked_extents(map: &[u64], size: u64, stored: u64) -> Option<Vec<Extent>> {
    let (parts, rest) = map.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let (mut end, mut sum) = (0u64, 0u64);
    let mut extents = Vec::with_capacity(parts.len());
    for &[offset, length] in parts {
        if offset < end {
            return None;
        }
        end = offset.checked_add(length).filter(|end| *end <= size)?;
        sum = sum.checked_add(length)?;
        extents.push(Extent { offset, length });
    }
    (sum == stored).then_some(extents)
}
