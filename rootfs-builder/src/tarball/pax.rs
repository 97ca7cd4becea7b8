//! The records of a PAX extended header: `LENGTH KEY=VALUE\n`, values of any bytes.
//!
//! Called by the parent module. Keeps the records a layer can use and drops the rest.

use super::header::Timestamp;
use super::sparse::SparseRecords;

/// The prefix under which every image tool stores extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const NANOSECOND_DIGITS: usize = 9;

/// What one extended header says.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The name of a sparse file, whose plain name says which program wrote it.
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse: SparseRecords,
}

impl Records {
    /// Returns the records in `bytes`, or none if they are malformed.
    pub(super) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let (record, rest) = split_record(bytes)?;
            let equals = record.iter().position(|&byte| byte == b'=')?;
            records.add(&record[..equals], &record[equals + 1..])?;
            bytes = rest;
        }
        Some(records)
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            if name.is_empty() || name.contains(&0) {
                return None;
            }
            self.xattrs.retain(|(other, _)| other != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        // An empty value takes back what a header before this one said: nothing, here.
        if value.is_empty() {
            return Some(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(timestamp(value)?),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            _ => self.sparse.add(key, value)?,
        }
        Some(())
    }
}

/// Splits the first record, without its length and newline, from those after it.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let record = bytes.get(space + 1..length)?;
    let (newline, record) = record.split_last()?;
    (*newline == b'\n').then_some((record, &bytes[length..]))
}

/// A number of nothing but decimal digits.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with an optional sign and fraction; digits beyond nanoseconds are cut.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = parts.next().filter(|fraction| !fraction.is_empty()) {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let digits = &fraction[..fraction.len().min(NANOSECOND_DIGITS)];
        let scale = 10u64.pow((NANOSECOND_DIGITS - digits.len()) as u32);
        nanoseconds = u32::try_from(decimal(digits)? * scale).ok()?;
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds,
        },
        // Counted up from the whole second below.
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}
