//! `delete`: takes away what is left of a container; safe to repeat.

use std::time::Duration;

use lazaret_protocol::agent::{ProcessRef, Request};

use super::{VerbError, hooks, open};
use crate::{
    agent::{Agent, AgentError},
    cli::{Delete, Global},
    host_cgroup,
    process::{self, ProcessId},
    sandbox,
    state::{StateDir, StateError, Status},
};

/// How long a container may take to end by itself, once its process was killed, before its VM is.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Delete) -> Result<u8, VerbError> {
    match delete(global, options) {
        Err(VerbError::State(StateError::NotExist)) if options.force => Ok(0),
        result => result.map(|()| 0),
    }
}

fn delete(global: &Global, options: &Delete) -> Result<(), VerbError> {
    let dir = open(global, &options.container_id)?;
    let mut status = dir.status()?.0;
    if status == Status::Creating && options.force {
        // Its creator gives the lock back when it is done; one that has lost its caller gives up
        // and cleans up.
        dir.lock()?;
        status = dir.status()?.0;
        dir.unlock();
    }
    match status {
        Status::Stopped => destroy(&dir),
        // As runc: a container that was never started may go.
        Status::Created => take_down(&dir),
        Status::Running | Status::Paused if options.force => take_down(&dir),
        status => Err(VerbError::WrongStatus(format!(
            "cannot delete container {} that is not stopped: {}",
            options.container_id,
            status.as_str()
        ))),
    }
}

/// Ends a container that has a process, and removes it.
///
/// # Errors
/// [`VerbError`].
pub(super) fn take_down(dir: &StateDir) -> Result<(), VerbError> {
    kill(dir);
    destroy(dir)
}

/// Asks the guest to kill the container; its monitor then ends in good order.
pub(super) fn kill(dir: &StateDir) {
    let request = Request::Signal {
        process: ProcessRef {
            container: dir.id().as_str().to_owned(),
            exec: None,
        },
        signal: libc::SIGKILL,
        all: true,
    };
    match Agent::new(dir).done(&request) {
        Ok(()) => {}
        // A guest that is silent is not ending, as one that is gone or has nobody to kill.
        Err(error @ AgentError::Timeout) => {
            tracing::warn!(id = dir.id().as_str(), "cannot kill the container: {error}");
        }
        Err(error) => tracing::debug!("cannot kill the container's processes: {error}"),
    }
}

/// Waits for the processes that stand for the container, kills what does not end, removes the cgroup
/// and the state, and runs the `poststop` hooks.
///
/// # Errors
/// [`VerbError`].
pub(super) fn destroy(dir: &StateDir) -> Result<(), VerbError> {
    let record = dir.read()?;
    if let Some(record) = &record {
        end("monitor", record.monitor);
        // With the last of its monitors the VM ends, too: they hold its lifelines.
        if !sandbox::leave(dir, record)? {
            end("VMM", record.vmm);
        }
    }
    host_cgroup::remove(dir)?;
    dir.remove()?;
    if let Some(record) = &record {
        hooks::poststop(dir, record, &record.hooks.poststop);
    }
    Ok(())
}

fn end(what: &str, process: ProcessId) {
    let Some(pidfd) = process.open() else {
        return;
    };
    if !process::wait_for_end(&pidfd, END_TIMEOUT) {
        let pid = process.pid;
        tracing::warn!("the container's {what}, process {pid}, does not end: killing it");
        process::kill_and_wait(&pidfd, END_TIMEOUT);
    }
}
