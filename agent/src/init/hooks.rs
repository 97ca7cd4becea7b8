//! The hooks `startContainer`: run by the container's process in its own place, once it has been
//! released and before it becomes the program, as its user and with its rights (runtime-spec,
//! config.md "StartContainer Hooks"; runc does the same). Called by [`super::run`].
//!
//! The standard library could start a process, too, but it would make every guest's agent larger.

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use lazaret_protocol::hook::{Hook, StartHooks, describe_end, shown};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::errno::Os;
use crate::sys::{self, Child, StringArray};

/// A hook failed. The wording behind the list's name is runc's.
#[derive(Debug, thiserror::Error)]
#[error("hooks.startContainer: error running hook #{index}")]
pub(super) struct HookError {
    index: usize,
    #[source]
    source: Failure,
}

/// What can happen to a hook.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot execute {path}")]
    Start {
        path: String,
        #[source]
        source: Os,
    },
    #[error("{how}, stdout: {stdout}, stderr: {stderr}")]
    Failed {
        how: String,
        stdout: String,
        stderr: String,
    },
    #[error("hook ran past specified timeout of {0}.0s")]
    Timeout(u64),
    #[error("wait for the hook")]
    Wait(#[source] Os),
    #[error("make the hook's streams")]
    Streams(#[source] Os),
}

/// Runs the hooks in order, up to the first that fails. One that names no environment has the
/// program's.
pub(super) fn run(wanted: &StartHooks, environment: &StringArray) -> Result<(), HookError> {
    if wanted.hooks.is_empty() {
        return Ok(());
    }
    let pid = rustix::process::getpid().as_raw_nonzero();
    let state = with_pid(&wanted.state, pid.get());
    for (index, hook) in wanted.hooks.iter().enumerate() {
        run_one(hook, &state, environment).map_err(|source| HookError { index, source })?;
    }
    Ok(())
}

/// Puts this process's pid, as the container sees it, into the state.
fn with_pid(state: &str, pid: i32) -> String {
    state.replacen('{', &format!("{{\"pid\":{pid},"), 1)
}

fn run_one(hook: &Hook, state: &str, environment: &StringArray) -> Result<(), Failure> {
    let streams = |error: io::Error| Failure::Streams(error.into());
    let input = memory_file(state).map_err(streams)?;
    let output = memory_file("").map_err(streams)?;
    let errors = memory_file("").map_err(streams)?;
    let started = Instant::now();
    let child =
        start(hook, environment, [&input, &output, &errors]).map_err(|source| Failure::Start {
            path: hook.path.clone(),
            source,
        })?;
    let ended = wait(&child, started, hook.timeout_s);
    if ended.is_err() {
        // ESRCH: it has just ended. Either way there is nothing left of it afterwards.
        let _ = sys::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
    }
    let status = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    ended?;
    let status = status.map_err(|errno| Failure::Wait(Os(errno)))?;
    let code = status.as_ref().and_then(|status| status.exit_status());
    let signal = status
        .as_ref()
        .and_then(|status| status.terminating_signal());
    if code == Some(0) {
        return Ok(());
    }
    Err(Failure::Failed {
        how: describe_end(code, signal),
        stdout: shown(output),
        stderr: shown(errors),
    })
}

/// Starts a hook with these standard streams; returns once it is executed.
fn start(hook: &Hook, environment: &StringArray, streams: [&File; 3]) -> Result<Child, Os> {
    let text = |error: NulError| Os::from(io::Error::from(error));
    let path = CString::new(hook.path.as_str()).map_err(text)?;
    let default = std::slice::from_ref(&hook.path);
    let arguments = if hook.args.is_empty() {
        default
    } else {
        &hook.args
    };
    let arguments = arguments.iter().map(|text| CString::new(text.as_str()));
    let variables = hook.env.iter().flatten();
    let variables = variables.map(|(name, value)| CString::new(format!("{name}={value}")));
    let arguments = StringArray::new(arguments.collect::<Result<_, _>>().map_err(text)?);
    let variables = StringArray::new(variables.collect::<Result<_, _>>().map_err(text)?);
    let variables = match hook.env {
        Some(_) => &variables,
        None => environment,
    };
    let streams: [RawFd; 3] = streams.map(AsRawFd::as_raw_fd);
    // It closes when the hook is executed, or brings the number of the error.
    let (result, report) = pipe_with(PipeFlags::CLOEXEC).map_err(Os)?;
    // SAFETY: the child does nothing but system calls on data made before.
    let born = unsafe { sys::clone3(0, None) }.map_err(Os)?;
    let Some(child) = born else {
        let placed = (0..)
            .zip(streams)
            .try_for_each(|(target, source)| sys::place_descriptor(source, target));
        let errno = match placed {
            Ok(()) => sys::execve(&path, &arguments, variables),
            Err(errno) => errno,
        };
        // The parent then sees the pipe's end and this process's exit code.
        let _ = rustix::io::write(&report, &errno.raw_os_error().to_ne_bytes());
        sys::exit_now(1)
    };
    drop(report);
    let mut number = [0; 4];
    match File::from(result).read_exact(&mut number) {
        Err(_) => Ok(child),
        Ok(()) => {
            let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(Os(Errno::from_raw_os_error(i32::from_ne_bytes(number))))
        }
    }
}

fn wait(child: &Child, started: Instant, timeout_s: Option<u64>) -> Result<(), Failure> {
    loop {
        let mut left = None;
        if let Some(timeout_s) = timeout_s {
            let rest = Duration::from_secs(timeout_s).checked_sub(started.elapsed());
            let rest = rest.ok_or(Failure::Timeout(timeout_s))?;
            // More seconds than the kernel can count are as good as none.
            left = Timespec::try_from(rest).ok();
        }
        let mut ends = [PollFd::new(&child.pidfd, PollFlags::IN)];
        match poll(&mut ends, left.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(Failure::Wait(Os(errno))),
        }
    }
}

fn memory_file(content: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("lazaret-hook", MemfdFlags::CLOEXEC)?);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests;
