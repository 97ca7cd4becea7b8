//! Control groups, version 2: one directory for each container. Called by [`crate::container`];
//! processes are put into it at their birth (`CLONE_INTO_CGROUP`), so nothing here moves any.
//!
//! Source: kernel `Documentation/admin-guide/cgroup-v2.rst`.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use lazaret_protocol::container;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat, unlinkat,
};
use rustix::io::Errno;
use tokio::io::Interest;

use crate::device_filter::{self, TooManyRules};
use crate::errno::Os;
use crate::sys;

mod live;

/// Directories within a container's cgroup that are removed and searched for processes: the
/// default of `cgroup.max.depth` is unlimited, but a path of the kernel's maximum length holds no
/// more than this many sensible names.
const DEPTH_MAX: usize = 128;

/// Files a container's root user owns if its user namespace is its own: what the kernel lists in
/// `/sys/kernel/cgroup/delegate`.
const DELEGATED: [&str; 4] = [
    "",
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.subtree_control",
];

/// A step on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Making the directory.
    #[error("create cgroup {path}")]
    Create {
        /// Its path.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Reading or writing a file.
    #[error("{action} {path}")]
    File {
        /// What was done, with the value if one was written.
        action: String,
        /// Path of the file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// A file name that is a path.
    #[error("cgroup file {0:?} is not a plain name")]
    Name(String),
    /// More files than one answer has room for.
    #[error("{0} files of a cgroup are too many for one call")]
    TooMany(usize),
    /// A cgroup that is not below the container's.
    #[error("{0} is not a sub cgroup path")]
    NotBelow(String),
    /// The device rules.
    #[error(transparent)]
    Rules(#[from] TooManyRules),
    /// Loading or attaching the program that enforces the device rules.
    #[error("{action} the device program of cgroup {path}")]
    Devices {
        /// What was done.
        action: &'static str,
        /// Path of the cgroup.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The container's processes did not end or freeze.
    #[error("wait for cgroup {path}")]
    Events {
        /// Path of the cgroup.
        path: String,
        /// What failed.
        #[source]
        source: Os,
    },
}

/// The cgroup of one container. Dropping it leaves the directory; see [`Cgroup::remove`].
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: OwnedFd,
}

impl Cgroup {
    /// Makes the cgroup `id` below `parent` and sets it up. On failure nothing is left.
    ///
    /// # Errors
    /// [`CgroupError`], naming the file and the value.
    pub fn create(
        parent: &Path,
        id: &str,
        wanted: &container::Cgroup,
    ) -> Result<Self, CgroupError> {
        let path = parent.join(directory_name(id));
        let failed = |errno| CgroupError::Create {
            path: path.display().to_string(),
            source: Os(errno),
        };
        mkdirat(CWD, &path, Mode::from_raw_mode(0o755)).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup = openat(CWD, &path, flags, Mode::empty())
            .map_err(failed)
            .map(|directory| Self {
                path: path.clone(),
                directory,
            });
        let configured = cgroup.and_then(|cgroup| cgroup.configure(wanted).map(|()| cgroup));
        if configured.is_err() {
            // It has no process and no child yet, so this cannot fail for a reason of ours.
            let _ = unlinkat(CWD, &path, AtFlags::REMOVEDIR);
        }
        configured
    }

    /// The directory, for `CLONE_INTO_CGROUP`.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn configure(&self, wanted: &container::Cgroup) -> Result<(), CgroupError> {
        for (name, value) in &wanted.files {
            if name.contains('/') || name.is_empty() || name.starts_with("..") {
                return Err(CgroupError::Name(name.clone()));
            }
            self.write(name, value)?;
        }
        if wanted.device_rules.is_empty() {
            return Ok(());
        }
        let failed = |action| {
            move |errno| CgroupError::Devices {
                action,
                path: self.path.display().to_string(),
                source: Os(errno),
            }
        };
        let program = device_filter::compile(&wanted.device_rules)?;
        let program = sys::load_device_program(&program).map_err(failed("load"))?;
        sys::attach_device_program(&program, self.directory.as_fd()).map_err(failed("attach"))
    }

    /// Hands the cgroup to the root user of a container's user namespace.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<(), CgroupError> {
        for name in DELEGATED {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            chownat(
                &self.directory,
                name,
                Some(uid),
                Some(gid),
                AtFlags::EMPTY_PATH,
            )
            .map_err(|errno| {
                self.file_error(format!("change the owner to {uid}:{gid} of"), name, errno)
            })?;
        }
        Ok(())
    }

    /// Kills every process of the container at once.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Freezes or thaws the container and waits until it is so.
    ///
    /// # Errors
    /// [`CgroupError::File`] and [`CgroupError::Events`].
    pub async fn freeze(&self, frozen: bool) -> Result<(), CgroupError> {
        let value = if frozen { "1" } else { "0" };
        self.write("cgroup.freeze", value)?;
        self.wait_for(if frozen { "frozen 1" } else { "frozen 0" })
            .await
    }

    /// Waits until no process is left. Zombies do not count.
    ///
    /// # Errors
    /// [`CgroupError::Events`].
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        self.wait_for("populated 0").await
    }

    /// Removes the directory and those the container made in it; no process may be left.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove_below(self.directory.as_fd(), 0)
            .and_then(|()| unlinkat(CWD, &self.path, AtFlags::REMOVEDIR))
            .or_else(|errno| match errno {
                Errno::NOENT => Ok(()),
                _ => Err(self.file_error("remove".to_owned(), "", errno)),
            })
    }

    /// Pids of all processes in the container, ascending, in the agent's pid namespace.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        list_below(self.directory.as_fd(), 0, &mut pids)
            .map_err(|errno| self.file_error("read".to_owned(), "cgroup.procs", errno))?;
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Waits until `cgroup.events` has the line `line`. The kernel raises `POLLPRI` on the open
    /// file at each change.
    async fn wait_for(&self, line: &str) -> Result<(), CgroupError> {
        let failed = |error: std::io::Error| CgroupError::Events {
            path: self.path.display().to_string(),
            source: Os::from(error),
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.directory, "cgroup.events", flags, Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        if has_line(file.as_fd(), line).map_err(failed)? {
            return Ok(());
        }
        let interest = Interest::PRIORITY | Interest::ERROR;
        let events = sys::watch(file, interest).map_err(failed)?;
        // Reading is what arms the file, so a change before it was watched is seen as well.
        while !has_line(events.get_ref().as_fd(), line).map_err(failed)? {
            events.ready(interest).await.map_err(failed)?.clear_ready();
        }
        Ok(())
    }

    fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        write_file(self.directory.as_fd(), name, value)
            .map_err(|errno| self.file_error(format!("write {value:?} to"), name, errno))
    }

    fn file_error(&self, action: String, name: &str, errno: Errno) -> CgroupError {
        let path = match name {
            "" => self.path.clone(),
            name => self.path.join(name),
        };
        CgroupError::File {
            action,
            path: path.display().to_string(),
            source: Os(errno),
        }
    }
}

