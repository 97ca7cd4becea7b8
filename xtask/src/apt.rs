//! This machine's own package sources (`sources.list(5)`), turned to other suites of the same
//! servers. No server is named in this project.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// The files of this machine's package sources: extension and text.
///
/// # Errors
/// If their folder cannot be read.
pub(crate) fn configured_sources() -> Result<Vec<(String, String)>> {
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

/// Debian's name of the release, from the text of `/etc/os-release`.
pub(crate) fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

/// The source that serves the suite `from`, turned to the suite `to`: extension and text.
pub(crate) fn retarget(
    sources: &[(String, String)],
    from: &str,
    to: &str,
) -> Option<(String, String)> {
    sources.iter().find_map(|(extension, text)| {
        let turned = match extension.as_str() {
            "sources" => text
                .split("\n\n")
                .find_map(|stanza| turn_stanza(stanza, from, to)),
            "list" => text.lines().find_map(|line| turn_line(line, from, to)),
            _ => None,
        }?;
        Some((extension.clone(), turned))
    })
}

/// A stanza in deb822 format (`sources.list(5)`).
fn turn_stanza(stanza: &str, from: &str, to: &str) -> Option<String> {
    let suites = format!("Suites: {to}");
    let mut serves = false;
    let lines: Vec<&str> = stanza
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match line.strip_prefix("Suites:") {
            Some(names) => {
                serves |= names.split_whitespace().any(|name| name == from);
                suites.as_str()
            }
            None => line,
        })
        .collect();
    serves.then(|| format!("{}\n", lines.join("\n")))
}

/// A line `deb [options] URI suite component…`.
fn turn_line(line: &str, from: &str, to: &str) -> Option<String> {
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if words.first() != Some(&"deb") {
        return None;
    }
    let suite = words.iter().position(|word| *word == from)?;
    words[suite] = to;
    Some(format!("{}\n", words.join(" ")))
}

/// The same source, serving source packages.
fn of_source_packages(text: &str) -> String {
    let turned = text.lines().map(|line| match line.strip_prefix("deb ") {
        Some(rest) => format!("deb-src {rest}\n"),
        None if line.starts_with("Types:") => "Types: deb-src\n".to_owned(),
        None => format!("{line}\n"),
    });
    turned.collect()
}

/// An `apt-get` with lists of its own, which knows one suite alone.
pub(crate) struct PrivateApt {
    /// Where it works and downloads to.
    pub folder: PathBuf,
}

impl PrivateApt {
    /// Makes its folder below `root`. It serves the suite of this machine's release with `more`
    /// behind its name, or that suite's source packages.
    ///
    /// # Errors
    /// If this is no Debian, or none of its sources serves the release.
    pub(crate) fn new(root: &Path, more: &str, source_packages: bool) -> Result<Self> {
        let folder = root.join("packages");
        fs::create_dir_all(folder.join("lists/partial"))?;
        let release = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        let codename = codename(&release).context("/etc/os-release names no Debian release")?;
        let suite = format!("{codename}{more}");
        let Some((extension, mut text)) = retarget(&configured_sources()?, codename, &suite) else {
            bail!("no package source of this machine serves {codename}: {suite} cannot be had");
        };
        if source_packages {
            text = of_source_packages(&text);
        }
        fs::write(folder.join(format!("private.{extension}")), text)?;
        Ok(Self { folder })
    }

    /// Runs `apt-get` with these arguments in its folder.
    ///
    /// # Errors
    /// If it fails.
    pub(crate) fn get(&self, arguments: &[&str]) -> Result<()> {
        let list = ["list", "sources"]
            .map(|extension| self.folder.join(format!("private.{extension}")))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_source_is_turned_to_backports() {
        let stanzas = "Types: deb\n# a mirror\nURIs: http://mirror.example/security\n\
             Suites: bookworm-security\n\nTypes: deb\nURIs: http://mirror.example/debian\n\
             Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n";
        let sources = [("sources".to_owned(), stanzas.to_owned())];
        let (extension, text) = retarget(&sources, "bookworm", "bookworm-backports").unwrap();
        assert_eq!(extension, "sources");
        assert_eq!(
            text,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n\
             Components: main\nSigned-By: /k.gpg\n"
        );

        let line = "deb-src http://m.example/debian bookworm main\n\
             deb [trusted=yes] http://m.example/debian bookworm main contrib\n";
        let sources = [("list".to_owned(), line.to_owned())];
        let (extension, text) = retarget(&sources, "bookworm", "bookworm-backports").unwrap();
        assert_eq!(extension, "list");
        assert_eq!(
            text,
            "deb [trusted=yes] http://m.example/debian bookworm-backports main contrib\n"
        );
        assert!(retarget(&sources, "trixie", "sid").is_none());
    }

    #[test]
    fn sources_are_turned_to_source_packages() {
        let stanza = "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\n";
        assert_eq!(
            of_source_packages(stanza),
            "Types: deb-src\nURIs: http://m.example/debian\nSuites: bookworm\n"
        );
        let line = "deb [trusted=yes] http://m.example/debian bookworm main\n";
        assert_eq!(
            of_source_packages(line),
            "deb-src [trusted=yes] http://m.example/debian bookworm main\n"
        );
    }
}
