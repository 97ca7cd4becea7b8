//! Files as block devices of the host, by losetup(8).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// A loop device with a file behind it; dropping it takes the file away. One that is busy then is free
/// when its last user is gone.
pub(crate) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Puts `file` behind a free device.
    pub(crate) fn attach(file: &Path) -> Result<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .context("cannot start losetup")?;
        ensure!(
            output.status.success(),
            "losetup ended with {}",
            output.status
        );
        let name = String::from_utf8(output.stdout).context("losetup named no device")?;
        Ok(Self {
            path: name.trim().into(),
        })
    }

    /// Its major and minor number.
    pub(crate) fn numbers(&self) -> Result<(u32, u32)> {
        let number = rustix::fs::stat(&self.path)?.st_rdev;
        Ok((rustix::fs::major(number), rustix::fs::minor(number)))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.path)
            .status();
    }
}
