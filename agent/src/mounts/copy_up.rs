//! Fills a new tmpfs with a copy of the directory it covers (`tmpcopyup`). Called when the mount
//! is made, before anything of the container runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, mkdirat, mknodat,
    openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::MountError;
use crate::errno::Os;

/// Directories within directories that are followed: the deepest path the kernel accepts at once
/// has 2048 one-letter names, and each level costs two descriptors and a stack frame.
const DEPTH_MAX: usize = 256;

/// Copies what lies in `from` to `to`, with owners and modes.
pub(super) fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), MountError> {
    copy_directory(from, to, 0)
}

fn copy_directory(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    depth: usize,
) -> Result<(), MountError> {
    let failed = |name: &str, errno| MountError::CopyUp {
        name: name.to_owned(),
        source: Os(errno),
    };
    if depth > DEPTH_MAX {
        return Err(failed(".", Errno::LOOP));
    }
    let entries = Dir::read_from(from).map_err(|errno| failed(".", errno))?;
    for entry in entries {
        let entry = entry.map_err(|errno| failed(".", errno))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let failed = |errno| failed(&name.to_string_lossy(), errno);
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let below = copy_entry(from, to, name, &stat).map_err(failed)?;
        if let Some((from, to)) = below {
            copy_directory(from.as_fd(), to.as_fd(), depth + 1)?;
        }
        set_owner(to, name, &stat).map_err(failed)?;
    }
    Ok(())
}

/// Copies one entry; for a directory returns both sides, open, for its contents.
fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    stat: &Stat,
) -> Result<Option<(OwnedFd, OwnedFd)>, Errno> {
    let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, Mode::RWXU)?;
            let read = read | OFlags::DIRECTORY;
            let from = openat(from, name, read, Mode::empty())?;
            return Ok(Some((from, openat(to, name, read, Mode::empty())?)));
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?, to, name)?,
        FileType::RegularFile => {
            let mut from = std::fs::File::from(openat(from, name, read, Mode::empty())?);
            let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut to = std::fs::File::from(openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
            io::copy(&mut from, &mut to)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        kind => mknodat(
            to,
            name,
            kind,
            Mode::from_raw_mode(stat.st_mode),
            stat.st_rdev,
        )?,
    }
    Ok(None)
}

fn set_owner(to: BorrowedFd<'_>, name: &std::ffi::CStr, stat: &Stat) -> Result<(), Errno> {
    chownat(
        to,
        name,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    // After the owner, whose change clears set-user-id bits.
    chmodat(
        to,
        name,
        Mode::from_raw_mode(stat.st_mode),
        AtFlags::empty(),
    )
}
