//! The verbs, one file each. Called by the library's entry with the parsed command line.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    agent::AgentError,
    bundle::BundleError,
    cli::{CgroupDriver, Cli, Global, Verb},
    config::ConfigError,
    hooks::HookError,
    host_cgroup::CgroupError,
    monitor::{self, MonitorError, session::SessionError},
    plan::PlanError,
    sandbox::SandboxError,
    state::{ContainerId, StateDir, StateError, Status, Store},
    terminal::TerminalError,
};

mod check;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod foreground;
mod hooks;
mod kill;
mod launch;
mod list;
mod pause;
mod pidfd_socket;
mod preserve_fds;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod version;

/// Why a verb did not do what it says. The wording about states is runc's.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerbError {
    /// The bundle cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle asks for something impossible.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no sandbox to join.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The state cannot be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The sandbox's cgroup cannot be made or removed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The agent did not do its part.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The monitor did not get its process.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The session broke off.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// There is no terminal.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The container is in the wrong state.
    #[error("{0}")]
    WrongStatus(String),
    /// An option or argument cannot be followed.
    #[error("{option}: {problem}")]
    Option {
        /// The option or verb.
        option: &'static str,
        /// Why.
        problem: String,
    },
    /// A file or stream of the host failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// `exec` failed, which has an exit code of its own.
    #[error("exec failed: {}", crate::log::chain(.0.as_ref()))]
    Exec(Box<VerbError>),
}

impl VerbError {
    /// What the process exits with.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Exec(_) => monitor::LOST,
            _ => crate::FAILURE,
        }
    }
}

fn option_error(option: &'static str, problem: impl Into<String>) -> VerbError {
    VerbError::Option {
        option,
        problem: problem.into(),
    }
}

/// Does what the command line says; returns the exit code.
///
/// # Errors
/// [`VerbError`].
pub(crate) fn run(cli: Cli) -> Result<u8, VerbError> {
    let Cli { mut global, verb } = cli;
    if global.version {
        return version::run();
    }
    let Some(verb) = verb else {
        return Err(option_error("lazaret", "a verb is missing, see --help"));
    };
    check_global(&mut global)?;
    match verb {
        Verb::Create(options) => create::run(&global, &options),
        Verb::Start(options) => start::run(&global, &options),
        Verb::State(options) => state::run(&global, &options),
        Verb::Kill(options) => kill::run(&global, &options),
        Verb::Delete(options) => delete::run(&global, &options),
        Verb::Run(options) => run::run(&global, &options),
        Verb::Exec(options) => {
            exec::run(&global, &options).map_err(|error| VerbError::Exec(Box::new(error)))
        }
        Verb::List(options) => list::run(&global, &options),
        Verb::Spec(options) => spec::run(&options),
        Verb::Ps(options) => ps::run(&global, &options),
        Verb::Pause(options) => pause::pause(&global, &options),
        Verb::Resume(options) => pause::resume(&global, &options),
        Verb::Check(options) => check::run(&global, &options),
        Verb::Version => version::run(),
        Verb::Events(options) => events::run(&global, &options),
        Verb::Update(options) => update::run(&global, &options),
        Verb::Features => features::run(),
        Verb::Checkpoint(_) => Err(not_yet("checkpoint")),
        Verb::Restore(_) => Err(not_yet("restore")),
    }
}

fn not_yet(verb: &'static str) -> VerbError {
    option_error(
        verb,
        "not supported yet: a later version of lazaret will save and restore whole VMs",
    )
}

fn check_global(global: &mut Global) -> Result<(), VerbError> {
    if global.cgroup_manager == Some(CgroupDriver::Systemd) {
        global.systemd_cgroup = true;
    }
    check_rootless(&global.rootless)?;
    // The monitor leaves the working directory.
    let root = std::path::absolute(&global.root);
    global.root = root.map_err(|source| VerbError::Io {
        action: "resolve",
        path: global.root.clone(),
        source,
    })?;
    Ok(())
}

/// Reads what Go reads as a Boolean, and `auto`.
fn check_rootless(value: &str) -> Result<(), VerbError> {
    match value {
        "0" | "f" | "F" | "false" | "FALSE" | "False" | "" => Ok(()),
        auto if auto.eq_ignore_ascii_case("auto") => Ok(()),
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Err(option_error(
            "--rootless",
            "not supported: lazaret needs root, for the mounts it gives its virtual machines",
        )),
        _ => Err(option_error("--rootless", "must be true, false or auto")),
    }
}

fn store(global: &Global) -> Store {
    Store::new(&global.root)
}

fn open(global: &Global, id: &str) -> Result<StateDir, VerbError> {
    Ok(store(global).open(&ContainerId::new(id)?)?)
}

/// Wants a process of the container, running or paused or waiting to be started.
fn check_live(dir: &StateDir) -> Result<(), VerbError> {
    match dir.status()?.0 {
        Status::Stopped | Status::Creating => {
            Err(VerbError::WrongStatus("container not running".to_owned()))
        }
        Status::Created | Status::Running | Status::Paused => Ok(()),
    }
}

/// Writes the pid file in one step, as runc: a reader never sees half a number.
fn write_pid_file(path: &Path, pid: i32) -> Result<(), VerbError> {
    let failed = |source| VerbError::Io {
        action: "write pid file",
        path: path.to_owned(),
        source,
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let mut new_name = std::ffi::OsString::from(".");
    new_name.push(name);
    let new = path.with_file_name(new_name);
    std::fs::write(&new, pid.to_string()).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}

fn print(text: &str) -> Result<(), VerbError> {
    use io::Write as _;

    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| VerbError::Io {
            action: "write to",
            path: "standard output".into(),
            source,
        })
}
