//! Layers of hostile entries, applied one on another: whatever they say, it stays within the root
//! file system.

#![no_main]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rootfs_builder::unpack::Unpacker;
use rootfs_builder::{Limits, Silent};

#[path = "checksum.rs"]
mod checksum;

const SECRET: &[u8] = b"not to be read";

/// A part of a name: mostly of few, so that entries meet.
#[derive(Debug, Arbitrary)]
enum Part {
    A,
    B,
    Secret,
    Parent,
    Current,
    Empty,
    /// The path of the directory that must not change.
    Outside,
    WhiteoutOfA,
    WhiteoutOfSecret,
    Opaque,
    Other(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Character,
    /// Extended records of any bytes.
    Pax,
    Any(u8),
}

#[derive(Debug, Arbitrary)]
struct Entry {
    kind: Kind,
    name: Vec<Part>,
    link: Vec<Part>,
    mode: u16,
    content: Vec<u8>,
}

fn path(parts: &[Part], outside: &Path) -> Vec<u8> {
    let parts: Vec<&[u8]> = parts
        .iter()
        .map(|part| match part {
            Part::A => &b"a"[..],
            Part::B => b"b",
            Part::Secret => b"secret",
            Part::Parent => b"..",
            Part::Current => b".",
            Part::Empty => b"",
            Part::Outside => outside.as_os_str().as_encoded_bytes(),
            Part::WhiteoutOfA => b".wh.a",
            Part::WhiteoutOfSecret => b".wh.secret",
            Part::Opaque => b".wh..wh..opq",
            Part::Other(bytes) => bytes,
        })
        .collect();
    parts.join(&b'/')
}

fn header(kind: u8, name: &[u8], link: &[u8], mode: u16, size: usize) -> Vec<u8> {
    let mut block = vec![0; 512];
    let put = |block: &mut [u8], start: usize, text: &[u8], limit: usize| {
        let length = text.len().min(limit);
        block[start..start + length].copy_from_slice(&text[..length]);
    };
    put(&mut block, 0, name, 100);
    put(
        &mut block,
        100,
        format!("{:07o}", mode & 0o7777).as_bytes(),
        8,
    );
    put(&mut block, 124, format!("{size:011o}").as_bytes(), 12);
    block[156] = kind;
    put(&mut block, 157, link, 100);
    put(&mut block, 257, b"ustar\x0000", 8);
    checksum::repaired(&block)
}

fn archive(entries: &[Entry], outside: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    for entry in entries {
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Character => b'3',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
            Kind::Pax => b'x',
            Kind::Any(kind) => kind,
        };
        let (name, link) = (path(&entry.name, outside), path(&entry.link, outside));
        archive.extend(header(kind, &name, &link, entry.mode, entry.content.len()));
        if matches!(kind, 0 | b'0' | b'7' | b'S' | b'x' | b'g' | b'L' | b'K') {
            archive.extend_from_slice(&entry.content);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
    }
    archive
}

/// What is outside: names, modes, owners, times and content.
fn picture(directory: &Path) -> Vec<(String, u32, u32, i64, i64, Vec<u8>)> {
    let mut picture = Vec::new();
    for name in [".", "secret", "a", "a/secret"] {
        let path = directory.join(name);
        let status = path
            .symlink_metadata()
            .expect("nothing here is ever removed");
        let content = if status.is_file() {
            fs::read(&path).expect("readable")
        } else {
            Vec::new()
        };
        let (mode, uid) = (status.mode(), status.uid());
        picture.push((
            name.to_owned(),
            mode,
            uid,
            status.mtime(),
            status.mtime_nsec(),
            content,
        ));
    }
    picture
}

fuzz_target!(|layers: Vec<Vec<Entry>>| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let outside = directory.path().join("outside");
    for name in ["root", "trash", "outside", "outside/a"] {
        fs::create_dir(directory.path().join(name)).expect("an empty directory");
    }
    for name in ["secret", "a/secret"] {
        fs::write(outside.join(name), SECRET).expect("room for it");
    }
    let before = picture(&outside);
    let open = |name| {
        fs::File::open(directory.path().join(name))
            .expect("just made")
            .into()
    };
    let limits = Limits {
        unpacked_bytes: 1 << 20,
        entries: 1000,
    };
    let mut unpacker = Unpacker::new(open("root"), open("trash"), limits, &Silent);
    for layer in &layers {
        if unpacker.apply(archive(layer, &outside).as_slice()).is_err() {
            break;
        }
    }
    assert_eq!(picture(&outside), before);
    let names = fs::read_dir(directory.path()).expect("still there").count();
    assert_eq!(names, 3, "something was made or removed beside the root");
    let names = fs::read_dir(&outside).expect("still there").count();
    assert_eq!(names, 2, "something was made outside");
});
