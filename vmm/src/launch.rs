//! The launch: from a socket to a VM that runs. Called by `main`; knows the wire, not the VM's
//! parts.

use std::os::unix::net::UnixStream;

use lazaret_protocol::{
    VERSION,
    frame::{self, FrameError},
    vm::{Launch, Launched, VmConfig},
};

use crate::{
    fds::{FdError, Fds},
    vm::{BuildError, Vm, builder},
    wire::{Frame, FrameReader},
};

/// Longest sandbox id.
const NAME_MAX_BYTES: usize = 255;

/// Why no VM was started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launch did not arrive.
    #[error("cannot receive the launch")]
    Receive(#[source] FrameError),
    /// The runtime is of another build.
    #[error("version: runtime speaks version {runtime}, this VMM version {VERSION}")]
    Version {
        /// Version of the runtime.
        runtime: u32,
    },
    /// The sandbox id cannot be used as a name.
    #[error("name: must be 1 to {NAME_MAX_BYTES} of [A-Za-z0-9_+.-]")]
    Name,
    /// A descriptor is missing.
    #[error(transparent)]
    Fd(#[from] FdError),
    /// More descriptors came than the configuration names.
    #[error("{count} descriptors were sent that no field names")]
    SurplusFds {
        /// How many.
        count: usize,
    },
    /// The VM cannot be made.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The vCPUs' threads cannot be started.
    #[error("cannot start vCPU threads")]
    Start(#[source] std::io::Error),
    /// The control socket cannot be served.
    #[error("control")]
    Control(#[source] std::io::Error),
}

/// A launch that has arrived.
#[derive(Debug)]
pub struct Received {
    /// What to run.
    pub config: VmConfig,
    /// With what.
    pub fds: Fds,
}

/// Waits for the launch on `socket`.
///
/// # Errors
/// When it does not arrive, is malformed or of another version.
pub fn receive(socket: &UnixStream) -> Result<Received, LaunchError> {
    let mut reader = FrameReader::default();
    let Frame { payload, fds } = loop {
        // `None` comes from non-blocking sockets only; one that is so is served all the same.
        if let Some(frame) = reader.read(socket).map_err(LaunchError::Receive)? {
            break frame;
        }
        wait_readable(socket)?;
    };
    let Launch { version, vm } = decode(&payload)?;
    if version != VERSION {
        return Err(LaunchError::Version { runtime: version });
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
    if !(1..=NAME_MAX_BYTES).contains(&vm.name.len()) || !vm.name.bytes().all(legal) {
        return Err(LaunchError::Name);
    }
    Ok(Received {
        config: vm,
        fds: Fds::new(fds),
    })
}

/// Another version's launch may not decode.
fn decode(payload: &[u8]) -> Result<Launch, LaunchError> {
    frame::decode(payload).map_err(|error| match frame::other_version(payload) {
        Some(runtime) => LaunchError::Version { runtime },
        None => LaunchError::Receive(error),
    })
}

fn wait_readable(socket: &UnixStream) -> Result<(), LaunchError> {
    use rustix::event::{PollFd, PollFlags, poll};
    let failed = |error: rustix::io::Errno| LaunchError::Receive(FrameError::Io(error.into()));
    poll(&mut [PollFd::new(socket, PollFlags::IN)], None).map_err(failed)?;
    Ok(())
}

/// Makes the VM of a launch; nothing runs yet.
///
/// # Errors
/// As [`builder::boot`], and when descriptors are left over.
pub fn build(config: &VmConfig, fds: &mut Fds) -> Result<Vm, LaunchError> {
    let vm = builder::boot(config, fds)?;
    match fds.unused() {
        0 => Ok(vm),
        count => Err(LaunchError::SurplusFds { count }),
    }
}

/// Tells the runtime how the launch went.
///
/// # Errors
/// When the runtime is gone.
pub fn answer(mut socket: &UnixStream, launched: &Launched) -> Result<(), FrameError> {
    frame::write(&mut socket, launched)
}

/// `error` and its causes on one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        line.push_str(": ");
        line.push_str(&source.to_string());
        cause = source.source();
    }
    line.replace('\n', " ")
}
