//! Runs files of crun's `tests` with Python.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Setting,
    batch::{self, Program},
    tap::{Order, Seen},
};

/// Where the files are.
pub(super) fn folder(setting: &Setting) -> PathBuf {
    setting.assets.join("crun/tests")
}

/// Runs cases.
pub(super) fn run(
    setting: &Setting,
    file: &str,
    names: &[&str],
    each: impl FnMut(Seen),
) -> Result<()> {
    // The suite makes its directories where it is called.
    let directory = setting.scratch.join("crun");
    if !directory.exists() {
        fs::create_dir(&directory)?;
        copy(&folder(setting), &directory.join("tests"))?;
    }
    let program = |names: &[&str]| Program {
        words: vec!["python3".to_owned(), format!("tests/test_{file}.py")],
        folder: directory.clone(),
        environment: vec![
            ("OCI_RUNTIME", setting.runtime.clone().into()),
            ("RUN_TESTS", names.join(" ").into()),
            // Its results must come in order with what its cases say.
            ("PYTHONUNBUFFERED", "1".into()),
        ],
    };
    batch::run(setting, names, Order::ResultLast, program, each)
}

/// The names of a file's cases: the keys of its table of them.
pub(super) fn list(setting: &Setting, file: &str) -> Result<Vec<String>> {
    let path = folder(setting).join(format!("test_{file}.py"));
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let (_, table) = text
        .split_once("all_tests = {")
        .with_context(|| format!("{} has no table of its cases", path.display()))?;
    let lines = table.lines().take_while(|line| !line.starts_with('}'));
    Ok(lines.filter_map(key).map(str::to_owned).collect())
}

/// `"KEY" : …` or `'KEY' : …`.
fn key(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let quote = line.chars().next().filter(|quote| "'\"".contains(*quote))?;
    let (key, rest) = line[1..].split_once(quote)?;
    rest.trim_start().starts_with(':').then_some(key)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .arg("--recursive")
        .args([from, to])
        .status()
        .context("cannot start cp")?;
    ensure!(status.success(), "cp ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_table() {
        assert_eq!(key("    \"pid-user\" : test_pid_user,"), Some("pid-user"));
        assert_eq!(key("'a': b"), Some("a"));
        for line in ["}", "# \"a\" : b", "\"a\"", "", "a : b"] {
            assert_eq!(key(line), None, "{line}");
        }
    }
}
