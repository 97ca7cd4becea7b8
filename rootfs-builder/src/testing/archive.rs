//! A tar archive written byte by byte, hostile ones included.
//!
//! Called by the tests of several modules.

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
