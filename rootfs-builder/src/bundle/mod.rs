//! Writes OCI bundles: a `config.json`, with a root file system beside it or elsewhere.
//!
//! `xtask` and the `rootfs-builder` binary call it. [`from_image`] unpacks an image, and
//! [`from_directory`] takes a directory that is there. Either a bundle is complete or there is none.

mod convert;
mod spec;
mod staging;
mod user;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

pub use convert::ConvertError;
pub use spec::{Overrides, default_spec};
pub use staging::StagingError;
pub use user::UserError;

use crate::image::{Image, ImageError};
use crate::unpack::{Tree, Unpacker};
use crate::{Limits, Observer};
use staging::Staging;

/// The root file system's name within a bundle.
const ROOTFS: &str = "rootfs";
/// Where the unpacker puts what layers hide; gone when the bundle is complete.
const TRASH: &str = "trash";
const CONFIGURATION: &str = "config.json";
/// The root directory's mode if no layer says otherwise.
const ROOT_MODE: Mode = Mode::from_raw_mode(0o755);
/// The root directory's time if no layer says otherwise.
const EPOCH: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    },
    last_modification: Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    },
};
const CONFIGURATION_MODE: Mode = Mode::from_raw_mode(0o644);

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The bundle's place cannot be used.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// The image cannot be unpacked.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The configuration cannot be made.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The root file system is not a directory that can be opened.
    #[error("root file system {path}")]
    RootFs {
        /// The path that was given.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A part of the bundle cannot be made.
    #[error("{part} of the bundle cannot be made")]
    Part {
        /// Which part.
        part: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Makes the bundle `target` from an image: its layers unpacked to `rootfs`, and its
/// configuration, changed by `overrides`, as `config.json`.
///
/// The bundle is readable by its owner only: an image may hold setuid programs and device nodes
/// that other users of the host must not get at.
///
/// # Errors
///
/// When `target` exists and is not an empty directory, when the image is damaged or hostile, or
/// when its configuration is no basis for a container. Nothing is left behind then.
pub fn from_image(
    image: &Image,
    target: &Path,
    overrides: &Overrides,
    limits: Limits,
    observer: &dyn Observer,
) -> Result<(), BundleError> {
    let staging = Staging::new(target)?;
    let root = directory(&staging, ROOTFS, ROOT_MODE)?;
    let trash = directory(&staging, TRASH, Mode::RWXU)?;
    let root_again = rustix::io::dup(&root).map_err(part(ROOTFS))?;
    let mut unpacker = Unpacker::new(root, trash, limits, observer);
    image.unpack(&mut unpacker, limits, observer)?;
    drop(unpacker);
    rustix::fs::unlinkat(staging.directory(), TRASH, AtFlags::REMOVEDIR).map_err(part(TRASH))?;
    let tree = Tree::new(root_again);
    let spec = convert::from_image(image.configuration(), overrides, &tree, observer)?;
    write_configuration(&staging, &spec)?;
    Ok(staging.complete()?)
}

/// Makes the bundle `target` whose root file system is the directory `rootfs`, left where it is.
///
/// # Errors
///
/// As for [`from_image`], and when `rootfs` is not a directory.
pub fn from_directory(
    rootfs: &Path,
    target: &Path,
    overrides: &Overrides,
) -> Result<(), BundleError> {
    let failed = |source| BundleError::RootFs {
        path: rootfs.to_owned(),
        source,
    };
    let path = rootfs.canonicalize().map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty());
    let tree = Tree::new(root.map_err(|error| failed(error.into()))?);
    let spec = convert::from_directory(&path, overrides, &tree)?;
    let staging = Staging::new(target)?;
    write_configuration(&staging, &spec)?;
    Ok(staging.complete()?)
}

fn part(part: &'static str) -> impl Fn(Errno) -> BundleError {
    move |error| BundleError::Part {
        part,
        source: error.into(),
    }
}

fn directory(staging: &Staging, name: &'static str, mode: Mode) -> Result<OwnedFd, BundleError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::mkdirat(staging.directory(), name, mode)
        .and_then(|()| rustix::fs::openat(staging.directory(), name, flags, Mode::empty()))
        // The process's umask has cut the mode.
        .and_then(|fd| rustix::fs::fchmod(&fd, mode).map(|()| fd))
        // The same image gives the same tree, whenever it is unpacked.
        .and_then(|fd| rustix::fs::futimens(&fd, &EPOCH).map(|()| fd))
        .map_err(part(name))
}

fn write_configuration(staging: &Staging, spec: &Spec) -> Result<(), BundleError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(
        staging.directory(),
        CONFIGURATION,
        flags,
        CONFIGURATION_MODE,
    );
    let failed = |source| BundleError::Part {
        part: CONFIGURATION,
        source,
    };
    let mut writer = BufWriter::new(File::from(file.map_err(part(CONFIGURATION))?));
    serde_json::to_writer_pretty(&mut writer, spec).map_err(|error| failed(error.into()))?;
    writer
        .write_all(b"\n")
        .and_then(|()| writer.flush())
        .map_err(failed)
}

#[cfg(test)]
mod tests;
