//! Random but valid documents, each run under runc and under lazaret: what the container can see of
//! itself must be the same, after the differences that a virtual machine makes are taken out. Each
//! container gets some processes more by `exec`, with documents of their own: they cost much less.
//!
//! A document is a list of edits to the bundle that every case starts from, or to the process of its
//! container ([`document`]); the process prints what it sees ([`report`]); [`normalise`] says which
//! differences are none. A document that runc refuses must be refused. When two reports differ, edits are taken away until
//! only those are left that the difference needs.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::vm::LAZARET;
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    runtime::{Kind, Runtime},
};

mod document;
mod normalise;
mod report;

use document::{Document, Documents, hooks};

pub(crate) const TOPIC: Topic = Topic {
    name: "differential",
    cases: CASES,
    probes: PROBES,
};

const PROBES: &[(&str, Probe)] = &[("see", report::see)];

/// How many cases there are.
const PARTS: u64 = 4;

/// Containers of a case; each comes with the documents of a few processes more.
const CONTAINERS: u32 = 20;

/// The same with `--full`.
const CONTAINERS_FULL: u32 = 100;

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
        leading: Vec::new(),
    };
    let config = Config {
        cases: if test.full {
            CONTAINERS_FULL
        } else {
            CONTAINERS
        },
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

/// Runs documents under both and compares what they show.
fn compare(test: &Test, reference: &Runtime, documents: &Documents) -> Result<()> {
    let expected = run(test, reference, documents).context("runc")?;
    let found = run(test, &test.runtime, documents).context("lazaret")?;
    let names = std::iter::once("container".to_owned())
        .chain((1..=documents.processes.len()).map(|number| format!("exec {number}")));
    let mut problems = Vec::new();
    for ((name, mut expected), found) in names.zip(expected).zip(found) {
        if let Ok(report) = &mut expected {
            documents.container.show_newer(report);
        }
        let problem = difference(&expected, &found);
        let stopped = expected.is_err() || found.is_err();
        problems.extend(problem.map(|problem| format!("{name}: {problem}")));
        if stopped && name == "container" {
            break;
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// What a process shows of itself, or the error that it was refused with.
type Seen = Result<Value, String>;

fn difference(expected: &Seen, found: &Seen) -> Option<String> {
    match (expected, found) {
        (Ok(expected), Ok(found)) => {
            let differences = differences(expected, found);
            (!differences.is_empty()).then(|| differences.join("\n"))
        }
        (Err(_), Err(_)) => None,
        (Ok(_), Err(refusal)) => Some(format!("lazaret refuses: {refusal}")),
        (Err(refusal), Ok(_)) if normalise::is_the_hosts_refusal(refusal) => None,
        (Err(refusal), Ok(_)) => Some(format!("lazaret accepts what runc refuses: {refusal}")),
    }
}

/// What the container shows and then the processes in it.
fn run(test: &Test, runtime: &Runtime, documents: &Documents) -> Result<Vec<Seen>> {
    let mut bundle = test.bundle("see", &["stay"])?;
    let newer = runtime.kind == Kind::Lazaret;
    documents.container.apply(&mut bundle, &test.probe, newer)?;
    let (input, keep) = std::io::pipe()?;
    let (output, writer) = std::io::pipe()?;
    let running = runtime.run(&bundle)?.stdin(input).stdout(writer).spawn()?;
    let line = Dialogue::from(output).line()?;
    let mut seen = Vec::new();
    if line.is_some() {
        for process in &documents.processes {
            seen.push(run_process(test, runtime, &bundle, process)?);
        }
    }
    // The end of its input is the end of the container.
    drop(keep);
    let ended = running.wait()?;
    let container = match line {
        Some(line) => {
            ended.code(0)?;
            let mut report: Value = serde_json::from_str(&line)?;
            report["hooks"] = hooks::lines(&bundle)?;
            normalise::normalise(&mut report);
            Ok(report)
        }
        None => Err(ended.stderr.trim_end().to_owned()),
    };
    std::fs::remove_dir_all(&bundle.directory)?;
    seen.insert(0, container);
    Ok(seen)
}

/// What a process shows that is started in the container of `bundle`.
fn run_process(
    test: &Test,
    runtime: &Runtime,
    bundle: &Bundle,
    document: &Document,
) -> Result<Seen> {
    let mut edited = Bundle {
        directory: bundle.directory.clone(),
        id: bundle.id.clone(),
        config: json!({ "process": bundle.config["process"] }),
    };
    edited.probe("see", &[]);
    document.apply(&mut edited, &test.probe, false)?;
    // Debian's runc gives every such process this mask, newer ones the container's.
    edited.set(document::UMASK, json!(0o022));
    let file = bundle.directory.join("process.json");
    std::fs::write(&file, edited.config["process"].to_string())?;
    let output = runtime
        .verb("exec", &[&bundle.id])
        .option(&["--process", &file.to_string_lossy()])
        .output()?;
    if !output.status.success() {
        return Ok(Err(output.stderr.trim_end().to_owned()));
    }
    let mut report = output.json()?;
    normalise::normalise_exec(&mut report);
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
