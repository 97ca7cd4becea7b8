//! Tests of the initramfs: the bytes, their determinism, and what `cpio` makes of them.

use std::io::Write;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::{AgentFileError, Archive, ArchiveError, DeviceKind, InitramfsError, guest_initramfs};

/// The smallest file that passes for a static executable: an ELF header without segments.
fn static_elf(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16] = 3;
    file[18] = 62;
    file[32] = 64;
    file.extend_from_slice(payload);
    file
}

/// The archive as `cpio` lists it, with one line per entry.
fn cpio(archive: &[u8], arguments: &[&str]) -> String {
    let mut child = Command::new("cpio")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need `cpio`: apt-get install cpio");
    let mut stdin = child.stdin.take().unwrap();
    let bytes = archive.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn header_is_exact() {
    let mut archive = Archive::new();
    archive
        .device("console", DeviceKind::Character, 0o600, 5, 1)
        .unwrap();
    let expected = concat!(
        "070701",
        "00000001", // inode
        "00002180", // mode: character device, 0600
        "00000000", // uid
        "00000000", // gid
        "00000001", // links
        "00000000", // mtime
        "00000000", // size
        "00000000",
        "00000000",
        "00000005", // major
        "00000001", // minor
        "00000008", // length of the name
        "00000000",
        "console\0",
        "\0\0",
        "070701",
        "00000000",
        "00000000",
        "00000000",
        "00000000",
        "00000001",
        "00000000",
        "00000000",
        "00000000",
        "00000000",
        "00000000",
        "00000000",
        "0000000B",
        "00000000",
        "TRAILER!!!\0",
        "\0\0\0",
    );
    assert_eq!(
        String::from_utf8(archive.to_bytes().unwrap()).unwrap(),
        expected
    );
}

#[test]
fn guest_initramfs_holds_the_agent_and_nothing_else() {
    let agent = static_elf(&[7; 10_000]);
    let archive = guest_initramfs(&agent).unwrap();
    assert_eq!(
        cpio(&archive, &["-t", "--quiet"]),
        "dev\ndev/console\ninit\n"
    );
    let listing = cpio(&archive, &["-tv", "--quiet", "-n"]);
    let lines: Vec<&str> = listing.lines().collect();
    assert!(lines[0].starts_with("drwxr-xr-x"), "{listing}");
    assert!(
        lines[1].starts_with("crw-------") && lines[1].contains("5,   1"),
        "{listing}"
    );
    assert!(
        lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 10064 "),
        "{listing}"
    );
    assert_eq!(
        cpio(&archive, &["-i", "--to-stdout", "--quiet", "init"]).as_bytes(),
        agent
    );
}

#[test]
fn same_agent_gives_same_bytes_and_starts_on_a_page() {
    let agent = static_elf(&[7; 10_000]);
    let archive = guest_initramfs(&agent).unwrap();
    assert_eq!(archive, guest_initramfs(&agent).unwrap());
    let start = archive
        .windows(agent.len())
        .position(|window| window == agent)
        .unwrap();
    assert_eq!(start % 4096, 0);
    assert_eq!(archive.len() % 4, 0);
}

#[test]
fn what_is_no_static_executable_is_refused() {
    let refused = |file: &[u8]| match guest_initramfs(file) {
        Err(InitramfsError::Agent(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(b""), AgentFileError::NotElf);
    assert_eq!(refused(b"#!/bin/sh\n"), AgentFileError::NotElf);
    let mut arm = static_elf(&[]);
    arm[18] = 183;
    assert_eq!(refused(&arm), AgentFileError::NotExecutable);
    let mut short = static_elf(&[]);
    short[56] = 1;
    assert_eq!(refused(&short), AgentFileError::Truncated);
    short[32..40].fill(0xff);
    assert_eq!(refused(&short), AgentFileError::Truncated);
    let mut segment = [0; 56];
    segment[0] = 3;
    let mut dynamic = static_elf(&segment);
    dynamic[56] = 1;
    assert_eq!(refused(&dynamic), AgentFileError::Dynamic);
}

#[test]
fn entries_that_linux_could_not_unpack_are_refused() {
    let mut archive = Archive::new();
    for path in [
        "",
        "/",
        "/init",
        "a//b",
        "a/",
        ".",
        "..",
        "a/../b",
        "a\0b",
        "TRAILER!!!",
    ] {
        let result = archive.directory(path, 0o755);
        assert!(
            matches!(result, Err(ArchiveError::Path(_))),
            "{path:?}: {result:?}"
        );
    }
    let long = "x".repeat(4096);
    assert!(matches!(
        archive.directory(&long, 0o755),
        Err(ArchiveError::TooLong(_))
    ));
    assert!(matches!(
        archive.symlink("link", &long),
        Err(ArchiveError::TooLong(_))
    ));
    assert!(matches!(
        archive.symlink("link", ""),
        Err(ArchiveError::Path(_))
    ));
    assert!(matches!(
        archive.fifo("a/b", 0o644),
        Err(ArchiveError::NoParent(_))
    ));
    archive.fifo("pipe", 0o644).unwrap();
    assert!(matches!(
        archive.fifo("pipe", 0o644),
        Err(ArchiveError::Duplicate(_))
    ));
    assert!(matches!(
        archive.fifo("pipe/x", 0o644),
        Err(ArchiveError::NoParent(_))
    ));
    assert!(matches!(
        archive.fifo("other", 0o10_000),
        Err(ArchiveError::Mode { .. })
    ));
    let device = archive.device("disk", DeviceKind::Block, 0o600, 4096, 0);
    assert!(matches!(device, Err(ArchiveError::DeviceNumber { .. })));
}

/// Entries in any order: a name, a kind, permission bits and content.
fn entries() -> impl Strategy<Value = Vec<(String, u8, u32, Vec<u8>)>> {
    let content = prop::collection::vec(any::<u8>(), 0..9000);
    let entry = ("[a-zA-Z0-9_.-]{1,40}", 0u8..5, 0u32..0o10_000, content);
    prop::collection::vec(entry, 0..20).prop_map(|mut entries| {
        entries.retain(|(name, ..)| !matches!(name.as_str(), "." | ".."));
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        entries.dedup_by(|one, other| one.0 == other.0);
        entries
    })
}

fn add<'a>(archive: &mut Archive<'a>, (name, kind, mode, content): &'a (String, u8, u32, Vec<u8>)) {
    match kind {
        0 => archive.directory(name, *mode),
        1 => archive.symlink(name, "a/../target"),
        2 => archive.device(name, DeviceKind::Block, *mode, 8, 1 << 19),
        3 => archive.fifo(name, *mode),
        _ => archive.file(name, *mode, content),
    }
    .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn order_of_adding_does_not_matter_and_cpio_agrees(
        entries in entries(),
        seed in any::<u64>(),
    ) {
        let mut sorted = Archive::new();
        entries.iter().for_each(|entry| add(&mut sorted, entry));
        let mut order: Vec<usize> = (0..entries.len()).collect();
        order.sort_by_key(|index| seed.rotate_left(*index as u32 * 7).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut shuffled = Archive::new();
        order.into_iter().for_each(|index| add(&mut shuffled, &entries[index]));
        let bytes = sorted.to_bytes().unwrap();
        prop_assert_eq!(&bytes, &shuffled.to_bytes().unwrap());
        let names: String = entries.iter().map(|(name, ..)| format!("{name}\n")).collect();
        prop_assert_eq!(cpio(&bytes, &["-t", "--quiet"]), names);
    }
}
