//! Removes directory trees of any depth with two file descriptors and no recursion.
//!
//! Called by the unpacker for what whiteouts hide, and by [`crate::bundle`] for what a failure
//! leaves. A hostile layer can nest directories deeper than a path, a stack or a table of
//! descriptors is long (through symbolic links it made itself), so a tree is not walked down:
//! whatever is found a level below is moved up, until the top directory is empty.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::{Errno, Result};

/// Begins the names of directories on their way out; an existing name is never replaced.
const MOVED_PREFIX: &str = ".removed-";

/// How directories are opened to be read.
pub(super) const READ_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes everything in the directory `top`. Nothing else may be changing it.
pub(crate) fn empty_directory(top: BorrowedFd<'_>) -> Result<()> {
    let mut moved = 0;
    loop {
        let names = names(top)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in names {
            if remove_shallow(top, &name)? {
                continue;
            }
            let directory = rustix::fs::openat(top, &*name, READ_DIRECTORY, Mode::empty())?;
            for child in self::names(directory.as_fd())? {
                if !remove_shallow(directory.as_fd(), &child)? {
                    move_up(directory.as_fd(), &child, top, &mut moved)?;
                }
            }
            rustix::fs::unlinkat(top, &*name, AtFlags::REMOVEDIR)?;
        }
    }
}

/// Removes what is not a directory, or is an empty one; says whether it did.
fn remove_shallow(directory: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

fn move_up(
    directory: BorrowedFd<'_>,
    name: &[u8],
    top: BorrowedFd<'_>,
    moved: &mut u64,
) -> Result<()> {
    loop {
        *moved += 1;
        let target = format!("{MOVED_PREFIX}{moved}");
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(directory, name, top, &*target, flags) {
            Err(Errno::EXIST) => {}
            result => return result,
        }
    }
}

/// The names in a directory, without `.` and `..`.
pub(super) fn names(directory: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}