/// Gives the cgroups that will be made in `parent` every controller there is.
///
/// # Errors
/// [`CgroupError::File`].
pub fn enable_controllers(parent: &Path) -> Result<(), CgroupError> {
    let failed = |action: &str| {
        let (action, path) = (action.to_owned(), parent.display().to_string());
        move |errno: Errno| CgroupError::File {
            action,
            path,
            source: Os(errno),
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, parent, flags, Mode::empty()).map_err(failed("open"))?;
    let controllers = read_file(directory.as_fd(), "cgroup.controllers")
        .map_err(failed("read the controllers of"))?;
    let enable: Vec<String> = controllers
        .split_whitespace()
        .map(|controller| format!("+{controller}"))
        .collect();
    if enable.is_empty() {
        return Ok(());
    }
    let enable = enable.join(" ");
    write_file(directory.as_fd(), "cgroup.subtree_control", &enable)
        .map_err(failed(&format!("enable controllers {enable:?} in")))
}

/// Name of a container's directory. Files of a cgroup have a dot in their names, so a name with a
/// dot gets a character in front that no file's name begins with; two ids never get one name.
fn directory_name(id: &str) -> String {
    if id.contains('.') {
        format!("_{id}")
    } else {
        id.to_owned()
    }
}

/// Opens the cgroup a process is in, which may be one the container made in its own.
///
/// # Errors
/// The kernel's; `ENOENT` when the process has ended.
pub fn open_cgroup_of(pid: u32, mount: &Path) -> Result<OwnedFd, Os> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .ok_or(Errno::NOENT)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, mount.join(path), flags, Mode::empty())?)
}

fn write_file(directory: BorrowedFd<'_>, name: &str, value: &str) -> Result<(), Errno> {
    let file = openat(
        directory,
        name,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // The kernel takes a value in one write or not at all.
    rustix::io::write(&file, value.as_bytes()).map(|_| ())
}

fn read_file(directory: BorrowedFd<'_>, name: &str) -> Result<String, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut text = String::new();
    File::from(openat(directory, name, flags, Mode::empty())?)
        .read_to_string(&mut text)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(text)
}

/// Whether a file of the cgroup file system has `line` now.
fn has_line(file: BorrowedFd<'_>, line: &str) -> std::io::Result<bool> {
    // `cgroup.events` has two short lines; more keys would follow at the end.
    let mut text = [0; 256];
    let bytes = rustix::io::pread(file, &mut text, 0)?;
    Ok(text[..bytes]
        .split(|byte| *byte == b'\n')
        .any(|found| found == line.as_bytes()))
}

/// Calls `visit` with each directory directly in `directory`.
fn for_each_child(
    directory: BorrowedFd<'_>,
    mut visit: impl FnMut(&std::ffi::CStr) -> Result<(), Errno>,
) -> Result<(), Errno> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && !matches!(name.to_bytes(), b"." | b"..") {
            visit(name)?;
        }
    }
    Ok(())
}

fn open_child(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

fn remove_below(directory: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    for_each_child(directory, |name| {
        remove_below(open_child(directory, name)?.as_fd(), depth + 1)?;
        unlinkat(directory, name, AtFlags::REMOVEDIR)
    })
}

fn list_below(directory: BorrowedFd<'_>, depth: usize, pids: &mut Vec<u32>) -> Result<(), Errno> {
    if depth > DEPTH_MAX {
        return Err(Errno::LOOP);
    }
    let text = match read_file(directory, "cgroup.procs") {
        // A threaded cgroup; its processes are listed where its domain is.
        Err(Errno::OPNOTSUPP) => String::new(),
        result => result?,
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    for_each_child(directory, |name| match open_child(directory, name) {
        // Removed by the container meanwhile.
        Err(Errno::NOENT) => Ok(()),
        child => list_below(child?.as_fd(), depth + 1, pids),
    })
}

#[cfg(test)]
mod tests;
