//! `start`: releases the process of a created container.

use lazaret_protocol::agent::Request;

use super::{VerbError, hooks, open};
use crate::{
    agent::Agent,
    cli::{Container, Global},
    state::{Phase, Status},
};

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Container) -> Result<u8, VerbError> {
    let dir = open(global, &options.container_id)?;
    // Two starts at the same time: the second finds the container running.
    dir.lock()?;
    let (status, record) = dir.status()?;
    let reason = match status {
        Status::Created => None,
        Status::Stopped => Some("cannot start a container that has stopped"),
        Status::Running => Some("cannot start an already running container"),
        Status::Paused => Some("cannot start a container in the paused state"),
        Status::Creating => Some("cannot start a container in the creating state"),
    };
    let (None, Some(mut record)) = (reason, record) else {
        return Err(VerbError::WrongStatus(
            reason.unwrap_or_default().to_owned(),
        ));
    };
    let agent = Agent::new(&dir);
    let request = Request::StartContainer {
        container: dir.id().as_str().to_owned(),
    };
    if record.hooks.start_container {
        agent.begin(&request)?.finish_late(&[])?;
    } else {
        agent.done(&request)?;
    }
    record.phase = Phase::Running;
    dir.write(&record)?;
    // Hooks may use every verb.
    dir.unlock();
    hooks::poststart(&dir, &record)?;
    Ok(0)
}
