//! Rules for Rust files.

use super::Finding;

/// A file without its tests has fewer lines.
const FILE_LINES_MAX: usize = 500;

/// A function has fewer lines, from `fn` to its closing brace: it fits a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Names that say nothing about what a thing does.
const VAGUE: [&str; 7] = [
    "manager", "inner", "util", "utils", "common", "helper", "helpers",
];

/// All rules but the one on `unsafe`.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, what: String| {
        findings.push(Finding {
            path: path.to_owned(),
            line,
            what,
        });
    };
    if !text.starts_with("//!") {
        find(1, "does not begin with a //! header".to_owned());
    }
    if let Some(name) = path.split(['/', '.']).find(|part| is_vague(part)) {
        find(0, format!("'{name}' names no purpose"));
    }
    let lines = production_lines(path, text);
    if lines.len() >= FILE_LINES_MAX {
        find(
            0,
            format!(
                "has {} lines, at most {} are allowed",
                lines.len(),
                FILE_LINES_MAX - 1
            ),
        );
    }
    for (start, length) in functions(&lines) {
        if length >= FUNCTION_LINES_MAX {
            find(
                start + 1,
                format!(
                    "the function has {length} lines, at most {} are allowed",
                    FUNCTION_LINES_MAX - 1
                ),
            );
        }
    }
    for (index, line) in lines.iter().enumerate() {
        if let Some(name) = declared_name(line)
            && is_vague(name)
        {
            find(index + 1, format!("'{name}' names no purpose"));
        }
    }
    findings
}

/// Whether there is unsafe code: the keyword outside of comments and strings.
pub(super) fn has_unsafe(text: &str) -> bool {
    text.lines().any(|line| {
        let code = line.replace("\\\"", "");
        let code = code.split("//").next().unwrap_or_default();
        let mut outside = code.split('"').step_by(2);
        outside.any(|part| words(part).any(|word| word == "unsafe"))
    })
}

/// The lines of a file up to its tests.
fn production_lines<'a>(path: &str, text: &'a str) -> Vec<&'a str> {
    let is_tests = path
        .split('/')
        .any(|part| part == "tests.rs" || part == "benches")
        || path.contains("/tests/") && !path.starts_with("tests/");
    if is_tests {
        return Vec::new();
    }
    let lines: Vec<&str> = text.lines().collect();
    let end = lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].ends_with('{'))
        .unwrap_or(lines.len());
    lines[..end].to_vec()
}

/// First line (from 0) and number of lines of each function with a body.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if !is_function(line) || line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let close = format!("{indent}}}");
        let end = lines[start..]
            .iter()
            .position(|line| *line == close || line.ends_with(';') && indent_of(line) == indent);
        if let Some(end) = end {
            found.push((start, end + 1));
        }
    }
    found
}

fn indent_of(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

/// Whether the line begins a function.
fn is_function(line: &str) -> bool {
    let Some((before, _)) = line.trim_start().split_once("fn ") else {
        return false;
    };
    words(before).all(|word| {
        matches!(
            word,
            "pub"
                | "crate"
                | "super"
                | "in"
                | "self"
                | "const"
                | "async"
                | "unsafe"
                | "extern"
                | "C"
        )
    }) && !before.starts_with("//")
}

/// The name of the module or type that the line declares.
fn declared_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    if line.starts_with("//") {
        return None;
    }
    let mut words = words(line);
    words
        .find(|word| !matches!(*word, "pub" | "crate" | "super" | "in" | "self"))
        .filter(|word| {
            matches!(
                *word,
                "mod" | "struct" | "enum" | "trait" | "type" | "union"
            )
        })?;
    words.next()
}

/// Whether one of the words of a name, `snake_case` or `CamelCase`, is vague.
fn is_vague(name: &str) -> bool {
    let mut spaced = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() || letter == '_' || letter == '-' {
            spaced.push(' ');
        }
        spaced.push(letter.to_ascii_lowercase());
    }
    words(&spaced.replace('_', " ")).any(|word| VAGUE.contains(&word))
}

/// Identifiers and keywords.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| !word.is_empty())
}
