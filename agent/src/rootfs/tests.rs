//! Paths that try to leave the root, and paths that must be made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};

use super::{Missing, Rootfs};

fn rootfs(path: &Path) -> Rootfs {
    Rootfs::new(
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap(),
    )
}

#[test]
fn missing_directories_and_files_are_made() {
    let top = tempfile::tempdir().unwrap();
    let root = rootfs(top.path());
    root.open_or_create("/a/b/./c", Missing::Directory).unwrap();
    root.open_or_create("a/../d/file", Missing::File).unwrap();
    assert!(top.path().join("a/b/c").is_dir());
    assert!(top.path().join("d/file").is_file());
    assert!(root.find("/nothing/here").unwrap().is_none());
    assert!(root.find("/d/file/below").unwrap().is_none());
}

#[test]
fn a_dangling_link_is_followed_inside_the_root() {
    let top = tempfile::tempdir().unwrap();
    fs::create_dir_all(top.path().join("etc")).unwrap();
    symlink(
        "../run/resolve/stub.conf",
        top.path().join("etc/resolv.conf"),
    )
    .unwrap();
    symlink("/run/other", top.path().join("etc/absolute")).unwrap();
    let root = rootfs(top.path());
    root.open_or_create("/etc/resolv.conf", Missing::File)
        .unwrap();
    root.open_or_create("/etc/absolute/x", Missing::Directory)
        .unwrap();
    assert!(top.path().join("run/resolve/stub.conf").is_file());
    assert!(top.path().join("run/other/x").is_dir());
}

#[test]
fn links_and_dots_stay_inside_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let top = tempfile::tempdir().unwrap();
    symlink(outside.path(), top.path().join("absolute")).unwrap();
    symlink("../../../../../../..", top.path().join("up")).unwrap();
    let root = rootfs(top.path());
    root.open_or_create("/absolute/made", Missing::File)
        .unwrap();
    root.open_or_create("/up/../../made", Missing::Directory)
        .unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(top.path().join("made").is_dir());
}

#[test]
fn a_loop_of_links_is_an_error() {
    let top = tempfile::tempdir().unwrap();
    symlink("b", top.path().join("a")).unwrap();
    symlink("a", top.path().join("b")).unwrap();
    let error = rootfs(top.path())
        .open_or_create("/a/x", Missing::File)
        .unwrap_err();
    assert_eq!(
        crate::errno::chain(&error),
        "/a/x in the container's root: too many levels of symbolic links"
    );
}

proptest! {
    /// Whatever the links and the path, nothing appears outside the root.
    #[test]
    fn nothing_is_made_outside(
        links in prop::collection::vec(("[ab]", "(/|\\.\\./|[abc]/){0,5}[abc]?"), 0..3),
        path in "(/|\\.\\./|\\./|[abc]/){0,6}[abc]",
    ) {
        let parent = tempfile::tempdir().unwrap();
        let top = parent.path().join("top");
        fs::create_dir(&top).unwrap();
        for (name, target) in links {
            if !target.is_empty() {
                let _ = symlink(target, top.join(name));
            }
        }
        let _ = rootfs(&top).open_or_create(&path, Missing::Directory);
        prop_assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
