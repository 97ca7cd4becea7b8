//! Runs files of runc's `tests/integration` with bats.

use std::path::Path;

use super::{Setting, batch::Program};

/// Letters that mean something in an extended regular expression.
const SPECIAL: &str = r".[](){}*+?^$|\";

/// What runs cases of the file `file` in `folder`. bats' own timeout is not used: it is a background
/// process of the case's shell, and some cases `wait` for all of these.
pub(super) fn program(setting: &Setting, folder: &Path, file: &str, names: &[&str]) -> Program {
    let words = ["bats", "--tap", "--filter", &filter(names), file];
    Program {
        words: words.map(str::to_owned).to_vec(),
        folder: folder.to_owned(),
        environment: vec![("RUNC", setting.runtime.clone().into())],
    }
}

/// The names of the cases in a file: `@test "name" {`.
pub(super) fn names(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| {
        let name = line.strip_prefix("@test \"")?.strip_suffix("\" {")?;
        Some(name.to_owned())
    });
    names.collect()
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
    fn names_of_cases() {
        let text = "@test \"runc run [a]\" {\n\t@test \"b\" {\n@test \"c\"\n}\n@test \"d\" {\n";
        assert_eq!(names(text), ["runc run [a]", "d"]);
    }

    #[test]
    fn a_filter_takes_names_literally() {
        let names = ["runc run [a.b] (c)", "d"];
        assert_eq!(filter(&names), r"^(runc run \[a\.b\] \(c\)|d)$");
    }
}
