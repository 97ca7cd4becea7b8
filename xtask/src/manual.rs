//! `cargo xtask manual`: the man pages and the shells' completions of `lazaret`, which `dist` packs.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::products::cargo;
use crate::{cache, process, workspace};

/// Makes them in `target/lazaret/manual` and prints where that is.
///
/// # Errors
/// If the program that knows the command line does not build.
pub(crate) fn run() -> Result<()> {
    println!("{}", make()?.display());
    Ok(())
}

/// Makes them anew; the folder is laid out as below `/usr/share`.
///
/// # Errors
/// As [`run`].
pub(crate) fn make() -> Result<PathBuf> {
    let folder = workspace::products().join("manual");
    cache::remove(&folder)?;
    write(&folder)?;
    Ok(folder)
}

fn write(folder: &Path) -> Result<()> {
    process::run(
        cargo()
            .args([
                "run",
                "--quiet",
                "--package",
                "lazaret",
                "--example",
                "manual",
                "--",
            ])
            .arg(folder),
    )
}
