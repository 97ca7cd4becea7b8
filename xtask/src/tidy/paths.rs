//! Rules for files of any kind.

use std::path::Path;

use super::Finding;

/// Words that promise work instead of doing it. Put together here so that this file has none.
const OPEN_ENDS: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
];

/// Lines with a word that leaves something open.
pub(super) fn open_ends(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let found = line
            .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
            .find(|word| OPEN_ENDS.contains(word));
        if let Some(word) = found {
            findings.push(Finding {
                path: path.to_owned(),
                line: index + 1,
                what: format!("{word}: what is not done is a clear error, not a note"),
            });
        }
    }
    findings
}

/// Paths in backquotes that do not exist below `root`.
///
/// A path is relative, has a slash, and begins with something that lies in the root or ends like
/// a file of ours; `id/rootfs` and `/dev/kvm` are none.
pub(super) fn missing(path: &str, text: &str, root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for quoted in line.split('`').skip(1).step_by(2) {
            if is_path(quoted, root) && !root.join(quoted).exists() {
                findings.push(Finding {
                    path: path.to_owned(),
                    line: index + 1,
                    what: format!("{quoted} does not exist"),
                });
            }
        }
    }
    findings
}

fn is_path(text: &str, root: &Path) -> bool {
    let Some((first, _)) = text.split_once('/') else {
        return false;
    };
    let plain = text
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "/._-".contains(letter));
    let ours = [".rs", ".md", ".toml", ".config"]
        .iter()
        .any(|ending| text.ends_with(ending));
    plain && !first.is_empty() && (root.join(first).exists() || ours)
}
