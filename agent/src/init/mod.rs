//! The child that sets up a container, or enters one, and then becomes its program. Executed anew
//! from the agent's binary by [`crate::launch`], with one thread and one descriptor to talk over
//! ([`crate::instructions`]).
//!
//! It holds no rights the container does not get once it reports that it is prepared: after that
//! it only waits and executes the program.

mod devices;
mod hooks;
mod program;
mod setup;
mod terminal;

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use lazaret_protocol::agent::{Failure, FailureKind};
use lazaret_protocol::frame::{self, FrameError};
use lazaret_protocol::hook::StartHooks;
use nix::sys::signal::SigSet;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::attributes::{self, AttributeError};
use crate::capabilities::CapabilityError;
use crate::errno::{Os, chain};
use crate::instructions::{Instructions, Report, Rules, START};
use crate::mounts::MountError;
use crate::namespaces::NamespaceError;
use crate::rootfs::PathError;
use crate::seccomp::{Filter, SeccompError};
use crate::sys;
use program::{Program, ProgramError};

/// The container could not be set up.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("read the instructions")]
    Instructions(#[source] FrameError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error("device {path}")]
    Device {
        path: String,
        #[source]
        source: Os,
    },
    #[error("sysctl {name} = {value:?}")]
    Sysctl {
        name: String,
        value: String,
        #[source]
        source: Os,
    },
    #[error("sysctl name {0:?} is not made of letters, digits, '.', '/', '_' and '-'")]
    SysctlName(String),
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error("capabilities")]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Hook(#[from] hooks::HookError),
    #[error("{step}")]
    Step {
        step: &'static str,
        #[source]
        source: Os,
    },
}

impl InitError {
    /// Makes a `map_err` function for `step`.
    fn step<E: Into<Os>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Step {
            step,
            source: error.into(),
        }
    }

    fn kind(&self) -> FailureKind {
        match self {
            Self::SysctlName(_) | Self::Program(ProgramError::Text { .. }) => FailureKind::Invalid,
            Self::Program(error) if error.is_not_found() => FailureKind::NotFound,
            _ => FailureKind::System,
        }
    }
}

/// Exit code of a child whose failure was reported.
const EXIT_FAILURE: i32 = 1;

/// Runs the child, whose end of the socket pair is descriptor `channel`. Does not return: it
/// becomes the container's program, or ends.
///
/// # Safety
/// The descriptor is open, and nothing else in this process owns it.
pub unsafe fn main(channel: RawFd) -> ! {
    // SAFETY: the caller's obligation.
    let channel = unsafe { sys::inherited_fd(channel) };
    let mut channel = UnixStream::from(channel);
    if let Err(error) = run(&mut channel) {
        let failure = Failure {
            kind: error.kind(),
            message: chain(&error),
        };
        // If the agent is gone, so is the whole guest.
        let _ = frame::write(&mut channel, &Report::Failed(failure));
    }
    sys::exit_now(EXIT_FAILURE)
}

/// Returns `Ok` when the agent lets go of the child instead of starting it.
fn run(channel: &mut UnixStream) -> Result<(), InitError> {
    // Processes of containers, whose namespaces this one is in or enters, must not get at it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(InitError::step("become undumpable"))?;
    let instructions = frame::read(channel).map_err(InitError::Instructions)?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let (rules, hooks, (process, terminal)) = match instructions {
        Instructions::Container(mut instructions) => {
            let container = &mut instructions.container;
            let rules = Rules {
                seccomp: container.seccomp.take(),
                personality: container.personality,
            };
            let hooks = std::mem::take(&mut container.start_hooks);
            (rules, hooks, setup::build(*instructions)?)
        }
        Instructions::Exec(mut instructions) => {
            attributes::run_on(&instructions.process.cpu_affinity.initial)?;
            let rules = std::mem::take(&mut instructions.rules);
            let none = StartHooks::default();
            (rules, none, setup::enter(*instructions)?)
        }
    };
    let mut program = program::prepare(process, &rules)?;
    report_prepared(channel, terminal)?;
    let mut byte = [0];
    match channel.read(&mut byte) {
        Ok(1) if byte[0] == START => {}
        _ => return Ok(()),
    }
    // What is below is the program's.
    sys::close_on_exec_from(channel.as_raw_fd().cast_unsigned())
        .map_err(InitError::step("close descriptors on exec"))?;
    sys::ignore_broken_pipes(false);
    SigSet::empty()
        .thread_set_mask()
        .map_err(|errno| InitError::step("unblock signals")(std::io::Error::from(errno)))?;
    if !hooks.hooks.is_empty() {
        // As in runc, what filters the program filters its hooks.
        load(program.filter.take())?;
        hooks::run(&hooks, &program.environment)?;
    }
    Err(execute(program))
}

/// Executes the program; returns why it did not.
fn execute(program: Program) -> InitError {
    // The last thing before the program, which is all that the filter has to allow then.
    if let Err(error) = load(program.filter) {
        return error.into();
    }
    let errno = sys::execve(&program.path, &program.arguments, &program.environment);
    ProgramError::Exec {
        path: program.path.to_string_lossy().into_owned(),
        source: Os(errno),
    }
    .into()
}

/// Filters this process's system calls from now on, if there is a filter.
fn load(filter: Option<Filter>) -> Result<(), SeccompError> {
    filter.map_or(Ok(()), |filter| filter.load())
}

/// Tells the agent, and hands it the pty's master.
fn report_prepared(channel: &mut UnixStream, terminal: Option<OwnedFd>) -> Result<(), InitError> {
    let bytes = frame::encode(&Report::Prepared).map_err(InitError::Instructions)?;
    let Some(terminal) = terminal else {
        return channel
            .write_all(&bytes)
            .map_err(InitError::step("report to the agent"));
    };
    let fds = [terminal.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    // A frame of a few bytes into an empty socket is taken whole.
    sendmsg(
        &*channel,
        &[std::io::IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(|_| ())
    .map_err(InitError::step("hand the terminal to the agent"))
}
