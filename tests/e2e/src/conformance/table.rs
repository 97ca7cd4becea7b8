//! The Markdown of `docs/conformance.md`: a summary, a table for each document, and where the
//! runtimes differ. Called by [`super`].

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{
    Coverage,
    catalogue::{self, Document, Entry, Level, SPECIFICATION},
};
use crate::{case::Case, cases, runtime::Kind};

/// What comes first.
const INTRODUCTION: &str = "\
Every MUST (REQUIRED, SHALL) and SHOULD (RECOMMENDED) that the runtime-spec puts on a runtime, in short words, with the
tests that prove it. This page is generated (`lazaret-e2e conformance`) from the cases, which say next to their
definition what they cover, and from the catalogue in `tests/e2e/conformance`; `cargo test` fails when it is out of date,
when a requirement is neither covered nor explained, and when a test that is named here does not exist.

`topic::case` is an end-to-end case (`tests/e2e/src/cases`): it runs under lazaret, and under runc 1.1.5 and crun 1.8.1 as the
two columns say. *holds* means that it passes there; where a runtime does something else, the last table says what, and
which one is right. A path is a unit test, which no other runtime can run.
";

/// How a requirement stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Covered,
    NotMet,
    NotApplicable,
}

impl Standing {
    fn of(entry: &Entry) -> Self {
        if entry.not_met.is_some() {
            Self::NotMet
        } else if entry.not_applicable.is_some() {
            Self::NotApplicable
        } else {
            Self::Covered
        }
    }
}

/// The whole page.
pub(super) fn markdown(documents: &[Document], coverage: &Coverage) -> String {
    let mut text = format!("# Conformance with the OCI runtime-spec {SPECIFICATION}\n\n");
    text += INTRODUCTION;
    text += "\n";
    summary(&mut text, documents);
    for document in documents {
        on_the_runtime(&mut text, document, coverage);
    }
    on_others(&mut text, documents);
    differences(&mut text);
    text
}

/// Adds up the keywords, for each document and in all.
fn summary(text: &mut String, documents: &[Document]) {
    *text += "| document | MUST covered | not met | not applicable | SHOULD covered | not met | not applicable | on others |\n\
              |---|---|---|---|---|---|---|---|\n";
    let mut total = [0; 7];
    for document in documents {
        let counts = counts(document);
        let name = &document.document;
        line(text, &format!("[{name}.md](#{name}md)"), &counts);
        for (sum, count) in total.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    line(text, "all", &total);
}

fn line(text: &mut String, name: &str, counts: &[u32; 7]) {
    let numbers = counts.map(|count| count.to_string()).join(" | ");
    writeln!(text, "| {name} | {numbers} |").expect("a string takes all that is written");
}

/// Keywords: MUST by standing, SHOULD by standing, on others.
fn counts(document: &Document) -> [u32; 7] {
    let mut counts = [0; 7];
    for entry in document.section.iter().flat_map(|section| &section.entry) {
        let at = match (entry.on.is_some(), entry.level) {
            (true, _) => 6,
            (false, Level::Must) => Standing::of(entry) as usize,
            (false, Level::Should) => 3 + Standing::of(entry) as usize,
        };
        counts[at] += entry.keywords;
    }
    counts
}

fn on_the_runtime(text: &mut String, document: &Document, coverage: &Coverage) {
    *text += &format!(
        "\n## {}.md\n\n| id | | requirement | proof | runc | crun |\n|---|---|---|---|---|---|\n",
        document.document
    );
    for section in &document.section {
        for entry in section.entry.iter().filter(|entry| entry.on.is_none()) {
            let id = catalogue::id(document, section, entry);
            let (_, short) = id.split_once('#').unwrap_or_default();
            let cases = coverage.get(&id).map(Vec::as_slice).unwrap_or_default();
            *text += &format!(
                "| {short} | {} | {} | {} | {} | {} |\n",
                entry.level.word(),
                entry.says,
                proof(entry, cases),
                under(Kind::Runc, cases),
                under(Kind::Crun, cases),
            );
        }
    }
}

/// The tests, or why there is none.
fn proof(entry: &Entry, cases: &[(String, &Case)]) -> String {
    let mut parts: Vec<String> = Vec::new();
    if let Some(reason) = &entry.not_met {
        parts.push(format!("**not met**: {reason}"));
    }
    if let Some(reason) = &entry.not_applicable {
        parts.push(format!("**not applicable**: {reason}"));
    }
    let tests = cases.iter().map(|(name, _)| name).chain(&entry.tests);
    let tests: Vec<String> = tests.map(|name| format!("`{name}`")).collect();
    if !tests.is_empty() {
        parts.push(tests.join(", "));
    }
    parts.extend(entry.note.clone());
    parts.join("; ")
}

/// Whether the cases hold under another runtime.
fn under(kind: Kind, cases: &[(String, &Case)]) -> String {
    let without: Vec<String> = cases
        .iter()
        .filter(|(_, case)| !case.kinds.contains(&kind))
        .map(|(name, _)| format!("`{name}`"))
        .collect();
    match (cases.len(), without.len()) {
        (0, _) => "–".to_owned(),
        (_, 0) => "holds".to_owned(),
        (all, missing) if all == missing => "differs".to_owned(),
        _ => format!("differs in {}", without.join(", ")),
    }
}

/// What others must do, in one table: it is here so that the numbers add up.
fn on_others(text: &mut String, documents: &[Document]) {
    *text += "\n## Not on the runtime\n\n\
              Keywords that bind somebody else: who writes the configuration, the caller, or runtimes of other platforms.\n\n\
              | id | keywords | on | requirement |\n|---|---|---|---|\n";
    for document in documents {
        for section in &document.section {
            for entry in &section.entry {
                let Some(on) = &entry.on else { continue };
                *text += &format!(
                    "| {} | {} | {on} | {} |\n",
                    catalogue::id(document, section, entry),
                    entry.keywords,
                    entry.says,
                );
            }
        }
    }
}

/// Cases with a verdict, those that say the same together.
fn differences(text: &mut String) {
    *text += "\n## Where the runtimes differ\n\n\
              | cases | not under | because | who is right |\n|---|---|---|---|\n";
    let mut rows: BTreeMap<(usize, String), Vec<String>> = BTreeMap::new();
    for (at, (name, case)) in cases::all().enumerate() {
        if case.covers.is_empty() || case.right.is_empty() {
            continue;
        }
        let absent: Vec<&str> = [Kind::Runc, Kind::Crun]
            .into_iter()
            .filter(|kind| !case.kinds.contains(kind))
            .map(Kind::name)
            .collect();
        let row = format!("{} | {} | {}", absent.join(", "), case.reason, case.right);
        let known = rows.keys().find(|(_, other)| *other == row).cloned();
        rows.entry(known.unwrap_or((at, row)))
            .or_default()
            .push(format!("`{name}`"));
    }
    for ((_, row), names) in rows {
        *text += &format!("| {} | {row} |\n", names.join(", "));
    }
}
