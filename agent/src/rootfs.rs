//! Paths inside a container's root, opened so that no symbolic link leads out of it. Called by the
//! set-up of mounts and devices, before the container's own code ever runs.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawMode, ResolveFlags, mkdirat, mknodat, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;

use crate::errno::Os;

/// Symbolic links followed in one path before it counts as a loop, as in the kernel.
const LINKS_MAX: usize = 40;

/// A path in the root could not be opened or created.
#[derive(Debug, thiserror::Error)]
#[error("{path} in the container's root")]
pub struct PathError {
    path: String,
    #[source]
    source: Os,
}

/// What a path is created as when it is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A directory, 0755.
    Directory,
    /// An empty file, 0644.
    File,
}

/// The root directory of a container under construction.
#[derive(Debug)]
pub struct Rootfs {
    directory: OwnedFd,
}

impl Rootfs {
    /// Takes the root, a descriptor that allows looking up names in it.
    pub fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// The root directory itself.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens `path` as if the root were `/`.
    ///
    /// # Errors
    /// Those of `openat2(2)`.
    pub fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, PathError> {
        self.open_in_root(path, flags)
            .map_err(|errno| failed(path, errno))
    }

    /// Opens `path` with `O_PATH`; `None` when it, or a directory on the way, does not exist.
    ///
    /// # Errors
    /// Any other failure of `openat2(2)`.
    pub fn find(&self, path: &str) -> Result<Option<OwnedFd>, PathError> {
        self.find_with(path, OFlags::PATH)
    }

    /// As [`Rootfs::find`], but what is found is a symbolic link if `path` ends in the name of one,
    /// whatever slashes and dots follow the name.
    ///
    /// # Errors
    /// Any other failure of `openat2(2)`.
    pub fn find_itself(&self, path: &str) -> Result<Option<OwnedFd>, PathError> {
        let mut name = path;
        while let Some(rest) = name.strip_suffix('/').or_else(|| name.strip_suffix("/.")) {
            name = rest;
        }
        self.find_with(name, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn find_with(&self, path: &str, flags: OFlags) -> Result<Option<OwnedFd>, PathError> {
        match self.open_in_root(path, flags) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(failed(path, errno)),
        }
    }

    /// Opens `path` with `O_PATH`, creating it and the directories on the way when missing. A
    /// dangling symbolic link is followed inside the root and its target created.
    ///
    /// # Errors
    /// When something on the way is no directory, or the file system refuses.
    pub fn open_or_create(&self, path: &str, missing: Missing) -> Result<OwnedFd, PathError> {
        match self.open_in_root(path, OFlags::PATH) {
            Err(Errno::NOENT) => self
                .create(path, missing)
                .map_err(|errno| failed(path, errno)),
            result => result.map_err(|errno| failed(path, errno)),
        }
    }

    fn open_in_root(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        loop {
            // EAGAIN means that something was renamed meanwhile, which only another container
            // that shares a volume can do.
            match openat2(
                &self.directory,
                if path.is_empty() { "/" } else { path },
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Walks `path` name by name. The directories passed are held open, so `..` is the way back
    /// along them and cannot be diverted by a rename.
    fn create(&self, path: &str, missing: Missing) -> Result<OwnedFd, Errno> {
        let mut names: VecDeque<String> = components(path);
        let mut passed: Vec<OwnedFd> = vec![self.directory.try_clone().map_err(to_errno)?];
        let mut links = 0;
        while let Some(name) = names.pop_front() {
            if name == ".." {
                if passed.len() > 1 {
                    passed.pop();
                }
                continue;
            }
            let parent = passed.last().ok_or(Errno::NOENT)?;
            match FileType::from_raw_mode(mode_of(parent, &name, names.is_empty(), missing)?) {
                FileType::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP);
                    }
                    let target = readlinkat(parent, &name, Vec::new())?;
                    let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
                    if target.starts_with('/') {
                        passed.truncate(1);
                    }
                    for name in components(&target).into_iter().rev() {
                        names.push_front(name);
                    }
                }
                _ => {
                    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    passed.push(openat(parent, &name, flags, Mode::empty())?);
                }
            }
        }
        passed.pop().ok_or(Errno::NOENT)
    }
}

/// Mode of `name` in `parent`, made first if there is no such name.
fn mode_of(parent: &OwnedFd, name: &str, last: bool, missing: Missing) -> Result<RawMode, Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => return Ok(stat.st_mode),
        Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    let made = if last && missing == Missing::File {
        mknodat(
            parent,
            name,
            FileType::RegularFile,
            Mode::from_raw_mode(0o644),
            0,
        )
    } else {
        mkdirat(parent, name, Mode::from_raw_mode(0o755))
    };
    match made {
        // Another container may have been faster in a shared volume.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    Ok(statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
}

fn components(path: &str) -> VecDeque<String> {
    path.split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .map(str::to_owned)
        .collect()
}

fn failed(path: &str, errno: Errno) -> PathError {
    PathError {
        path: path.to_owned(),
        source: Os(errno),
    }
}

fn to_errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests;
