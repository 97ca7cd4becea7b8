//! What the table of mounts says, and which of them the guest has to be told of.

use super::*;

const TABLE: &[u8] = b"\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
22 21 0:5 / /data rw,nosuid,noatime - tmpfs none rw\n\
23 22 0:6 / /data/a\\040b ro,nodev,relatime master:2 - tmpfs none rw\n\
24 23 0:7 / /data/a\\040b/same ro,nodev,relatime - tmpfs none rw\n\
25 22 0:8 / /data/plain rw,relatime - tmpfs none rw\n\
26 25 0:9 / /data/plain rw - tmpfs none rw\n\
27 21 0:10 / /database rw,noexec,relatime - tmpfs none rw\n";

fn found(top: &str, top_flags: u64, is_mount: impl Fn(&Path) -> bool) -> Vec<(String, u64)> {
    let found = below(Path::new(top), top_flags, &parse(TABLE), is_mount);
    found.into_iter().map(|at| (at.path, at.flags)).collect()
}

#[test]
fn mounts_that_differ_from_what_they_are_on_are_listed() {
    let inside = libc::MS_RDONLY | libc::MS_NODEV;
    let expected = [
        ("a b".to_owned(), inside),
        ("plain".to_owned(), libc::MS_STRICTATIME),
    ];
    let other = libc::MS_NOSUID | libc::MS_NOATIME;
    assert_eq!(found("/data", other, |_| true), expected);
    // Not a word about what is as its surroundings are, nor about other flags.
    assert_eq!(
        found("/data", inside | libc::MS_BIND, |_| true),
        expected[1..]
    );
    // A mount that is covered by another, or cannot be cloned.
    assert_eq!(
        found("/data", other, |path| path != Path::new("a b")),
        [("a b/same".to_owned(), inside), expected[1].clone()]
    );
    assert_eq!(found("/data/plain", 0, |_| true), []);
    assert_eq!(
        found("/", 0, |_| true)[0],
        ("data".to_owned(), libc::MS_NOSUID | libc::MS_NOATIME)
    );
}

#[test]
fn both_sources_of_flags_agree() {
    let directory = tempfile::tempdir().unwrap();
    for path in [directory.path(), Path::new("/proc"), Path::new("/dev")] {
        let found = to_mount_flags(rustix::fs::statvfs(path).unwrap().f_flag);
        let table = parse(&fs::read("/proc/self/mountinfo").unwrap());
        let (_, listed) = table
            .iter()
            .filter(|(mount, _)| path.starts_with(mount))
            .max_by_key(|(mount, _)| mount.as_os_str().len())
            .unwrap();
        assert_eq!(found, *listed, "{}", path.display());
    }
}
