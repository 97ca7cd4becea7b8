//! The QEMU of the emulated host: the installed one, the distribution's, or the one of Debian's
//! backports unpacked into the cache.
//!
//! Packages come from the sources this machine is configured with; only the suite's name is
//! changed. No server is named here.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use emulated_host::Qemu;

use crate::apt::PrivateApt;
use crate::{cache, packages, process};

/// Packages that are unpacked: the emulator, its ROMs and its firmware.
const UNPACKED: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

/// Packages that those depend on and that a machine without display and network card needs not.
const NOT_NEEDED: [&str; 1] = ["ipxe-qemu"];

/// Finds a QEMU that is new enough, or fetches one.
///
/// # Errors
/// If there is none to be had.
pub(crate) fn find() -> Result<Qemu> {
    let installed = Qemu::installed();
    if installed.check().is_ok() {
        return Ok(installed);
    }
    let unpacked = Qemu::unpacked(&cache::entry("qemu", "root", fetch)?);
    if unpacked.check().is_err() {
        install_libraries(&unpacked)?;
        unpacked.check()?;
    }
    Ok(unpacked)
}

/// Downloads the packages and unpacks them into `root`.
fn fetch(root: &Path) -> Result<()> {
    eprintln!("fetching QEMU 10 from this machine's package sources");
    let apt = PrivateApt::new(root, "-backports", false)
        .context("QEMU 10 is needed: the installed one is older, and Debian's backports have it")?;
    apt.get(&["update"])?;
    let mut download = vec!["download"];
    download.extend(UNPACKED);
    apt.get(&download)?;
    let depends = root.join("depends");
    let mut names = String::new();
    for package in fs::read_dir(&apt.folder)? {
        let package = package?.path();
        if package
            .extension()
            .is_none_or(|extension| extension != "deb")
        {
            continue;
        }
        process::run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&package)
                .arg(root),
        )?;
        names += &process::output(
            Command::new("dpkg-deb")
                .arg("--field")
                .arg(&package)
                .arg("Depends"),
        )?;
        names += ",";
    }
    fs::write(&depends, libraries(&names).join("\n"))?;
    cache::remove(&apt.folder)
}

/// Installs what the unpacked packages depend on.
fn install_libraries(qemu: &Qemu) -> Result<()> {
    let root = qemu
        .program
        .ancestors()
        .nth(3)
        .context("QEMU lies in usr/bin of its root")?;
    let names = fs::read_to_string(root.join("depends"))?;
    let names: Vec<&str> = names.lines().collect();
    packages::ensure(&names, "libraries of QEMU")
}

/// Package names in `Depends` fields, without versions and without what is unpacked anyway.
fn libraries(depends: &str) -> Vec<String> {
    let mut names: Vec<String> = depends
        .split([',', '\n'])
        .filter_map(|part| part.split_whitespace().next())
        .filter(|name| !UNPACKED.contains(name) && !NOT_NEEDED.contains(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_bare_names() {
        let depends = "libaio1 (>= 0.3.93), seabios (>> 1.16), ipxe-qemu\n,libaio1, libfdt1";
        assert_eq!(libraries(depends), ["libaio1", "libfdt1"]);
    }
}
