//! Kernel sources: Debian's package, or a tree or tarball named by the user.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::patches::Patch;
use crate::{cache, packages, process};

/// Debian's package of the sources.
const PACKAGE: &str = "linux-source-6.12";

/// What that package installs.
const PACKAGE_TARBALL: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Kernel sources.
#[derive(Debug)]
pub(super) enum Source {
    /// An unpacked tree, used in place.
    Tree {
        /// Its root.
        path: PathBuf,
        /// Its version and when its top `Makefile` changed.
        identity: String,
    },
    /// An archive that is unpacked for a build.
    Tarball {
        /// The file.
        path: PathBuf,
        /// The package's version, or the file's size and time.
        identity: String,
    },
}

impl Source {
    /// Finds the sources; installs Debian's package if `path` is none.
    ///
    /// # Errors
    /// If `path` is neither a kernel tree nor a file, or the package cannot be installed.
    pub(super) fn find(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else {
            packages::ensure(&[PACKAGE], "sources of the kernels")?;
            return Ok(Self::Tarball {
                path: PACKAGE_TARBALL.into(),
                identity: format!("{PACKAGE} {}", packages::version(PACKAGE)?),
            });
        };
        let path = fs::canonicalize(&path)
            .with_context(|| format!("finding the kernel sources {}", path.display()))?;
        if path.is_dir() {
            let makefile = path.join("Makefile");
            if !path.join("Kbuild").exists() || !makefile.exists() {
                bail!("{} is not a tree of kernel sources", path.display());
            }
            return Ok(Self::Tree {
                identity: format!("{} {}", path.display(), stamp(&makefile)?),
                path,
            });
        }
        Ok(Self::Tarball {
            identity: format!("{} {}", path.display(), stamp(&path)?),
            path,
        })
    }

    /// What a cache key needs to know.
    pub(super) fn identity(&self) -> &str {
        match self {
            Self::Tree { identity, .. } | Self::Tarball { identity, .. } => identity,
        }
    }

    /// The unpacked tree with `patches`. It is not written to by a build.
    ///
    /// # Errors
    /// If unpacking fails, or a patch does not fit or is missing from the user's tree.
    pub(super) fn unpacked(&self, patches: &[Patch]) -> Result<PathBuf> {
        match self {
            Self::Tree { path, .. } => {
                for patch in patches {
                    if !patch.is_in(path)? {
                        bail!(
                            "{} lacks {}: apply it with `patch -p1`",
                            path.display(),
                            patch.name()
                        );
                    }
                }
                Ok(path.clone())
            }
            Self::Tarball { path, identity } => {
                let texts = patches.iter().map(Patch::text);
                let name = cache::key(std::iter::once(identity.as_bytes()).chain(texts));
                cache::entry("kernel-sources", &name, |folder| {
                    eprintln!("unpacking {}", path.display());
                    process::run(
                        Command::new("tar")
                            .args(["--extract", "--strip-components=1", "--file"])
                            .arg(path)
                            .arg("--directory")
                            .arg(folder),
                    )?;
                    patches.iter().try_for_each(|patch| patch.apply(folder))
                })
            }
        }
    }
}

/// Size and time of a file.
fn stamp(path: &Path) -> Result<String> {
    let metadata = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
    let time = metadata.modified()?.duration_since(std::time::UNIX_EPOCH)?;
    Ok(format!("{} {}", metadata.len(), time.as_nanos()))
}
