//! The foreground of `run`: the command line waits for the monitor, passes signals on to it, and
//! tells the guest the size of the terminal. The monitor does the rest, in a session of its own.

use std::os::fd::{AsFd as _, OwnedFd};

use lazaret_protocol::agent::{ProcessRef, Request};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::{VerbError, launch::Launched};
use crate::{agent::Agent, monitor, signals, sys, terminal};

/// Waits for the container's end; returns its exit code. All signals must have been blocked before
/// the container was made, or one that comes right after its start would end us without it.
///
/// # Errors
/// [`VerbError`].
pub(super) fn wait(launched: &Launched, terminal: Option<&OwnedFd>) -> Result<u8, VerbError> {
    let signals = signals::open_waiting().map_err(signal_error)?;
    loop {
        // First a look, for signals of the same kind that come together are one.
        if let Some(code) = ended(launched.pid)? {
            return Ok(code);
        }
        match signals::next(&signals).map_err(signal_error)? {
            libc::SIGCHLD | libc::SIGPIPE | libc::SIGURG => {}
            libc::SIGWINCH => resize(launched, terminal),
            number => {
                if let Err(error) = sys::kill(launched.pid, number) {
                    tracing::debug!("cannot pass on signal {number}: {error}");
                }
            }
        }
    }
}

fn signal_error(source: std::io::Error) -> VerbError {
    VerbError::Io {
        action: "receive",
        path: "signals".into(),
        source,
    }
}

fn ended(pid: i32) -> Result<Option<u8>, VerbError> {
    let status =
        waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).map_err(|error| VerbError::Io {
            action: "wait for",
            path: "the monitor".into(),
            source: error.into(),
        })?;
    let Some((_, status)) = status else {
        return Ok(None);
    };
    // A monitor that was killed cannot say how its container fared.
    let code = status
        .exit_status()
        .and_then(|code| u8::try_from(code).ok());
    Ok(Some(code.unwrap_or_else(|| {
        tracing::error!("the monitor process was killed");
        monitor::LOST
    })))
}

fn resize(launched: &Launched, terminal: Option<&OwnedFd>) {
    let Some(terminal) = terminal else {
        return;
    };
    let request = Request::Resize {
        process: ProcessRef {
            container: launched.dir.id().as_str().to_owned(),
            exec: None,
        },
        size: terminal::size(terminal.as_fd()),
    };
    if let Err(error) = Agent::new(&launched.dir).done(&request) {
        tracing::debug!("cannot pass on the size of the terminal: {error}");
    }
}
