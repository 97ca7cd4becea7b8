//! Runs the hooks that belong to the host. Called by the monitor (`prestart`, `createRuntime`,
//! `createContainer`) and by the verbs (`poststart`, `poststop`); those of `startContainer` are the
//! agent's. What a hook is and when it comes is the runtime-spec's: runtime.md "Lifecycle".
//!
//! A hook's standard streams are files in memory: it can neither block on them nor, by a child that
//! outlives it, hold us up. What it wrote is shown when it fails, as runc does.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Seek as _, Write as _},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lazaret_protocol::hook::{Hook, describe_end, shown};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::MemfdFlags,
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::sys;

/// The state of a container, as a hook reads it from its standard input (runtime.md "State").
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State<'a> {
    /// `ociVersion` of the bundle.
    pub(crate) oci_version: &'a str,
    /// Container id.
    pub(crate) id: &'a str,
    /// The word for how far it has come.
    pub(crate) status: &'static str,
    /// Pid of the monitor; 0 is left out.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) pid: i32,
    /// Absolute path of the bundle.
    pub(crate) bundle: &'a Path,
    /// The bundle's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a field by reference"
)]
fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl State<'_> {
    /// As JSON.
    pub(crate) fn to_json(self) -> String {
        serde_json::to_string(&self).expect("strings and numbers are valid JSON")
    }
}

/// Hooks of a container that exists, kept in its record: the bundle may change meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LaterHooks {
    /// Whether the guest runs some before the process.
    pub(crate) start_container: bool,
    /// Run once the process was released.
    pub(crate) poststart: Vec<Hook>,
    /// Run once nothing is left.
    pub(crate) poststop: Vec<Hook>,
}

impl LaterHooks {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        !self.start_container && self.poststart.is_empty() && self.poststop.is_empty()
    }
}

/// A hook of a list failed; the wording behind the list's name is runc's.
#[derive(Debug, thiserror::Error)]
#[error("hooks.{list}: error running hook #{index}")]
pub(crate) struct HookError {
    /// Name of the list.
    list: &'static str,
    /// Its place in it, from 0.
    index: usize,
    /// What happened.
    #[source]
    source: Failure,
}

/// What can happen to a hook.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// It cannot be executed.
    #[error("cannot execute {path}")]
    Start {
        path: String,
        #[source]
        source: io::Error,
    },
    /// It ended with something else than exit code 0.
    #[error("{how}, stdout: {stdout}, stderr: {stderr}")]
    Failed {
        how: String,
        stdout: String,
        stderr: String,
    },
    /// It took too long.
    #[error("hook ran past specified timeout of {timeout_s}.0s")]
    Timeout { timeout_s: u64 },
    /// Whoever waits for it has gone.
    #[error("interrupted")]
    Interrupted,
    /// It cannot be given what it needs.
    #[error("cannot {action}")]
    Host {
        action: &'static str,
        #[source]
        source: io::Error,
    },
}

fn host<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Failure {
    move |source| Failure::Host {
        action,
        source: source.into(),
    }
}

/// Where hooks run.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place<'a> {
    /// Mount namespace, if it is another than ours.
    pub(crate) mount_namespace: Option<BorrowedFd<'a>>,
    /// Working directory, if it is another than ours.
    pub(crate) directory: Option<&'a Path>,
}

/// Runs the hooks of `list` in order. One that is running is killed when one of `interrupts`
/// becomes readable, or loses its other end.
///
/// # Errors
/// [`HookError`] for the first that fails; those behind it are not run.
pub(crate) fn run(
    list: &'static str,
    hooks: &[Hook],
    state: State<'_>,
    place: Place<'_>,
    interrupts: &[BorrowedFd<'_>],
) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run_one(hook, state, place, interrupts).map_err(|source| HookError {
            list,
            index,
            source,
        })?;
    }
    Ok(())
}

