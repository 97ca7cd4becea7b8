//! `pause` and `resume`: freeze and thaw a container.

use lazaret_protocol::agent::Request;

use super::{VerbError, open};
use crate::{
    agent::Agent,
    cli::{Container, Global},
    state::{Phase, Status},
};

/// # Errors
/// [`VerbError`].
pub(super) fn pause(global: &Global, options: &Container) -> Result<u8, VerbError> {
    let container = options.container_id.clone();
    let request = Request::Pause { container };
    change(global, options, Status::Running, &request, Phase::Paused)
}

/// # Errors
/// [`VerbError`].
pub(super) fn resume(global: &Global, options: &Container) -> Result<u8, VerbError> {
    let container = options.container_id.clone();
    let request = Request::Resume { container };
    change(global, options, Status::Paused, &request, Phase::Running)
}

fn change(
    global: &Global,
    options: &Container,
    from: Status,
    request: &Request,
    to: Phase,
) -> Result<u8, VerbError> {
    let dir = open(global, &options.container_id)?;
    dir.lock()?;
    let (status, record) = dir.status()?;
    let (true, Some(mut record)) = (status == from, record) else {
        let reason = match from {
            Status::Paused => "container not paused",
            _ => "container not running",
        };
        return Err(VerbError::WrongStatus(reason.to_owned()));
    };
    Agent::new(&dir).done(request)?;
    record.phase = to;
    dir.write(&record)?;
    Ok(0)
}
