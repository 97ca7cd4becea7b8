//! Times of the verbs, by the clock of the host.

use std::time::Instant;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use serde_json::Value;

use crate::bundle::Scratch;
use crate::runtime::{Runtime, run};

/// Id of the container that is measured; there is one at a time.
const ID: &str = "bench";

/// The verbs whose times are measured one by one, in the order of a container's life.
const VERBS: [&str; 7] = [
    "create", "start", "exec", "events", "update", "kill", "delete",
];

/// What `update` sets, in bytes: more than the container uses.
const MEMORY: &str = "67108864";

/// Times of one runtime.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// The runtime.
    runtime: String,
    /// `run` of `/bin/true`.
    run: Spread,
    /// Each verb alone that the runtime has; in a running container `exec` is of `/bin/true`,
    /// `events` shows the figures once, and `update` sets the memory limit.
    verbs: Vec<(&'static str, Option<Spread>)>,
}

/// Seconds of several runs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Spread {
    /// Fastest.
    minimum: f64,
    /// In the middle: of an even number of times, the mean of the two.
    median: f64,
    /// Slowest.
    maximum: f64,
}

impl Spread {
    /// Of at least one time.
    pub(crate) fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        // The same one twice if their number is odd.
        let (lower, upper) = ((seconds.len() - 1) / 2, seconds.len() / 2);
        Self {
            minimum: seconds[0],
            median: f64::midpoint(seconds[lower], seconds[upper]),
            maximum: seconds[seconds.len() - 1],
        }
    }
}

/// Measures one runtime.
///
/// # Errors
/// If a verb fails: a time of a failure is no time.
pub(crate) fn measure(
    runtime: &Runtime,
    scratch: &Scratch,
    spec: &Value,
    runs: u32,
) -> Result<Figures> {
    let bundle = scratch.bundle("true", spec, &["/bin/true"])?;
    let bundle = bundle.to_string_lossy();
    let mut seconds = Vec::new();
    for _ in 0..=runs {
        let started = Instant::now();
        run(&mut runtime.verb(&["run", "--bundle", &bundle, ID]))?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    let idle = scratch.bundle("idle", spec, &["/bin/sleep", "100000"])?;
    let idle = idle.to_string_lossy();
    let mut verbs: Vec<Vec<f64>> = vec![Vec::new(); VERBS.len()];
    for _ in 0..=runs {
        for (seconds, verb) in verbs.iter_mut().zip(VERBS) {
            if runtime.has(verb) {
                seconds.push(time_verb(runtime, verb, &idle)?);
            }
        }
    }
    Ok(Figures {
        runtime: runtime.name(),
        run: counted(seconds).expect("every runtime has it"),
        verbs: VERBS
            .into_iter()
            .zip(verbs)
            .map(|(verb, seconds)| (verb, counted(seconds)))
            .collect(),
    })
}

/// The times but the first, which warms up; `None` if there are none.
fn counted(mut seconds: Vec<f64>) -> Option<Spread> {
    (seconds.len() > 1).then(|| Spread::of(seconds.split_off(1)))
}

/// Seconds of one verb. `kill` includes the time until the container's process is gone.
fn time_verb(runtime: &Runtime, verb: &str, bundle: &str) -> Result<f64> {
    let arguments: &[&str] = match verb {
        "create" => &["create", "--bundle", bundle, ID],
        "exec" => &["exec", ID, "/bin/true"],
        "events" => &["events", "--stats", ID],
        "update" => &["update", "--memory", MEMORY, ID],
        "kill" => &["kill", ID, "KILL"],
        _ => &[verb, ID],
    };
    let process = if verb == "kill" {
        Some(process_of(runtime)?)
    } else {
        None
    };
    let started = Instant::now();
    run(&mut runtime.verb(arguments))?;
    if let Some(process) = process {
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    }
    Ok(started.elapsed().as_secs_f64())
}

/// The container's process, as a descriptor that becomes readable when it ends.
fn process_of(runtime: &Runtime) -> Result<rustix::fd::OwnedFd> {
    let state = runtime.state(ID)?;
    let pid = state["pid"]
        .as_i64()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .ok_or_else(|| anyhow::anyhow!("state shows no pid: {state}"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        let spread = Spread::of(vec![4.0, 1.0, 2.0, 9.0]);
        assert_eq!(
            (spread.minimum, spread.median, spread.maximum),
            (1.0, 3.0, 9.0)
        );
        let spread = Spread::of(vec![5.0, 1.0, 2.0]);
        assert_eq!(
            (spread.minimum, spread.median, spread.maximum),
            (1.0, 2.0, 5.0)
        );
    }
}
