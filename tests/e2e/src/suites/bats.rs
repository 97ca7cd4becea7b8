//! Runs files of runc's `tests/integration` with bats, on a controlling terminal of their own.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use super::{
    Setting,
    tap::{self, Seen},
};
use crate::invocation::captured_within;

/// How long a case may take on a machine that is not loaded.
const CASE: Duration = Duration::from_secs(40);

/// Letters that mean something in an extended regular expression.
const SPECIAL: &str = r".[](){}*+?^$|\";

/// Where the files are.
pub(super) fn folder(setting: &Setting) -> PathBuf {
    setting.assets.join("runc/tests/integration")
}

/// Runs a case. bats' own timeout is not used: it is a background process of the case's shell, and
/// some cases `wait` for all of these.
pub(super) fn run(setting: &Setting, file: &str, name: &str) -> Result<Seen> {
    let (ours, theirs) = terminal()?;
    let mut command: Command = setting.command("setsid");
    command
        .args(["--ctty", "--wait", "bats", "--tap", "--timing"])
        .args(["--filter", &filter(name)])
        .arg(format!("{file}.bats"))
        .current_dir(folder(setting))
        .env("RUNC", &setting.runtime)
        .stdin(Stdio::from(theirs));
    let (output, errors) = captured_within(command, CASE)?;
    drop(ours);
    Ok(tap::only(&output, false, name, &errors))
}

/// Both ends of a pty: bats runs in a session with the second, nobody reads or writes the first.
fn terminal() -> Result<(OwnedFd, File)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("cannot open a pty")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let name = name.to_str().context("the pty has an odd name")?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, Mode::empty())?;
    Ok((ours, theirs.into()))
}

/// The names of a file's cases: `@test "name" {`.
pub(super) fn list(setting: &Setting, file: &str) -> Result<Vec<String>> {
    let path = folder(setting).join(format!("{file}.bats"));
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let names = text.lines().filter_map(|line| {
        let name = line.strip_prefix("@test \"")?.strip_suffix("\" {")?;
        Some(name.to_owned())
    });
    Ok(names.collect())
}

/// An expression that matches this name and no other.
fn filter(name: &str) -> String {
    let mut expression = String::from("^");
    for letter in name.chars() {
        if SPECIAL.contains(letter) {
            expression.push('\\');
        }
        expression.push(letter);
    }
    expression + "$"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_names_literally() {
        assert_eq!(filter("runc run [a.b] (c)"), r"^runc run \[a\.b\] \(c\)$");
    }
}
