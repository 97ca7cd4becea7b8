//! What the tests of several modules share: layers written byte by byte, hostile ones included,
//! and a picture of a directory tree to compare.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

/// A tar archive under construction, without any check on what goes in.
#[derive(Debug, Default, Clone)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A header with everything set but name and size: ours to own, so that tests need no root.
    pub(crate) fn header(kind: EntryType) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header
    }

    /// Adds a header, names and all, and content.
    pub(crate) fn raw(mut self, mut header: Header, name: &[u8], content: &[u8]) -> Self {
        header.as_mut_bytes()[..100].fill(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(Self::header(EntryType::Regular), name.as_bytes(), content)
    }

    pub(crate) fn directory(self, name: &str) -> Self {
        self.raw(Self::header(EntryType::Directory), name.as_bytes(), b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    /// Adds a link; both its names may be of any length.
    pub(crate) fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let this = self.pax(&[("path", name.as_bytes()), ("linkpath", target.as_bytes())]);
        this.raw(Self::header(kind), b"link", b"")
    }

    /// Adds PAX records for the entry that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.raw(Self::header(EntryType::XHeader), b"pax", &content)
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

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
