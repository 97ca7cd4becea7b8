//! `cargo xtask rootfs`: real root file systems, made once and kept in the cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{apt, cache, packages, process};

/// Release of the Debian userland: the one its container is tested with, whatever the host runs.
const SUITE: &str = "bookworm";

/// Packages beside Debian's smallest usable set.
const INCLUDED: &str = "python3";

/// Bumped when the way a tree is made changes what comes out.
const RECIPE: u32 = 1;

/// A root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rootfs {
    /// Debian minbase with python3.
    Debian,
    /// busybox and nothing else.
    Busybox,
}

impl Rootfs {
    /// Its name, of the cache entry and of the bundle.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Busybox => "busybox",
        }
    }
}

/// The root file system's directory, made if it is not in the cache. Not to be written to.
///
/// # Errors
/// If a package cannot be installed.
pub(crate) fn find(rootfs: Rootfs) -> Result<PathBuf> {
    let key = cache::key([SUITE.as_bytes(), INCLUDED.as_bytes(), &RECIPE.to_le_bytes()]);
    let entry = cache::entry("rootfs", &format!("{}-{key}", rootfs.name()), |entry| {
        let tree = entry.join("rootfs");
        match rootfs {
            Rootfs::Debian => debian(entry, &tree),
            Rootfs::Busybox => busybox(&tree),
        }
    })?;
    Ok(entry.join("rootfs"))
}

/// Debian from this machine's own package sources; from mmdebstrap's if they do not serve it.
fn debian(entry: &Path, tree: &Path) -> Result<()> {
    packages::ensure(&["mmdebstrap"], "to make a Debian root file system")?;
    eprintln!("making a Debian {SUITE} root file system with {INCLUDED}");
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={INCLUDED}"))
        .arg(SUITE)
        .arg(tree);
    let list = apt::configured_sources()
        .ok()
        .and_then(|sources| apt::retarget(&sources, SUITE, SUITE));
    if let Some((extension, text)) = list {
        let file = entry.join(format!("source.{extension}"));
        fs::write(&file, text)?;
        command.arg(file);
    }
    process::output(&mut command)?;
    Ok(())
}

/// busybox with a link for each of its programs.
fn busybox(tree: &Path) -> Result<()> {
    packages::ensure(&["busybox-static"], "to make a small root file system")?;
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copying busybox")?;
    let programs = process::output(Command::new("/bin/busybox").arg("--list"))?;
    for program in programs.lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(program))?;
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}
