//! `events`: a container's figures at an interval, and word of the guest's kernel killing its
//! processes for want of memory, as JSON lines in runc's shape.

mod stats;

use std::time::Duration;

use lazaret_protocol::agent::{Answer, Request};
use serde::Serialize;

use super::{VerbError, open, option_error, print};
use crate::{
    agent::{Agent, AgentError},
    cli::{Events, Global},
    state::{StateDir, StateError, Status},
};
use stats::Stats;

/// One line.
#[derive(Debug, Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Stats>,
}

/// # Errors
/// [`VerbError`]; the container's end is none.
pub(super) fn run(global: &Global, options: &Events) -> Result<u8, VerbError> {
    let dir = open(global, &options.container_id)?;
    if options.interval.is_zero() {
        return Err(option_error(
            "--interval",
            "duration interval must be greater than 0",
        ));
    }
    if matches!(dir.status()?.0, Status::Stopped | Status::Creating) {
        return Err(VerbError::WrongStatus(format!(
            "container with id {} is not running",
            dir.id().as_str()
        )));
    }
    if options.stats {
        tell_stats(&dir)?;
    } else if let Err(error) = watch(&dir, options.interval)
        && !has_ended(&dir)
    {
        return Err(error);
    }
    Ok(0)
}

/// A call that breaks off because the container ended is its end, and no failure.
fn has_ended(dir: &StateDir) -> bool {
    matches!(
        dir.status(),
        Ok((Status::Stopped, _)) | Err(StateError::NotExist)
    )
}

fn tell_stats(dir: &StateDir) -> Result<(), VerbError> {
    let data = Some(stats::read(dir)?);
    tell(dir, "stats", data)
}

fn tell(dir: &StateDir, kind: &'static str, data: Option<Stats>) -> Result<(), VerbError> {
    let id = dir.id().as_str();
    let event = Event { kind, id, data };
    let line = serde_json::to_string(&event).expect("strings and numbers are valid JSON");
    print(&(line + "\n"))
}

/// Tells events until the container has ended.
fn watch(dir: &StateDir, interval: Duration) -> Result<(), VerbError> {
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|source| VerbError::Io {
            action: "start",
            path: "the reactor".into(),
            source,
        })?;
    reactor.block_on(async {
        let mut seen = stats::oom_kills(dir)?;
        let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        // As runc: a slow reader gets no burst of what it missed.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let watch = Agent::new(dir).begin(&Request::WatchOom {
                container: dir.id().as_str().to_owned(),
                seen,
            })?;
            let mut watched = std::pin::pin!(watch.finish_async());
            let answer = loop {
                tokio::select! {
                    answer = &mut watched => break answer?,
                    _ = ticks.tick() => tell_stats(dir)?,
                }
            };
            match answer {
                Answer::OomKills(kills) if kills > seen => {
                    for _ in seen..kills.min(seen.saturating_add(KILLS_AT_ONCE_MAX)) {
                        tell(dir, "oom", None)?;
                    }
                    seen = kills;
                }
                Answer::Exited(_) => return Ok(()),
                _ => return Err(AgentError::Unexpected.into()),
            }
        }
    })
}

/// Most lines for one answer: whatever a guest claims, its kernel kills fewer at a time.
const KILLS_AT_ONCE_MAX: u64 = 1024;
