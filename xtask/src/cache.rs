//! What outlives a checkout: kernels, QEMU, root file systems.
//!
//! An entry is a directory that appears complete or not at all: it is made beside its place and
//! renamed. Two builders of one entry exclude each other by a file lock, which the kernel releases
//! however a process ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Hexadecimal digits of a key in a name: 64 bits, plenty for a handful of entries.
const KEY_DIGITS: usize = 16;

/// `${XDG_CACHE_HOME:-$HOME/.cache}/lazaret`.
///
/// # Errors
/// If neither variable is set.
pub(crate) fn root() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("lazaret"))
}

/// The key of an entry that is made from `inputs`.
pub(crate) fn key<'a>(inputs: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for input in inputs {
        // The length keeps neighbours apart.
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    let mut key: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    key.truncate(KEY_DIGITS);
    key
}

/// Returns the entry's directory; if it is missing, `build` fills it.
///
/// `build` gets an empty directory, which becomes the entry when it succeeds.
///
/// # Errors
/// Those of `build`, and if the cache cannot be written.
pub(crate) fn entry(
    kind: &str,
    name: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = root()?.join(kind);
    let entry = folder.join(name);
    if entry.exists() {
        return Ok(entry);
    }
    let _lock = lock(kind)?;
    if entry.exists() {
        return Ok(entry);
    }
    let partial = folder.join(format!("{name}.partial"));
    remove(&partial)?;
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    if let Err(error) = build(&partial) {
        remove(&partial)?;
        return Err(error);
    }
    fs::rename(&partial, &entry).with_context(|| format!("creating {}", entry.display()))?;
    Ok(entry)
}

/// Waits until no other process builds entries of this kind.
fn lock(kind: &str) -> Result<File> {
    let folder = root()?.join(kind);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(".lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!(
            "waiting for another process that works in {}",
            folder.display()
        );
        file.lock()
            .with_context(|| format!("locking {}", path.display()))?;
    }
    Ok(file)
}

/// Removes a directory with all in it, if it is there.
///
/// # Errors
/// If something of it stays.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_when_inputs_are_cut_differently() {
        let one = key([b"ab".as_slice(), b"c"]);
        let other = key([b"a".as_slice(), b"bc"]);
        assert_ne!(one, other);
        assert_eq!(one.len(), KEY_DIGITS);
        assert_eq!(one, key([b"ab".as_slice(), b"c"]));
    }
}
