//! The files in a container's directory: JSON each, replaced in one step. Called by the state itself
//! and by others that note what `delete` has to undo.

use std::io::{Read as _, Write as _};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{StateDir, StateError, io_error};

impl StateDir {
    /// Reads the file `name`, if there is one.
    ///
    /// # Errors
    /// [`StateError::Damaged`] or [`StateError::Io`].
    pub(crate) fn read_part<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, StateError> {
        let path = || self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error("open", &path(), error)),
        };
        let mut text = Vec::new();
        std::fs::File::from(file)
            .read_to_end(&mut text)
            .map_err(|source| StateError::Io {
                action: "read",
                path: path(),
                source,
            })?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StateError::Damaged {
                path: path(),
                source,
            })
    }

    /// Replaces the file `name` in one step.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub(crate) fn write_part<T: Serialize>(&self, name: &str, part: &T) -> Result<(), StateError> {
        let path = || self.path.join(name);
        let text = serde_json::to_vec(part).map_err(|source| StateError::Damaged {
            path: path(),
            source,
        })?;
        let new = format!("{name}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, &new, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| io_error("write", &path(), error))?;
        std::fs::File::from(file)
            .write_all(&text)
            .map_err(|source| StateError::Io {
                action: "write",
                path: path(),
                source,
            })?;
        rustix::fs::renameat(&self.fd, &new, &self.fd, name)
            .map_err(|error| io_error("write", &path(), error))
    }
}
