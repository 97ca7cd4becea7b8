//! The cgroup of a container that lives: its figures, new values, sub-cgroups, and word of the
//! kernel killing for want of memory. Called by [`crate::container`].

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lazaret_protocol::agent::CGROUP_FILES_MAX;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use tokio::io::Interest;

use super::{Cgroup, CgroupError, read_file};
use crate::errno::Os;
use crate::sys;

impl Cgroup {
    /// Contents of the files called `names`; `None` for one that does not exist.
    ///
    /// # Errors
    /// [`CgroupError::TooMany`], [`CgroupError::Name`] and [`CgroupError::File`].
    pub fn read(&self, names: &[String]) -> Result<Vec<Option<String>>, CgroupError> {
        if names.len() > CGROUP_FILES_MAX {
            return Err(CgroupError::TooMany(names.len()));
        }
        let contents = names.iter().map(|name| {
            plain(name)?;
            match read_file(self.directory.as_fd(), name) {
                Ok(text) => Ok(Some(text)),
                // EOPNOTSUPP: a file of a controller that is switched off.
                Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(None),
                Err(errno) => Err(self.file_error("read".to_owned(), name, errno)),
            }
        });
        contents.collect()
    }

    /// Writes all of `files`, in order. If the kernel refuses one, those before it get back what
    /// they had.
    ///
    /// # Errors
    /// [`CgroupError::Name`] and [`CgroupError::File`].
    pub fn update(&self, files: &[(String, String)]) -> Result<(), CgroupError> {
        for (name, _) in files {
            plain(name)?;
        }
        let mut before: Vec<(&str, String)> = Vec::with_capacity(files.len());
        for (name, value) in files {
            let old = read_file(self.directory.as_fd(), name).unwrap_or_default();
            if let Err(error) = self.write(name, value) {
                for (name, old) in before.iter().rev() {
                    for line in restoring(name, old) {
                        // The refusal is the error to tell.
                        let _ = self.write(name, line);
                    }
                }
                return Err(error);
            }
            before.push((name, old));
        }
        Ok(())
    }

    /// Opens the cgroup at `path` below this one; `/` is this one.
    ///
    /// # Errors
    /// [`CgroupError::NotBelow`] and [`CgroupError::File`].
    pub fn open_below(&self, path: &str) -> Result<OwnedFd, CgroupError> {
        let below = path.trim_matches('/');
        if below.split('/').any(|part| part == "..") {
            return Err(CgroupError::NotBelow(path.to_owned()));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let name = if below.is_empty() { "." } else { below };
        openat2(&self.directory, name, flags, Mode::empty(), resolve)
            .map_err(|errno| self.refused(below, errno))
    }

    /// Why the cgroup at `path` below this one takes no process, in runc's words.
    #[must_use]
    pub fn refused(&self, path: &str, errno: Errno) -> CgroupError {
        self.file_error(
            "adding pid of the new process to cgroups: open".to_owned(),
            &Path::new(path.trim_matches('/'))
                .join("cgroup.procs")
                .to_string_lossy(),
            errno,
        )
    }

    /// Waits until the kernel has killed more than `seen` processes for want of memory; returns
    /// how many they are.
    ///
    /// # Errors
    /// [`CgroupError::Events`], also when the kernel does not count them.
    pub async fn wait_for_oom(&self, seen: u64) -> Result<u64, CgroupError> {
        let failed = |error: std::io::Error| CgroupError::Events {
            path: self.path.display().to_string(),
            source: Os::from(error),
        };
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.directory, "memory.events", flags, Mode::empty())
            .map_err(|errno| failed(errno.into()))?;
        let interest = Interest::PRIORITY | Interest::ERROR;
        let events = sys::watch(file, interest).map_err(failed)?;
        // Reading is what arms the file, so a change before it was watched is seen as well.
        loop {
            let mut text = [0; EVENTS_BYTES];
            let bytes = rustix::io::pread(events.get_ref(), &mut text, 0)
                .map_err(|errno| failed(errno.into()))?;
            match oom_kills(&text[..bytes]) {
                Some(kills) if kills > seen => return Ok(kills),
                Some(_) => {}
                None => return Err(failed(Errno::NODATA.into())),
            }
            events.ready(interest).await.map_err(failed)?.clear_ready();
        }
    }
}

/// Room for `memory.events`: half a dozen short lines.
const EVENTS_BYTES: usize = 1024;

fn oom_kills(events: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(events).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    value?.parse().ok()
}

fn plain(name: &str) -> Result<(), CgroupError> {
    if name.is_empty() || name.contains('/') || name.starts_with("..") {
        return Err(CgroupError::Name(name.to_owned()));
    }
    Ok(())
}

/// What brings a file back to `old`, which was read from it. Files with a line for each device
/// (`io.max`) take one line at a time, and have none where nothing is limited.
fn restoring<'a>(name: &str, old: &'a str) -> impl Iterator<Item = &'a str> {
    // An empty cpuset is written as an empty line.
    let empty = old.trim().is_empty() && name.starts_with("cpuset.");
    empty.then_some("\n").into_iter().chain(old.lines())
}
