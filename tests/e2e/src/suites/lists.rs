//! Which cases must pass: those that pass under the suite's own runtime (`suites/*.cases`, written
//! by `lazaret-e2e suite --record`), apart from the exceptions (`suites/exceptions.toml`).

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::Suite;

/// The cases that pass under runc.
const RUNC: &str = include_str!("../../suites/runc.cases");

/// The cases that pass under crun.
const CRUN: &str = include_str!("../../suites/crun.cases");

/// The only exceptions.
const EXCEPTIONS: &str = include_str!("../../suites/exceptions.toml");

/// Why a case may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Cause {
    /// It cannot hold where the container runs in a machine of its own.
    Never,
    /// What it needs is not built yet.
    Pending,
}

/// Cases that may fail, and must, for one reason.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    suite: Suite,
    cause: Cause,
    reason: String,
    cases: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    exception: Vec<Entry>,
}

/// A case that may fail, and must.
#[derive(Debug)]
pub(crate) struct Exception {
    /// `file::name`.
    pub(crate) case: String,
    /// Whether that can change.
    pub(crate) cause: Cause,
    /// Why.
    pub(crate) reason: String,
}

/// What is demanded of a runtime under a suite.
#[derive(Debug)]
pub(crate) struct Expectations {
    /// `file::name` of the cases that pass under the suite's own runtime.
    pub(crate) cases: Vec<String>,
    /// Those of them that may fail.
    pub(crate) exceptions: Vec<Exception>,
}

impl Expectations {
    /// Reads both lists and compares them.
    ///
    /// # Errors
    /// If an exception is about a case that is not in the list, or there are two about one.
    pub(crate) fn read(suite: Suite) -> Result<Self> {
        let cases = match suite {
            Suite::Runc => RUNC,
            Suite::Crun => CRUN,
        };
        Self::parse(suite, cases, EXCEPTIONS)
    }

    fn parse(suite: Suite, cases: &str, exceptions: &str) -> Result<Self> {
        let document: Document =
            toml::from_str(exceptions).context("cannot read the list of exceptions")?;
        let cases: Vec<String> = cases.lines().map(str::to_owned).collect();
        let known: BTreeSet<&str> = cases.iter().map(String::as_str).collect();
        let mut taken = BTreeSet::new();
        let mut found = Vec::new();
        for entry in document.exception {
            ensure!(!entry.reason.is_empty(), "an exception has no reason");
            if entry.suite != suite {
                continue;
            }
            for case in entry.cases {
                if !known.contains(case.as_str()) {
                    bail!(
                        "the exception {case} is none: it does not pass under {} either",
                        suite.name()
                    );
                }
                ensure!(taken.insert(case.clone()), "{case} is excepted twice");
                found.push(Exception {
                    case,
                    cause: entry.cause,
                    reason: entry.reason.clone(),
                });
            }
        }
        Ok(Self {
            cases,
            exceptions: found,
        })
    }
}

/// The names of cases by their files, in the order of the list.
///
/// # Errors
/// If a case is not `file::name`.
pub(super) fn by_file<'a>(
    cases: impl Iterator<Item = &'a String>,
) -> Result<Vec<(&'a str, Vec<&'a str>)>> {
    let mut files: Vec<(&str, Vec<&str>)> = Vec::new();
    for case in cases {
        let (file, name) = case.split_once("::").context("a case without a file")?;
        match files.last_mut() {
            Some((last, names)) if *last == file => names.push(name),
            _ => files.push((file, vec![name])),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(case: &str) -> String {
        format!(
            "[[exception]]\nsuite = \"runc\"\ncause = \"never\"\nreason = \"r\"\ncases = [\"{case}\"]\n"
        )
    }

    #[test]
    fn the_lists_in_the_checkout_agree() {
        for suite in [Suite::Runc, Suite::Crun] {
            let expectations = Expectations::read(suite).unwrap();
            assert!(!expectations.cases.is_empty());
        }
    }

    #[test]
    fn cases_of_a_file_are_together() {
        let cases = ["a::x", "a::y::z", "b::x"].map(str::to_owned);
        let files = by_file(cases.iter()).unwrap();
        assert_eq!(files, [("a", vec!["x", "y::z"]), ("b", vec!["x"])]);
        assert!(by_file([String::from("a")].iter()).is_err());
    }

    #[test]
    fn an_exception_for_no_case_is_refused() {
        let error = Expectations::parse(Suite::Runc, "a::b\n", &entry("a::c")).unwrap_err();
        assert!(error.to_string().contains("a::c is none"), "{error}");
        // The other suite's list is not asked.
        assert!(Expectations::parse(Suite::Crun, "", &entry("a::c")).is_ok());
    }

    #[test]
    fn a_case_is_excepted_once() {
        let twice = entry("a::b").repeat(2);
        let error = Expectations::parse(Suite::Runc, "a::b\n", &twice).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }
}