/// Runs all hooks of `list`, whatever becomes of each: a failure is a warning (the runtime-spec
/// wants this of `poststop`).
pub(crate) fn run_all(list: &'static str, hooks: &[Hook], state: State<'_>, place: Place<'_>) {
    for (index, hook) in hooks.iter().enumerate() {
        if let Err(source) = run_one(hook, state, place, &[]) {
            let error = HookError {
                list,
                index,
                source,
            };
            tracing::warn!(id = state.id, "{}", crate::log::chain(&error));
        }
    }
}

fn run_one(
    hook: &Hook,
    state: State<'_>,
    place: Place<'_>,
    interrupts: &[BorrowedFd<'_>],
) -> Result<(), Failure> {
    let input = memory_file(state.to_json().as_bytes())?;
    let (output, errors) = (memory_file(b"")?, memory_file(b"")?);
    let started = Instant::now();
    let mut child = command(hook, place, [&input, &output, &errors])?
        .spawn()
        .map_err(|source| Failure::Start {
            path: hook.path.clone(),
            source,
        })?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("the kernel's pids are positive");
    let ended = pidfd_open(pid, PidfdFlags::empty())
        .map_err(host("watch the hook"))
        .and_then(|pidfd| wait(&pidfd, started, hook.timeout_s, interrupts));
    let status = match ended {
        Ok(()) => child.wait().map_err(host("wait for the hook"))?,
        Err(error) => {
            // It may just have ended; either way there is nothing left of it afterwards.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    if status.success() {
        return Ok(());
    }
    Err(Failure::Failed {
        how: describe_end(status.code(), status.signal()),
        stdout: shown(output),
        stderr: shown(errors),
    })
}

fn command(hook: &Hook, place: Place<'_>, streams: [&File; 3]) -> Result<Command, Failure> {
    use std::os::unix::process::CommandExt as _;

    let stream = |file: &File| file.try_clone().map(Stdio::from);
    let [input, output, errors] = streams.map(stream);
    let failed = || host("make the hook's streams");
    let mut command = Command::new(&hook.path);
    command
        .arg0(hook.args.first().unwrap_or(&hook.path))
        .args(hook.args.iter().skip(1))
        .stdin(input.map_err(failed())?)
        .stdout(output.map_err(failed())?)
        .stderr(errors.map_err(failed())?);
    if let Some(env) = &hook.env {
        let env = env.iter().map(|(name, value)| (name, value));
        command.env_clear().envs(env);
    }
    let namespace = place.mount_namespace.map(|fd| fd.try_clone_to_owned());
    let namespace = namespace.transpose().map_err(failed())?;
    sys::place_child(&mut command, namespace, place.directory)
        .map_err(host("name the hook's directory"))?;
    Ok(command)
}

/// Waits for the end of the process behind `pidfd`.
fn wait(
    pidfd: &OwnedFd,
    started: Instant,
    timeout_s: Option<u64>,
    interrupts: &[BorrowedFd<'_>],
) -> Result<(), Failure> {
    loop {
        let left = timeout_s
            .map(|timeout_s| {
                let left = Duration::from_secs(timeout_s).checked_sub(started.elapsed());
                left.ok_or(Failure::Timeout { timeout_s })
            })
            .transpose()?;
        // More seconds than the kernel can count are as good as none.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut fds = vec![PollFd::new(pidfd, PollFlags::IN)];
        fds.extend(
            interrupts
                .iter()
                .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(host("wait for the hook")(error)),
        }
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        if fds[1..].iter().any(|fd| !fd.revents().is_empty()) {
            return Err(Failure::Interrupted);
        }
    }
}

fn memory_file(content: &[u8]) -> Result<File, Failure> {
    let failed = || host("make the hook's streams");
    let file = rustix::fs::memfd_create("lazaret-hook", MemfdFlags::CLOEXEC);
    let mut file = File::from(file.map_err(host("make the hook's streams"))?);
    file.write_all(content).map_err(failed())?;
    file.rewind().map_err(failed())?;
    Ok(file)
}

#[cfg(test)]
mod tests;
