//! Random but valid documents, each run under runc and under lazaret: what the container can see of
//! itself must be the same, after the differences that a virtual machine makes are taken out.
//!
//! A document is a list of edits to the bundle that every case starts from ([`document`]); the
//! container prints what it sees ([`report`]); [`normalise`] says which differences are none.
//! A document that runc refuses must be refused. When two reports differ, edits are taken away until
//! only those are left that the difference needs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use super::vm::LAZARET;
use crate::{
    case::{Case, Probe, Test, Topic, case},
    runtime::{Kind, Runtime},
};

mod document;
mod normalise;
mod report;

use document::Document;

pub(crate) const TOPIC: Topic = Topic {
    name: "differential",
    cases: CASES,
    probes: PROBES,
};

const PROBES: &[(&str, Probe)] = &[("see", report::see)];

/// How many cases there are.
const PARTS: u64 = 4;

/// Documents of a case.
const DOCUMENTS: u32 = 6;

/// The same with `--full`.
const DOCUMENTS_FULL: u32 = 100;

/// Runs spent on taking edits away from a document that shows a difference.
const SHRINK_RUNS: u32 = 40;

/// One part of the documents, so that several hosts can share them.
macro_rules! part {
    ($function:ident, $number:literal) => {
        fn $function(test: &Test) -> Result<()> {
            compare_documents(test, $number)
        }
    };
}

part!(documents_1, 1);
part!(documents_2, 2);
part!(documents_3, 3);
part!(documents_4, 4);

const REASON: &str = "runs each document under runc and under lazaret";
const TIMEOUT_S: u64 = 1200;

const CASES: &[Case] = &[
    case!(documents_1)
        .only(LAZARET, REASON)
        .timeout_s(TIMEOUT_S),
    case!(documents_2)
        .only(LAZARET, REASON)
        .timeout_s(TIMEOUT_S),
    case!(documents_3)
        .only(LAZARET, REASON)
        .timeout_s(TIMEOUT_S),
    case!(documents_4)
        .only(LAZARET, REASON)
        .timeout_s(TIMEOUT_S),
];

fn compare_documents(test: &Test, part: u64) -> Result<()> {
    // A runtime written in Go raises the soft limit, and its containers may get that one.
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised)?;
    let reference = Runtime {
        kind: Kind::Runc,
        program: Kind::Runc.program()?,
        root: test.directory.join("reference"),
    };
    let config = Config {
        cases: if test.full { DOCUMENTS_FULL } else { DOCUMENTS },
        max_shrink_iters: SHRINK_RUNS,
        failure_persistence: None,
        ..Config::default()
    };
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&test.seed.to_le_bytes());
    seed[8..16].copy_from_slice(&(PARTS + part).to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let result = TestRunner::new_with_rng(config, random).run(&document::any(), |document| {
        compare(test, &reference, &document)
            .map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    match result {
        Ok(()) => Ok(()),
        Err(TestError::Fail(reason, document)) => {
            anyhow::bail!("{reason}\ndocument: {document}")
        }
        Err(TestError::Abort(reason)) => anyhow::bail!("gave up: {reason}"),
    }
}

/// Runs one document under both and compares what they show.
fn compare(test: &Test, reference: &Runtime, document: &Document) -> Result<()> {
    let expected = run(test, reference, document).context("runc")?;
    let found = run(test, &test.runtime, document).context("lazaret")?;
    match (expected, found) {
        (Ok(expected), Ok(found)) => {
            let differences = differences(&expected, &found);
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(())
        }
        (Err(_), Err(_)) => Ok(()),
        (Ok(_), Err(refusal)) => anyhow::bail!("lazaret refuses: {refusal}"),
        (Err(refusal), Ok(_)) if normalise::is_the_hosts_refusal(&refusal) => Ok(()),
        (Err(refusal), Ok(_)) => anyhow::bail!("lazaret accepts what runc refuses: {refusal}"),
    }
}

/// The report of a document's container, or the error that it was refused with.
fn run(test: &Test, runtime: &Runtime, document: &Document) -> Result<Result<Value, String>> {
    let mut bundle = test.bundle("see", &[])?;
    document.apply(&mut bundle)?;
    let output = runtime.run(&bundle)?.output()?;
    std::fs::remove_dir_all(&bundle.directory)?;
    if !output.status.success() {
        return Ok(Err(output.stderr.trim_end().to_owned()));
    }
    let mut report = output.json()?;
    normalise::normalise(&mut report);
    Ok(Ok(report))
}

/// One line for each place of two reports with different values.
fn differences(expected: &Value, found: &Value) -> Vec<String> {
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    flatten(expected, String::new(), &mut left);
    flatten(found, String::new(), &mut right);
    let mut places: Vec<&String> = left.keys().chain(right.keys()).collect();
    places.sort_unstable();
    places.dedup();
    places
        .into_iter()
        .filter(|place| left.get(*place) != right.get(*place))
        .map(|place| {
            let show = |side: &BTreeMap<String, &Value>| {
                side.get(place)
                    .map_or_else(|| "nothing".to_owned(), ToString::to_string)
            };
            format!("{place}: runc {}, lazaret {}", show(&left), show(&right))
        })
        .collect()
}

fn flatten<'a>(value: &'a Value, place: String, flat: &mut BTreeMap<String, &'a Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                flatten(value, format!("{place}/{key}"), flat);
            }
        }
        other => {
            flat.insert(place, other);
        }
    }
}

#[cfg(test)]
mod tests;
