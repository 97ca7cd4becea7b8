//! Which requirement of the runtime-spec which test proves: `lazaret-e2e conformance` prints
//! `docs/conformance.md`, and the tests here fail when that file, the catalogue and the cases
//! disagree. Called by `main`.

mod catalogue;
mod table;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;

use crate::{case::Case, cases};

/// Prints the document.
///
/// # Errors
/// If the catalogue cannot be read.
pub(crate) fn main() -> Result<ExitCode> {
    print!("{}", document()?);
    Ok(ExitCode::SUCCESS)
}

/// Text of `docs/conformance.md`.
fn document() -> Result<String> {
    Ok(table::markdown(&catalogue::documents()?, &coverage()))
}

/// The cases that prove a requirement, by its id, with their full names.
type Coverage = BTreeMap<String, Vec<(String, &'static Case)>>;

fn coverage() -> Coverage {
    let mut coverage = Coverage::new();
    for (name, case) in cases::all() {
        for id in case.covers.iter().flat_map(|ids| single(ids)) {
            coverage.entry(id).or_default().push((name.clone(), case));
        }
    }
    coverage
}

/// `runtime#start-2..4` is three ids. What is of no such form is itself, and found to be no id.
fn single(ids: &str) -> Vec<String> {
    let range = || {
        let (from, last) = ids.split_once("..")?;
        let (section, first) = from.rsplit_once('-')?;
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        Some((first..=last).map(|n| format!("{section}-{n}")).collect())
    };
    range().unwrap_or_else(|| vec![ids.to_owned()])
}
