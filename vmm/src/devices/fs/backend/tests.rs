//! What cannot be seen through the device.

use std::{
    ffi::CString,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::fs::{Mode, OFlags, open};

use super::{
    Share,
    descriptors::{DescriptorShare, Limits},
};

fn limited(root: OwnedFd, cached: u64, open: u64) -> Share {
    let limits = Limits {
        cached: DescriptorShare::with_limit(cached),
        open: DescriptorShare::with_limit(open),
    };
    Share::new(root, limits).unwrap()
}

fn name(name: &str) -> CString {
    CString::new(name).unwrap()
}

fn open_path(path: &Path) -> OwnedFd {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    open(path, flags, Mode::empty()).unwrap()
}

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for index in 0..20 {
        fs::write(dir.path().join(format!("{index}")), index.to_string()).unwrap();
    }
    fs::create_dir(dir.path().join("dir")).unwrap();
    std::os::unix::fs::symlink("0", dir.path().join("link")).unwrap();
    dir
}

#[test]
fn files_beyond_the_limit_are_found_by_handle() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tree();
    // Room for the root, and the files 0 and 1.
    let share = limited(open_path(dir.path()), 3, 100);
    let look_up = |text: &str| share.look_up(ROOT_ID, &name(text));
    let entries: Vec<_> = (0..20)
        .map(|index| match look_up(&index.to_string()) {
            // A file system without handles.
            Err(error) if error.raw_os_error() == Some(libc::ENFILE) => None,
            entry => Some(entry.unwrap().inode),
        })
        .collect();
    let Some(entries) = entries.into_iter().collect::<Option<Vec<_>>>() else {
        return;
    };
    for (index, inode) in entries.iter().enumerate() {
        let (status, _) = share.get_attributes(*inode).unwrap();
        let host = fs::metadata(dir.path().join(index.to_string())).unwrap();
        assert_eq!(status.st_ino, host.ino());
        assert_eq!(look_up(&index.to_string()).unwrap().inode, *inode);
    }
    let link = look_up("link").unwrap().inode;
    assert_eq!(share.read_symlink(link).unwrap(), b"0");
    let parent = look_up("dir").unwrap().inode;
    fs::write(dir.path().join("dir/file"), "").unwrap();
    share.look_up(parent, &name("file")).unwrap();
    // The file is gone, and another one may have its inode number now.
    fs::remove_file(dir.path().join("19")).unwrap();
    fs::write(dir.path().join("new"), "").unwrap();
    let gone = share.get_attributes(entries[19]).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ESTALE));
    let new = look_up("new").unwrap().inode;
    assert!(!entries.contains(&new));
    share.inodes.forget(&[(entries[19], 2)]);
    share.get_attributes(new).unwrap();
    assert_eq!(look_up("new").unwrap().inode, new);
}

#[test]
fn open_files_are_bounded() {
    let dir = tree();
    let share = limited(open_path(dir.path()), 100, 3);
    let file = share.look_up(ROOT_ID, &name("0")).unwrap().inode;
    let handles: Vec<u64> = (0..3)
        .map(|_| share.open_file(file, 0, 0).unwrap().0)
        .collect();
    let refused = share.open_file(file, 0, 0).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENFILE));
    share.handles.remove(handles[0], file).unwrap();
    share.open_file(file, 0, 0).unwrap();
    share.end();
    share.open_directory(ROOT_ID).unwrap();
}
