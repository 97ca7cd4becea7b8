//! Debian packages a task needs: found by `dpkg-query`, installed by `apt-get`.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Installs those of `packages` that are missing, and says which.
///
/// # Errors
/// If this is no Debian and something is missing, or `apt-get` fails.
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {} ({purpose})", missing.join(" "));
    if install(&missing).is_ok() {
        return Ok(());
    }
    // The lists of packages may be old, or there may be none yet.
    process::output(apt_get().arg("update")).context("updating the lists of packages")?;
    install(&missing).with_context(|| format!("installing {}", missing.join(" ")))
}

fn install(packages: &[&str]) -> Result<()> {
    process::output(
        apt_get()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    )?;
    Ok(())
}

/// `apt-get`, as root and asking nothing.
pub(crate) fn apt_get() -> Command {
    if rustix::process::geteuid().is_root() {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        return command;
    }
    let mut command = Command::new("sudo");
    command.args([
        "--non-interactive",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
    ]);
    command
}

/// Whether dpkg has the package configured.
fn is_installed(package: &str) -> bool {
    version(package).is_ok()
}

/// The installed version of a package.
///
/// # Errors
/// If it is not installed.
pub(crate) fn version(package: &str) -> Result<String> {
    let text = process::output(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${db:Status-Abbrev} ${Version}",
        package,
    ]))?;
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        ["ii", version] => Ok(version.to_owned()),
        _ => bail!("the package {package} is not installed"),
    }
}
