//! Tests of the tar reader: real archives of `tar`, exact fields, and bytes of any kind.

use std::io::Read;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tar::EntryType;

use super::{Entry, Extent, Kind, Reader, TarError, Timestamp};
use crate::testing::Archive;

/// All entries with their content, holes filled in.
fn read(archive: impl Read) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        for extent in &entry.extents {
            content.resize(extent.offset as usize, 0);
            let end = content.len() + extent.length as usize;
            while content.len() < end {
                let mut buffer = [0; 777];
                let limit = (end - content.len()).min(buffer.len());
                let count = reader.read_content(&mut buffer[..limit])?;
                assert!(count > 0, "extents are longer than the content");
                content.extend_from_slice(&buffer[..count]);
            }
        }
        content.resize(entry.size as usize, 0);
        entries.push((entry, content));
    }
    Ok(entries)
}

fn tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar")
        .current_dir(directory)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn sparse_files_of_every_format_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("sparse")).unwrap();
    let mut expected = vec![0; 3 << 20];
    // More parts than the old header holds, so that its extension is used.
    for part in 0..30u8 {
        let offset = usize::from(part) * 98_304;
        expected[offset..offset + 4096].fill(part + 1);
        std::os::unix::fs::FileExt::write_all_at(&file, &[part + 1; 4096], offset as u64).unwrap();
    }
    file.set_len(expected.len() as u64).unwrap();
    std::fs::write(directory.path().join("after"), "after").unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let arguments = [format, &["-cS", "--hole-detection=raw", "sparse", "after"]].concat();
        let archive = tar(directory.path(), &arguments);
        assert!(
            archive.len() < 1 << 20,
            "{format:?}: not stored as a sparse file"
        );
        let entries = read(&archive[..]).unwrap();
        assert_eq!(entries[0].0.path, b"sparse", "{format:?}");
        assert!(entries[0].0.extents.len() >= 30, "{format:?}");
        assert!(entries[0].1 == expected, "{format:?}");
        assert_eq!(
            (&entries[1].0.path[..], &entries[1].1[..]),
            (&b"after"[..], &b"after"[..])
        );
    }
}

#[test]
fn names_of_any_length_are_read_in_every_format() {
    let directory = tempfile::tempdir().unwrap();
    let deep = format!("{}/{}", "d".repeat(90), "f".repeat(95));
    std::fs::create_dir(directory.path().join("d".repeat(90))).unwrap();
    std::fs::write(directory.path().join(&deep), "x").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), directory.path().join("link")).unwrap();
    for format in ["--format=gnu", "--format=posix"] {
        let entries = read(&tar(directory.path(), &[format, "-c", &deep, "link"])[..]).unwrap();
        assert_eq!(entries[0].0.path, deep.as_bytes());
        assert_eq!(
            entries[1].0.kind,
            Kind::Symlink("t".repeat(300).into_bytes())
        );
    }
    let ustar = tar(directory.path(), &["--format=ustar", "-c", &deep]);
    assert_eq!(read(&ustar[..]).unwrap()[0].0.path, deep.as_bytes());
    // GNU tar puts the directory into the prefix field only of names that need it.
    assert_eq!(ustar[345..345 + 90], deep.as_bytes()[..90]);
}

