//! Runs files of runc's `tests/integration` with bats.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use super::{
    Setting,
    batch::{self, Program},
    tap::{Order, Seen},
};

/// Letters that mean something in an extended regular expression.
const SPECIAL: &str = r".[](){}*+?^$|\";

/// Where the files are.
pub(super) fn folder(setting: &Setting) -> PathBuf {
    setting.assets.join("runc/tests/integration")
}

/// Runs cases. bats' own timeout is not used: it is a background process of the case's shell, and
/// some cases `wait` for all of these.
pub(super) fn run(
    setting: &Setting,
    file: &str,
    names: &[&str],
    each: impl FnMut(Seen),
) -> Result<()> {
    let program = |names: &[&str]| {
        let file = format!("{file}.bats");
        let words = ["bats", "--tap", "--filter", &filter(names), &file];
        Program {
            words: words.map(str::to_owned).to_vec(),
            folder: folder(setting),
            environment: vec![("RUNC", setting.runtime.clone().into())],
        }
    };
    batch::run(setting, names, Order::ResultFirst, program, each)
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

/// An expression that matches these names and no other.
fn filter(names: &[&str]) -> String {
    let mut expression = String::from("^(");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            expression.push('|');
        }
        for letter in name.chars() {
            if SPECIAL.contains(letter) {
                expression.push('\\');
            }
            expression.push(letter);
        }
    }
    expression + ")$"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_names_literally() {
        let names = ["runc run [a.b] (c)", "d"];
        assert_eq!(filter(&names), r"^(runc run \[a\.b\] \(c\)|d)$");
    }
}
