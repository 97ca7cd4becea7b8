//! `cargo xtask bundle`: OCI bundles in `target/lazaret/bundles`, to run and to look at.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::products::Products;
use crate::rootfs::{self, Rootfs};
use crate::{cache, process};

/// The bundle's directory; its root file system is a copy that may be written to.
///
/// # Errors
/// If the root file system cannot be made or copied, or `lazaret spec` fails.
pub(crate) fn make(products: &Products, which: Rootfs) -> Result<PathBuf> {
    let source = rootfs::find(which)?;
    let bundle = products.folder.join("bundles").join(which.name());
    let tree = bundle.join("rootfs");
    if !tree.exists() {
        fs::create_dir_all(&bundle).with_context(|| format!("creating {}", bundle.display()))?;
        let partial = bundle.join("rootfs.partial");
        cache::remove(&partial)?;
        process::output(
            Command::new("cp")
                .args(["--archive", "--reflink=auto"])
                .arg(&source)
                .arg(&partial),
        )?;
        fs::rename(&partial, &tree)?;
    }
    if !bundle.join("config.json").exists() {
        spec(products, &bundle)?;
    }
    Ok(bundle)
}

/// Writes the bundle's `config.json` as `lazaret spec` does.
fn spec(products: &Products, bundle: &Path) -> Result<()> {
    process::output(
        Command::new(products.program("lazaret"))
            .args(["spec", "--bundle"])
            .arg(bundle),
    )?;
    Ok(())
}

/// Changes the bundle's `config.json` to run `command`, on a terminal or not.
///
/// # Errors
/// If the file is not what `lazaret spec` writes.
pub(crate) fn set_command(bundle: &Path, command: &[OsString], terminal: bool) -> Result<()> {
    let path = bundle.join("config.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut config: Value =
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    let arguments = command
        .iter()
        .map(|argument| argument.to_str().map(Value::from))
        .collect::<Option<Vec<Value>>>()
        .context("config.json holds no argument that is not UTF-8")?;
    config["process"]["args"] = Value::Array(arguments);
    config["process"]["terminal"] = json!(terminal);
    config["root"]["readonly"] = json!(false);
    fs::write(&path, serde_json::to_vec_pretty(&config)?)
        .with_context(|| format!("writing {}", path.display()))
}
