//! A picture of a directory tree, to compare with another.
//!
//! Called by the tests of several modules, and included by those that run real tools.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is known of a file without its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) device: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    pub(crate) same_as: PathBuf,
}

/// Everything below `root`, the root included, by path.
pub(crate) fn picture(root: &Path) -> BTreeMap<PathBuf, Object> {
    let (mut picture, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        if path.symlink_metadata().unwrap().is_dir() {
            let children = std::fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path());
            paths.extend(children);
        }
        next += 1;
    }
    paths.sort();
    for path in paths {
        let status = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let kind = status.file_type();
        let content = if kind.is_symlink() {
            std::fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else if kind.is_file() {
            std::fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        let is_device = kind.is_char_device() || kind.is_block_device();
        let object = Object {
            mode: status.mode(),
            owner: (status.uid(), status.gid()),
            device: if is_device { status.rdev() } else { 0 },
            mtime: (status.mtime(), status.mtime_nsec()),
            content,
            xattrs: xattrs(&path),
            same_as: inodes
                .entry(status.ino())
                .or_insert_with(|| name.clone())
                .clone(),
        };
        picture.insert(name, object);
    }
    picture
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0u8; 65536];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
    let names = names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; 65536];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}