#[test]
fn fields_are_exact() {
    let archive = Archive::new()
        .pax(&[
            ("path", b"na=me\n"),
            ("mtime", b"-1.25"),
            ("uid", b"4294967294"),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\n\n\0=5 a=b",
            ),
            ("SCHILY.xattr.user.empty", b""),
            ("comment", b"ignored"),
        ])
        .raw(Archive::header(EntryType::Regular), b"short", b"content")
        .raw(
            Archive::header(EntryType::XGlobalHeader),
            b"global",
            b"18 path=elsewhere\n",
        )
        .raw(Archive::header(EntryType::Fifo), b"./fifo", b"");
    let mut device = Archive::header(EntryType::Char);
    device.set_device_major(5).unwrap();
    device.set_device_minor(1).unwrap();
    device.set_mode(0o107_777);
    device.as_mut_bytes()[136..148].copy_from_slice(&[0xff; 12]);
    let entries = read(&archive.raw(device, b"console", b"").finish()[..]).unwrap();
    let first = &entries[0].0;
    assert_eq!(first.path, b"na=me\n");
    assert_eq!(
        first.mtime,
        Timestamp {
            seconds: -2,
            nanoseconds: 750_000_000
        }
    );
    assert_eq!(first.uid, 4_294_967_294);
    assert_eq!(
        first.extents,
        [Extent {
            offset: 0,
            length: 7
        }]
    );
    let capability = (
        b"security.capability".to_vec(),
        b"\x01\0\0\x02\n\n\0=5 a=b".to_vec(),
    );
    assert_eq!(
        first.xattrs,
        [capability, (b"user.empty".to_vec(), Vec::new())]
    );
    assert_eq!(entries[1].0.path, b"./fifo");
    assert_eq!(entries[2].0.kind, Kind::Character(5, 1));
    assert_eq!(entries[2].0.mode, 0o7777);
    assert_eq!(
        entries[2].0.mtime,
        Timestamp {
            seconds: -1,
            nanoseconds: 0
        }
    );
}

#[test]
fn only_files_have_content() {
    // A size in the header of a link must not make the reader skip the entry that follows.
    let mut link = Archive::header(EntryType::Link);
    link.set_link_name("target").unwrap();
    let mut bytes = Archive::new().raw(link, b"link", b"").finish();
    bytes.truncate(512);
    bytes[124..135].copy_from_slice(b"00000001000");
    let mut header = *tar::Header::from_byte_slice(&bytes).as_bytes();
    let sum: u32 = header.iter().enumerate().fold(0, |sum, (index, byte)| {
        sum + if (148..156).contains(&index) {
            32
        } else {
            u32::from(*byte)
        }
    });
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let archive = [&header[..], &Archive::new().file("next", b"next").finish()].concat();
    let entries = read(&archive[..]).unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1].0.path, b"next");
}

#[test]
fn malformed_archives_are_refused() {
    let good = Archive::new().file("file", &[1; 2000]).finish();
    let error = |bytes: &[u8]| read(bytes).expect_err("must be refused");
    assert!(matches!(error(&good[..100]), TarError::Truncated));
    assert!(matches!(error(&good[..1000]), TarError::Truncated));
    let mut flipped = good.clone();
    flipped[3] ^= 1;
    assert!(matches!(error(&flipped), TarError::Checksum { offset: 0 }));
    let one_zero_block = [&good[..good.len() - 512], &good[..512]].concat();
    assert!(matches!(error(&one_zero_block), TarError::Checksum { .. }));
    // A missing end is common and harmless.
    assert_eq!(read(&good[..good.len() - 1024]).unwrap().len(), 1);

    let entry = |records: &[(&str, &[u8])]| {
        Archive::new()
            .pax(records)
            .file("file", b"content")
            .finish()
    };
    for records in [
        ("uid", &b"-1"[..]),
        ("size", b"1e3"),
        ("mtime", b"1.x"),
        ("mtime", b"x"),
    ] {
        assert!(
            matches!(error(&entry(&[records])), TarError::Pax { .. }),
            "{records:?}"
        );
    }
    assert!(matches!(
        error(&entry(&[("path", b"a\0b")])),
        TarError::Name(_)
    ));
    assert!(matches!(
        error(&entry(&[("size", b"18446744073709551615")])),
        TarError::Truncated
    ));
    for pax in [
        &b"5 a=b\n"[..],
        b"7 a=b\n",
        b"6 ab\n",
        b"99 a=b\n",
        b"6 a=b",
        b" a=b\n",
        b"x\n",
    ] {
        let header = Archive::header(EntryType::XHeader);
        let archive = Archive::new()
            .raw(header, b"pax", pax)
            .file("file", b"")
            .finish();
        assert!(
            matches!(error(&archive), TarError::Pax { offset: 512 }),
            "{pax:?}"
        );
    }
    let long = vec![b'x'; (1 << 20) + 1];
    let long = Archive::new().raw(Archive::header(EntryType::GNULongName), b"L", &long);
    assert!(matches!(
        error(&long.finish()),
        TarError::ExtensionTooLong { .. }
    ));
    let unknown = Archive::new().raw(Archive::header(EntryType::new(b'V')), b"volume", b"");
    assert!(matches!(
        error(&unknown.finish()),
        TarError::Kind { kind: 'V', .. }
    ));
    let unnamed = Archive::new().file("", b"");
    assert!(matches!(error(&unnamed.finish()), TarError::Name(_)));
}

