//! The bundles that are measured: a busybox root file system on a tmpfs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

/// Where Debian's `busybox-static` puts its program.
const BUSYBOX: &str = "/bin/busybox";

/// Where everything that is measured lies, a tmpfs so that no disk is.
const SCRATCH: &str = "/run/lazaret-bench";

/// A tmpfs that goes when this does.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Mounts it.
    ///
    /// # Errors
    /// If this process may not mount.
    pub(crate) fn new() -> Result<Self> {
        let path = PathBuf::from(SCRATCH);
        fs::create_dir_all(&path)?;
        mount("lazaret-bench", &path, "tmpfs", MountFlags::empty(), None)
            .context("cannot mount a tmpfs (root is needed)")?;
        let scratch = Self { path };
        scratch.make_root()?;
        Ok(scratch)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn make_root(&self) -> Result<()> {
        let bin = self.path.join("rootfs/bin");
        fs::create_dir_all(&bin)?;
        fs::copy(BUSYBOX, bin.join("busybox"))
            .with_context(|| format!("cannot copy {BUSYBOX} (package busybox-static)"))?;
        for name in ["true", "sleep", "sh"] {
            symlink("busybox", bin.join(name))?;
        }
        for name in ["dev", "proc", "sys"] {
            fs::create_dir(self.path.join("rootfs").join(name))?;
        }
        Ok(())
    }

    /// Writes a bundle that runs `args` and returns its directory. `spec` is the runtime's own
    /// default specification.
    pub(crate) fn bundle(&self, name: &str, spec: &Value, args: &[&str]) -> Result<PathBuf> {
        let directory = self.path.join(name);
        fs::create_dir_all(&directory)?;
        let mut spec = spec.clone();
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(args);
        spec["root"] = json!({ "path": self.path.join("rootfs"), "readonly": false });
        fs::write(directory.join("config.json"), serde_json::to_vec(&spec)?)?;
        Ok(directory)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
            eprintln!("warning: cannot unmount {SCRATCH}: {error}");
        }
    }
}
