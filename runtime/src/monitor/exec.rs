//! The monitor of an exec: the process that stands for a further process of a container, and what
//! it shares with an exec that stays in the foreground. Called by `exec`.

use std::{
    io::PipeWriter,
    os::{
        fd::{AsFd as _, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use lazaret_protocol::{
    agent::{ExitStatus, ProcessRef, Request},
    container::Process,
};

use super::{
    LOST, MonitorError,
    birth::{fork, report_created, report_failure},
    release_input_and_output, release_standard_error,
    session::{HostStreams, Session, SessionError},
};
use crate::{
    agent::Agent,
    log,
    state::{StateDir, StateError, Status},
};

/// A process to run beside a container's own.
pub(crate) struct ExecJob<'a> {
    /// The container's directory.
    pub(crate) dir: &'a StateDir,
    /// The process.
    pub(crate) process: ProcessRef,
    /// What to run.
    pub(crate) spec: Process,
    /// Where in the container.
    pub(crate) place: Place<'a>,
    /// Socket that wants the pty.
    pub(crate) console: Option<UnixStream>,
    /// Descriptors of the caller that the process gets beside its standard streams.
    pub(crate) preserved: Vec<OwnedFd>,
}

/// Where in a container a further process goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Path of a cgroup below the container's; empty is the container's own.
    pub(crate) cgroup: &'a str,
    /// Whether a paused container takes it; the process then waits to be resumed.
    pub(crate) ignore_paused: bool,
}

/// Forks the monitor of an exec and waits until the process runs.
///
/// # Errors
/// [`MonitorError`].
pub(crate) fn exec(job: ExecJob<'_>) -> Result<i32, MonitorError> {
    let mut keep = vec![job.dir.as_fd().as_raw_fd()];
    keep.extend(job.console.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend(job.preserved.iter().map(AsRawFd::as_raw_fd));
    fork(&keep, false, None, |report, _| monitor_exec(job, report))
}

fn monitor_exec(mut job: ExecJob<'_>, report: PipeWriter) -> u8 {
    let session = match start_exec(&mut job) {
        Ok(session) => session,
        Err(error) => {
            report_failure(report, &error);
            return LOST;
        }
    };
    if report_created(report).is_err() {
        return LOST;
    }
    exit_code_of_exec(session.run(), job.dir)
}

fn start_exec(job: &mut ExecJob<'_>) -> Result<Session, MonitorError> {
    let preserved = std::mem::take(&mut job.preserved);
    let streams = HostStreams::detached(job.console.as_ref(), job.spec.terminal, preserved)?;
    let session = exec_session(job.dir, &job.process, &job.spec, job.place, streams)?;
    release_input_and_output()?;
    release_standard_error()?;
    Ok(session)
}

/// Runs a process in a container and attaches to it.
///
/// # Errors
/// [`MonitorError`].
pub(crate) fn exec_session(
    dir: &StateDir,
    process: &ProcessRef,
    spec: &Process,
    place: Place<'_>,
    streams: HostStreams,
) -> Result<Session, MonitorError> {
    let agent = Agent::new(dir);
    let call = agent.begin(&Request::Exec {
        process: process.clone(),
        spec: Box::new(spec.clone()),
        cgroup: place.cgroup.to_owned(),
        ignore_paused: place.ignore_paused,
    })?;
    if place.ignore_paused {
        call.finish_when_resumed()?;
    } else {
        call.finish()?;
    }
    log::phase("process started");
    let session = Session::attach(agent, process.clone(), spec, streams)?;
    log::phase("streams attached");
    Ok(session)
}

/// What an exec's session says about its exit code. A process whose container ended was killed
/// with it, which the kernel would have reported as signal 9.
pub(crate) fn exit_code_of_exec(result: Result<ExitStatus, SessionError>, dir: &StateDir) -> u8 {
    match result {
        Ok(status) => status.shell_code(),
        Err(error) => {
            let stopped = matches!(
                dir.status(),
                Ok((Status::Stopped, _)) | Err(StateError::NotExist)
            );
            if stopped {
                return ExitStatus::Signaled(9).shell_code();
            }
            tracing::error!("exec failed: {}", log::chain(&error));
            LOST
        }
    }
}