#[test]
fn malformed_sparse_maps_are_refused() {
    let with = |size: &[u8], map: &[u8]| {
        let records = [("GNU.sparse.size", size), ("GNU.sparse.map", map)];
        read(
            &Archive::new()
                .pax(&records)
                .file("sparse", b"12345678")
                .finish()[..],
        )
    };
    assert_eq!(
        with(b"100", b"10,4,20,4").unwrap()[0].1[9..25],
        *b"\x001234\0\0\0\0\0\x005678\0"
    );
    for (size, map) in [
        (&b"100"[..], &b"10,4,12,4"[..]),    // overlap
        (b"100", b"20,4,10,4"),              // backwards
        (b"23", b"10,4,20,4"),               // past the end
        (b"100", b"10,4,20,5"),              // more than is stored
        (b"100", b"10,4"),                   // less than is stored
        (b"100", b"10,4,20"),                // half a part
        (b"100", b"18446744073709551615,8"), // overflow
    ] {
        let result = with(size, map);
        assert!(
            matches!(result, Err(TarError::Sparse(_))),
            "{map:?}: {result:?}"
        );
    }
    let version = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"100"),
    ];
    for map in [
        &b"999999\n"[..],
        b"x\n",
        b"1\n1\n",
        b"111111111111111111111111\n",
    ] {
        let mut content = map.to_vec();
        content.resize(512, b'7');
        let archive = Archive::new()
            .pax(&version)
            .file("sparse", &content)
            .finish();
        let result = read(&archive[..]);
        assert!(
            matches!(result, Err(TarError::Sparse(_) | TarError::SparseParts(_))),
            "{map:?}: {result:?}"
        );
    }
}

/// Archives that are damaged in a few places, which random bytes alone never resemble.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (damage, any::<bool>()).prop_map(|(damage, repair)| {
        let mut bytes = Archive::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"9"),
            ])
            .file("sparse", &[&b"1\n3\n4\n"[..], &[0; 506], b"1234"].concat())
            .pax(&[
                ("path", b"name"),
                ("mtime", b"1.5"),
                ("SCHILY.xattr.user.a", b"b"),
            ])
            .file("file", b"content")
            .symlink("link", "target")
            .finish();
        for (index, value) in damage {
            let index = index.index(bytes.len());
            bytes[index] = value;
            if repair {
                // With a right checksum, the damage gets past the header.
                let block = index / 512 * 512;
                let sum: u32 = (block..block + 512)
                    .map(|at| {
                        if (block + 148..block + 156).contains(&at) {
                            32
                        } else {
                            u32::from(bytes[at])
                        }
                    })
                    .sum();
                bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_archives_never_panic(bytes in damaged()) {
        // Sizes are not followed here: an archive may claim any.
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(entry)) = reader.next_entry() {
            let stored: u64 = entry.extents.iter().map(|extent| extent.length).sum();
            prop_assert!(stored <= entry.size);
        }
    }

    #[test]
    fn bytes_of_any_kind_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut reader = Reader::new(&bytes[..]);
        while let Ok(Some(_)) = reader.next_entry() {}
    }

    #[test]
    fn pax_records_of_any_kind_never_panic(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b' '), Just(b'='), Just(b'\n'), b'0'..=b'9'], 0..200)
    ) {
        let archive = Archive::new()
            .raw(Archive::header(EntryType::XHeader), b"pax", &bytes)
            .file("file", b"content")
            .finish();
        let mut reader = Reader::new(&archive[..]);
        while let Ok(Some(_)) = reader.next_entry() {}
    }

    #[test]
    fn pax_values_come_through(value in prop::collection::vec(1u8.., 1..300)) {
        let archive = Archive::new().pax(&[("path", &value), ("SCHILY.xattr.user.x", &value)]);
        let entries = read(&archive.file("file", b"").finish()[..]).unwrap();
        prop_assert_eq!(&entries[0].0.path, &value);
        prop_assert_eq!(&entries[0].0.xattrs[0].1, &value);
    }
}
