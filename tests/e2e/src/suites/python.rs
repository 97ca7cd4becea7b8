//! Runs files of crun's `tests` with Python.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Setting, batch::Program};

/// A directory with the suite in `tests`, made of `folder` if it is not there: the suite makes its
/// directories where it is called.
pub(super) fn working_copy(setting: &Setting, folder: &Path) -> Result<PathBuf> {
    let directory = setting.scratch.join("crun");
    if !directory.exists() {
        fs::create_dir(&directory)?;
        let mut copy = Command::new("cp");
        copy.arg("--recursive")
            .arg(folder)
            .arg(directory.join("tests"));
        let status = copy.status().context("cannot start cp")?;
        ensure!(status.success(), "cp ended with {status}");
    }
    Ok(directory)
}

/// What runs cases of the file `file` in that directory.
pub(super) fn program(setting: &Setting, directory: &Path, file: &str, names: &[&str]) -> Program {
    Program {
        words: vec!["python3".to_owned(), format!("tests/{file}")],
        folder: directory.to_owned(),
        environment: vec![
            ("OCI_RUNTIME", setting.runtime.clone().into()),
            ("RUN_TESTS", names.join(" ").into()),
            // Its results must come in order with what its cases say.
            ("PYTHONUNBUFFERED", "1".into()),
        ],
    }
}

/// The names of the cases in a file: the keys of its table of them; `None` if it has none.
pub(super) fn names(text: &str) -> Option<Vec<String>> {
    let (_, table) = text.split_once("all_tests = {")?;
    let lines = table.lines().take_while(|line| !line.starts_with('}'));
    Some(lines.filter_map(key).map(str::to_owned).collect())
}

/// `"KEY" : …` or `'KEY' : …`.
fn key(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let quote = line.chars().next().filter(|quote| "'\"".contains(*quote))?;
    let (key, rest) = line[1..].split_once(quote)?;
    rest.trim_start().starts_with(':').then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_cases() {
        let text = "\"x\" : 1\nall_tests = {\n    \"a\" : f,\n    'b-c' : g\n}\n\"y\" : 2\n";
        assert_eq!(names(text).unwrap(), ["a", "b-c"]);
        assert!(names("tests = {}").is_none());
    }

    #[test]
    fn keys_of_a_table() {
        assert_eq!(key("    \"pid-user\" : test_pid_user,"), Some("pid-user"));
        assert_eq!(key("'a': b"), Some("a"));
        for line in ["}", "# \"a\" : b", "\"a\"", "", "a : b"] {
            assert_eq!(key(line), None, "{line}");
        }
    }
}
