//! The `/proc` that a container's processes see, read for the host: engines look there for what a
//! container runs (`podman top`). Called by [`crate::server`].
//!
//! The container may have put anything at its `/proc`. So nothing is read but what the kernel's own
//! proc file system says there, by a path that leads through no link and no other mount.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, RawDir, ResolveFlags, fstat, fstatfs, openat2,
    readlinkat,
};
use rustix::io::Errno;

/// Most bytes of a file that are read: well below what a frame carries.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Bytes of the buffer for a directory's entries.
const DIRECTORY_BYTES: usize = 4096;

/// Reads `path` in the `/proc` of process `pid`: what a file holds, where a link leads, the pids in
/// a directory, a line each; empty is `/proc` itself. `None` if it is not there, or the process has
/// ended.
///
/// # Errors
/// The kernel's.
pub fn read(pid: u32, path: &str) -> io::Result<Option<String>> {
    match read_in(&format!("/proc/{pid}/root"), path) {
        Ok(text) => Ok(Some(text)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH | Errno::NOTDIR) => Ok(None),
            _ => Err(error),
        },
    }
}

fn read_in(root: &str, path: &str) -> io::Result<String> {
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let root = open(CWD, root, directory, ResolveFlags::empty())?;
    let in_root = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let proc = open(&root, "proc", directory, in_root)?;
    if fstatfs(&proc)?.f_type != PROC_SUPER_MAGIC {
        return Err(Errno::NOENT.into());
    }
    let path = if path.is_empty() { "." } else { path };
    let below = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let found = open(&proc, path, OFlags::PATH | OFlags::NOFOLLOW, below)?;
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::Symlink => {
            let target = readlinkat(&found, "", Vec::new())?;
            Ok(target.to_string_lossy().into_owned())
        }
        FileType::Directory => pids(&open(
            &proc,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY,
            below,
        )?),
        _ => {
            let file = open(&proc, path, OFlags::RDONLY | OFlags::NONBLOCK, below)?;
            let mut bytes = Vec::new();
            File::from(file)
                .take(FILE_BYTES_MAX)
                .read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

fn open(
    directory: impl AsFd,
    path: &str,
    flags: OFlags,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    Ok(openat2(directory, path, flags, Mode::empty(), resolve)?)
}

fn pids(directory: &OwnedFd) -> io::Result<String> {
    let mut buffer = Vec::with_capacity(DIRECTORY_BYTES);
    let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
    let mut text = String::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_str().unwrap_or_default();
        if name.parse::<u32>().is_ok() {
            text.push_str(name);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_links_and_pids_are_read() {
        let own = std::process::id();
        let read = |path: &str| read(own, path).unwrap();
        let comm = read(&format!("{own}/comm")).unwrap();
        assert_eq!(comm, std::fs::read_to_string("/proc/self/comm").unwrap());
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap();
        assert_eq!(
            read(&format!("{own}/ns/pid")).as_deref(),
            namespace.to_str()
        );
        let pids = read("").unwrap();
        assert!(pids.lines().any(|pid| pid == own.to_string()), "{pids}");
        for nothing in ["nope", &format!("{own}/nope"), "uptime/x"] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
        assert_eq!(super::read(u32::MAX, "uptime").unwrap(), None);
    }

    #[test]
    fn nothing_but_proc_is_read() {
        let own = std::process::id();
        for outside in [
            "../etc/passwd",
            "/etc/passwd",
            "self/comm",
            &format!("{own}/root/etc/passwd"),
        ] {
            let error = read(own, outside).unwrap_err();
            let errno = Errno::from_io_error(&error);
            assert!(
                matches!(errno, Some(Errno::XDEV | Errno::LOOP)),
                "{outside}: {error}"
            );
        }
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("proc")).unwrap();
        std::fs::write(root.path().join("proc/uptime"), "1 1\n").unwrap();
        let error = read_in(root.path().to_str().unwrap(), "uptime").unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NOENT));
    }
}
