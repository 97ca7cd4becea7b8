//! `cargo deny`: licences, bans and sources of dependencies, as `deny.toml` has them.
//!
//! Advisories are left out: they come from the network and change without a change here.

use std::process::Command;

use anyhow::Result;

use crate::products::cargo;
use crate::{cache, process, workspace};

/// The version that is installed where there is none.
const VERSION: &str = "0.20.2";

/// Checks the workspace's dependencies.
///
/// # Errors
/// If one breaks a rule, or `cargo deny` cannot be installed.
pub(super) fn run() -> Result<()> {
    let arguments = [
        "deny",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ];
    if process::output(cargo().args(["deny", "--version"])).is_ok() {
        return process::run(cargo().args(arguments));
    }
    let tool = cache::entry("tools", &format!("cargo-deny-{VERSION}"), |folder| {
        eprintln!("installing cargo-deny {VERSION}: minutes");
        process::output(
            cargo()
                .args([
                    "install",
                    "cargo-deny",
                    "--locked",
                    "--quiet",
                    "--version",
                    VERSION,
                ])
                .arg("--root")
                .arg(folder),
        )?;
        Ok(())
    })?;
    process::run(
        Command::new(tool.join("bin/cargo-deny"))
            .current_dir(workspace::root())
            .args(&arguments[1..]),
    )
}
