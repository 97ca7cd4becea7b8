//! What the name of a layer's entry means: a place in the root file system, or a whiteout
//! (image-spec, layer.md, "Representing Changes").
//!
//! Called by the parent module. Looks at bytes only; symbolic links are met when the place is
//! opened.

use super::EntryError;

/// The longest path Linux takes, without its terminator.
const MAX_PATH_BYTES: usize = 4095;
/// What marks an entry as the absence of another.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// What marks names that AUFS kept for itself; all but the opaque marker mean nothing.
const RESERVED_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// A path without empty, `.` and `..` parts, relative to the root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EntryPath {
    bytes: Vec<u8>,
}

/// What an entry of this name does.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'p> {
    /// It is about the root directory itself.
    Root,
    /// It puts an object at `name` in the directory `parent`.
    Object {
        /// Path of the directory, empty for the root.
        parent: &'p [u8],
        /// One path component.
        name: &'p [u8],
    },
    /// It removes what lower layers have at `name` in the directory `parent`.
    Whiteout {
        /// Path of the directory, empty for the root.
        parent: &'p [u8],
        /// One path component, without the prefix.
        name: &'p [u8],
    },
    /// It removes all that lower layers have in this directory.
    Opaque(&'p [u8]),
    /// It is left over from AUFS, and nothing.
    Reserved,
}

impl EntryPath {
    /// Returns the place `name` stands for: leading slashes are dropped, `..` is refused.
    pub(super) fn new(name: &[u8]) -> Result<Self, EntryError> {
        if name.len() > MAX_PATH_BYTES {
            return Err(EntryError::PathTooLong);
        }
        let mut bytes = Vec::with_capacity(name.len());
        for part in name.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(EntryError::ParentComponent),
                _ => {}
            }
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(part);
        }
        Ok(Self { bytes })
    }

    /// The path, empty for the root.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The directory and the last component; none for the root itself.
    pub(super) fn split(&self) -> Option<(&[u8], &[u8])> {
        if self.bytes.is_empty() {
            return None;
        }
        Some(match self.bytes.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&self.bytes[..slash], &self.bytes[slash + 1..]),
            None => (&[], &self.bytes),
        })
    }

    /// What an entry of this name does.
    pub(super) fn meaning(&self) -> Result<Meaning<'_>, EntryError> {
        let Some((parent, name)) = self.split() else {
            return Ok(Meaning::Root);
        };
        for part in parent.split(|&byte| byte == b'/') {
            if part.starts_with(RESERVED_PREFIX) {
                return Ok(Meaning::Reserved);
            }
            if part.starts_with(WHITEOUT_PREFIX) {
                return Err(EntryError::InsideWhiteout);
            }
        }
        if name == OPAQUE_MARKER {
            return Ok(Meaning::Opaque(parent));
        }
        if name.starts_with(RESERVED_PREFIX) {
            return Ok(Meaning::Reserved);
        }
        match name.strip_prefix(WHITEOUT_PREFIX) {
            None => Ok(Meaning::Object { parent, name }),
            Some(b"" | b"." | b"..") => Err(EntryError::WhiteoutOfNothing),
            Some(name) => Ok(Meaning::Whiteout { parent, name }),
        }
    }
}
