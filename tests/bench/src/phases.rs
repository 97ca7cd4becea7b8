//! What the time of a verb is spent on: the runtime is told to log debug messages, and those with
//! a time of the machine's clock say what a process of the runtime has just done. A phase lasts
//! from one such message to the next, whoever wrote them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::Value;

use crate::bundle::Scratch;
use crate::runtime::{Runtime, run};

/// Id of the container.
const ID: &str = "phases";

/// One verb from the start of its program to its end. Logging makes it somewhat slower than it
/// is otherwise.
#[derive(Debug, Serialize)]
pub(crate) struct Timeline {
    /// The runtime, the verb and the program.
    title: String,
    /// All of it, in microseconds.
    total_us: u64,
    /// Its parts, in the order of time, without gaps.
    phases: Vec<Phase>,
}

/// A part of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Phase {
    /// What was done at its end.
    done: String,
    /// The process that did it.
    process: String,
    /// Microseconds from the verb's start to its own.
    start_us: u64,
    /// Its length in microseconds.
    length_us: u64,
}

/// A message with a time.
#[derive(Debug)]
struct Mark {
    at_us: u64,
    process: String,
    done: String,
}

/// Measures the phases of `run` and `exec`, each as often as `runs` says; what comes back is the
/// run in the middle. Nothing for runtimes that log no times.
///
/// # Errors
/// If a verb fails or its log cannot be read.
pub(crate) fn measure(
    runtime: &Runtime,
    scratch: &Scratch,
    spec: &Value,
    runs: u32,
) -> Result<Vec<Timeline>> {
    let log = scratch.path().join("phases.log");
    let bundle = scratch.bundle("true", spec, &["/bin/true"])?;
    let bundle = bundle.to_string_lossy();
    let arguments = ["run", "--bundle", &bundle, ID];
    let Some(whole) = in_the_middle(runtime, &log, "run /bin/true", &arguments, runs)? else {
        return Ok(Vec::new());
    };
    let idle = scratch.bundle("idle", spec, &["/bin/sleep", "100000"])?;
    run(&mut runtime.verb(&["run", "--detach", "--bundle", &idle.to_string_lossy(), ID]))?;
    let arguments = ["exec", ID, "/bin/true"];
    let exec = in_the_middle(runtime, &log, "exec /bin/true", &arguments, runs);
    run(&mut runtime.verb(&["delete", "--force", ID]))?;
    Ok([Some(whole), exec?].into_iter().flatten().collect())
}

/// The timeline with the median time; the first run does not count.
fn in_the_middle(
    runtime: &Runtime,
    log: &Path,
    title: &str,
    arguments: &[&str],
    runs: u32,
) -> Result<Option<Timeline>> {
    let mut timelines = Vec::new();
    for _ in 0..=runs {
        let Some(timeline) = timeline(runtime, log, title, arguments)? else {
            return Ok(None);
        };
        timelines.push(timeline);
    }
    let mut timelines = timelines.split_off(1);
    timelines.sort_by_key(|timeline| timeline.total_us);
    let middle = timelines.len().saturating_sub(1) / 2;
    Ok(timelines.into_iter().nth(middle))
}

fn timeline(
    runtime: &Runtime,
    log: &Path,
    title: &str,
    arguments: &[&str],
) -> Result<Option<Timeline>> {
    // It may be left from the run before, and the runtime appends to it.
    fs::write(log, "")?;
    let mut command = runtime.logged_verb(log, arguments);
    let start_us = now_us();
    run(&mut command)?;
    let end_us = now_us();
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    let mut marks: Vec<Mark> = text.lines().filter_map(mark).collect();
    if marks.is_empty() {
        return Ok(None);
    }
    marks.push(Mark {
        at_us: end_us,
        process: runtime.name(),
        done: "program ended".to_owned(),
    });
    Ok(Some(Timeline {
        title: format!("{} {title}", runtime.name()),
        total_us: end_us.saturating_sub(start_us),
        phases: phases(start_us, marks),
    }))
}

/// The time of a line of the log, if it has one.
fn mark(line: &str) -> Option<Mark> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some(Mark {
        at_us: line["at_us"].as_str()?.parse().ok()?,
        process: line["process"].as_str()?.to_owned(),
        done: line["msg"].as_str()?.to_owned(),
    })
}

/// From marks to what lies between them. Processes write their marks in their own time.
fn phases(start_us: u64, mut marks: Vec<Mark>) -> Vec<Phase> {
    marks.sort_by_key(|mark| mark.at_us);
    let mut before_us = start_us;
    let mut phases = Vec::with_capacity(marks.len());
    for mark in marks {
        let at_us = mark.at_us.max(before_us);
        phases.push(Phase {
            done: mark.done,
            process: mark.process,
            start_us: before_us - start_us,
            length_us: at_us - before_us,
        });
        before_us = at_us;
    }
    phases
}

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part of the time since a boot is negative.
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_lie_between_marks_in_the_order_of_time() {
        let lines = [
            r#"{"at_us":"130","process":"b","level":"debug","msg":"second"}"#,
            r#"{"level":"warning","msg":"no time"}"#,
            r#"{"at_us":"110","process":"a","level":"debug","msg":"first"}"#,
            "no JSON",
        ];
        let marks: Vec<Mark> = lines.into_iter().filter_map(mark).collect();
        let phase = |done: &str, process: &str, start_us, length_us| Phase {
            done: done.to_owned(),
            process: process.to_owned(),
            start_us,
            length_us,
        };
        assert_eq!(
            phases(100, marks),
            [phase("first", "a", 0, 10), phase("second", "b", 10, 20)]
        );
    }

    #[test]
    fn a_mark_before_the_start_takes_no_time() {
        let mark = Mark {
            at_us: 5,
            process: "a".to_owned(),
            done: "early".to_owned(),
        };
        let phases = phases(100, vec![mark]);
        assert_eq!((phases[0].start_us, phases[0].length_us), (0, 0));
    }
}
