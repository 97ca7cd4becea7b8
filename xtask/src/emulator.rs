//! The QEMU of the emulated host: the installed one, the distribution's, or the one of Debian's
//! backports unpacked into the cache.
//!
//! Packages come from the sources this machine is configured with; only the suite's name is
//! changed. No server is named here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use emulated_host::Qemu;

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
    let apt = PrivateApt::new(root)?;
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

/// An `apt-get` with lists of its own, which knows the backports suite alone.
struct PrivateApt {
    folder: PathBuf,
}

impl PrivateApt {
    /// Makes its folder below `root`.
    fn new(root: &Path) -> Result<Self> {
        let folder = root.join("packages");
        fs::create_dir_all(folder.join("lists/partial"))?;
        let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let codename = codename(&release).context("/etc/os-release names no Debian release")?;
        let sources = backports(&configured_sources()?, codename);
        let Some((extension, text)) = sources else {
            bail!(
                "QEMU 10 is needed: the installed one is older, and no package source of this \
                 machine serves {codename}, whose backports have it"
            );
        };
        fs::write(folder.join(format!("backports.{extension}")), text)?;
        Ok(Self { folder })
    }

    fn get(&self, arguments: &[&str]) -> Result<()> {
        let list = ["list", "sources"]
            .map(|extension| self.folder.join(format!("backports.{extension}")))
            .into_iter()
            .find(|path| path.exists())
            .context("the private package source is gone")?;
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        process::output(
            Command::new("apt-get")
                .current_dir(&self.folder)
                .args(["-o", &option("Dir::Etc::SourceList", &list)])
                .args(["-o", "Dir::Etc::SourceParts=-"])
                .args([
                    "-o",
                    &option("Dir::State::Lists", &self.folder.join("lists")),
                ])
                .args([
                    "-o",
                    "Dir::Cache::pkgcache=",
                    "-o",
                    "Dir::Cache::srcpkgcache=",
                ])
                .args(["-o", "APT::Sandbox::User=root"])
                .args(arguments),
        )?;
        Ok(())
    }
}

/// The files of this machine's package sources: extension and text.
fn configured_sources() -> Result<Vec<(String, String)>> {
    let mut paths = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(folder) = fs::read_dir("/etc/apt/sources.list.d") {
        for entry in folder {
            paths.push(entry?.path());
        }
    }
    paths.sort();
    Ok(paths
        .iter()
        .filter_map(|path| {
            let extension = path.extension()?.to_str()?.to_owned();
            Some((extension, fs::read_to_string(path).ok()?))
        })
        .collect())
}

fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

/// The source that serves `codename`, turned to its backports: extension and text.
fn backports(sources: &[(String, String)], codename: &str) -> Option<(String, String)> {
    sources.iter().find_map(|(extension, text)| {
        let turned = match extension.as_str() {
            "sources" => text
                .split("\n\n")
                .find_map(|stanza| turn_stanza(stanza, codename)),
            "list" => text.lines().find_map(|line| turn_line(line, codename)),
            _ => None,
        }?;
        Some((extension.clone(), turned))
    })
}

/// A stanza in deb822 format (`sources.list(5)`).
fn turn_stanza(stanza: &str, codename: &str) -> Option<String> {
    let suites = format!("Suites: {codename}-backports");
    let mut serves = false;
    let lines: Vec<&str> = stanza
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match line.strip_prefix("Suites:") {
            Some(names) => {
                serves |= names.split_whitespace().any(|name| name == codename);
                suites.as_str()
            }
            None => line,
        })
        .collect();
    serves.then(|| format!("{}\n", lines.join("\n")))
}

/// A line `deb [options] URI suite component…`.
fn turn_line(line: &str, codename: &str) -> Option<String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if words.first() != Some(&"deb") {
        return None;
    }
    let suite = words.iter().position(|word| *word == codename)?;
    let backports = format!("{codename}-backports");
    words[suite] = &backports;
    Some(format!("{}\n", words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_source_is_turned_to_backports() {
        let stanzas = "Types: deb\n# a mirror\nURIs: http://mirror.example/security\n\
             Suites: bookworm-security\n\nTypes: deb\nURIs: http://mirror.example/debian\n\
             Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n";
        let sources = [("sources".to_owned(), stanzas.to_owned())];
        let (extension, text) = backports(&sources, "bookworm").unwrap();
        assert_eq!(extension, "sources");
        assert_eq!(
            text,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n\
             Components: main\nSigned-By: /k.gpg\n"
        );

        let line = "deb-src http://m.example/debian bookworm main\n\
             deb [trusted=yes] http://m.example/debian bookworm main contrib\n";
        let sources = [("list".to_owned(), line.to_owned())];
        let (extension, text) = backports(&sources, "bookworm").unwrap();
        assert_eq!(extension, "list");
        assert_eq!(
            text,
            "deb [trusted=yes] http://m.example/debian bookworm-backports main contrib\n"
        );
        assert!(backports(&sources, "trixie").is_none());
    }

    #[test]
    fn dependencies_are_bare_names() {
        let depends = "libaio1 (>= 0.3.93), seabios (>> 1.16), ipxe-qemu\n,libaio1, libfdt1";
        assert_eq!(libraries(depends), ["libaio1", "libfdt1"]);
    }
}
