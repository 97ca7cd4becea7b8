//! `cargo xtask tidy`: the rules of style that a machine can check.
//!
//! Every Rust file of the checkout is read as text: rustfmt has been over it, so lines and
//! indentation say enough, and no parser is needed. The rules are those of the project's style:
//! a header, short files and functions, no vague names, nothing left open, `unsafe` only where it
//! is listed, and an `ARCHITECTURE.md` that names what exists.

mod paths;
mod rust;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// Files that may contain `unsafe`, one path a line.
const UNSAFE_FILES: &str = "xtask/unsafe-files.txt";

/// The document whose paths must exist.
const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Path from the checkout's root.
    path: String,
    /// Line from 1, or 0 for the whole file.
    line: usize,
    /// What is wrong.
    what: String,
}

/// Checks the checkout.
///
/// # Errors
/// If a rule is broken, with all findings.
pub(crate) fn run() -> Result<()> {
    let root = workspace::root();
    let files = files(root)?;
    let allowed = fs::read_to_string(root.join(UNSAFE_FILES))
        .with_context(|| format!("reading {UNSAFE_FILES}"))?;
    let allowed: Vec<&str> = allowed
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();

    let mut findings = Vec::new();
    let mut with_unsafe = Vec::new();
    for path in &files {
        let Ok(text) = fs::read_to_string(root.join(path)) else {
            // Removed but not committed yet, or no text: nothing to check.
            continue;
        };
        findings.extend(paths::open_ends(path, &text));
        if path.ends_with(".rs") {
            findings.extend(rust::check(path, &text));
            if rust::has_unsafe(&text) {
                with_unsafe.push(path.as_str());
            }
        }
        if path == ARCHITECTURE {
            findings.extend(paths::missing(path, &text, root));
        }
    }
    findings.extend(unsafe_findings(&with_unsafe, &allowed));
    report(&findings, files.len())
}

/// Prints the findings.
fn report(findings: &[Finding], files: usize) -> Result<()> {
    for finding in findings {
        eprintln!("{}:{}: {}", finding.path, finding.line, finding.what);
    }
    if !findings.is_empty() {
        bail!("tidy found {} things", findings.len());
    }
    println!("tidy: {files} files, nothing to complain about");
    Ok(())
}

/// Compares the files that contain `unsafe` with those that may.
fn unsafe_findings(with_unsafe: &[&str], allowed: &[&str]) -> Vec<Finding> {
    let unlisted = with_unsafe
        .iter()
        .filter(|path| !allowed.contains(path))
        .map(|path| Finding {
            path: (*path).to_owned(),
            line: 0,
            what: format!("contains unsafe code but is not listed in {UNSAFE_FILES}"),
        });
    let stale = allowed
        .iter()
        .filter(|path| !with_unsafe.contains(path))
        .map(|path| Finding {
            path: UNSAFE_FILES.to_owned(),
            line: 0,
            what: format!("lists {path}, which contains no unsafe code"),
        });
    unlisted.chain(stale).collect()
}

/// All files that are, or could be, committed.
fn files(root: &Path) -> Result<Vec<String>> {
    let list = process::output(Command::new("git").arg("-C").arg(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut files: Vec<String> = list.lines().map(str::to_owned).collect();
    files.sort();
    files.dedup();
    Ok(files)
}
