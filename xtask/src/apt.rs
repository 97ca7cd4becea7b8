//! This machine's own package sources (`sources.list(5)`), turned to other suites of the same
//! servers. No server is named in this project.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

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
}
