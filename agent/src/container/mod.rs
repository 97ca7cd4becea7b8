//! One container: its cgroup, its processes and the state it is in. Made and held by
//! [`crate::server`]; the work inside its namespaces is [`crate::init`]'s.
#![forbid(unsafe_code)]

mod create;
mod error;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use lazaret_protocol::agent::{ExitStatus, Failure, ProcessRef};
use lazaret_protocol::container::{RLIMIT_NAMES, Rlimit};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::ThreadNameSpaceType;

use crate::bpf_compiler::Interpreted;
use crate::cgroup::Cgroup;
use crate::connection::Connection;
use crate::errno::Os;
use crate::instructions::{Report, Rules, START};
use crate::launch::EXIT_CODE_CLOCKS;
use crate::process::Process;
use crate::reaper::Reaper;
use crate::sys;

pub use create::Place;
pub use error::ContainerError;

/// Longest container id (`CreateContainer::id`).
const ID_BYTES_MAX: usize = 255;

/// Where things are in this guest.
#[derive(Debug)]
pub struct Environment {
    /// The agent's own binary, which sets containers up when executed with
    /// [`crate::instructions::ARGUMENT`].
    pub executable: CString,
    /// Where the share is mounted.
    pub share: PathBuf,
    /// An empty directory; each container's root is assembled on it, in its own mount namespace.
    pub staging: PathBuf,
    /// Where the device nodes for containers in a user namespace are made.
    pub nodes: PathBuf,
    /// Where the cgroup file system is mounted.
    pub cgroup_mount: PathBuf,
    /// The cgroup in which those of the containers are.
    pub cgroup_parent: PathBuf,
    /// Switch of the kernel's compiler of BPF programs, if this kernel is the agent's alone.
    pub bpf_compiler: Option<PathBuf>,
}

/// Life of a container's init process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It waits before `exec`.
    Created,
    /// It was told to go on.
    Started,
    /// Somebody is removing the container.
    Removing,
}

/// A container whose init process exists or existed.
#[derive(Debug)]
pub struct Container {
    id: String,
    cgroup: Cgroup,
    init: Rc<Process>,
    /// To the init process, until it was started.
    channel: RefCell<Option<Connection>>,
    state: Cell<State>,
    paused: Cell<bool>,
    /// What further processes enter.
    namespaces: ThreadNameSpaceType,
    own_pid_namespace: bool,
    user_namespace: bool,
    /// What its further processes are bound by too.
    rules: Rules,
    /// `None` reserves the name of a process that is being made.
    execs: RefCell<HashMap<String, Option<Rc<Process>>>>,
}

impl Container {
    /// The init process.
    pub fn init(&self) -> &Rc<Process> {
        &self.init
    }

    /// Finds a process of this container.
    ///
    /// # Errors
    /// [`ContainerError::NoExec`].
    pub fn process(&self, name: &ProcessRef) -> Result<Rc<Process>, ContainerError> {
        match &name.exec {
            None => Ok(Rc::clone(&self.init)),
            Some(exec) => {
                let execs = self.execs.borrow();
                let found = execs.get(exec).and_then(Option::clone);
                found.ok_or_else(|| ContainerError::NoExec(exec.clone()))
            }
        }
    }

    /// Releases the init process into its program.
    ///
    /// # Errors
    /// [`ContainerError::State`] unless it is created; the failure of `exec` as the child put it.
    pub async fn start(&self, host: Host<'_>) -> Result<(), ContainerError> {
        self.require_alive("start")?;
        let channel = self.channel.borrow_mut().take();
        let Some(channel) = channel.filter(|_| self.state.get() == State::Created) else {
            return Err(self.wrong_state("cannot start an already running container"));
        };
        self.state.set(State::Started);
        let _interpreted = host.interpreted(self.rules.seccomp.is_some());
        release(&channel, &self.init).await
    }

    /// Sends a signal to one process.
    ///
    /// # Errors
    /// [`ContainerError::State`] when it has ended; the kernel's.
    pub fn signal(&self, process: &Process, signal: i32) -> Result<(), ContainerError> {
        let waits = self.state.get() == State::Created && process.pid() == self.init.pid();
        // The kernel protects the first process of a pid namespace from signals it has no handler
        // for. Before exec it has none, so what would end another process has to be forced.
        let signal = if waits && self.own_pid_namespace && ends_by_default(signal) {
            libc::SIGKILL
        } else {
            signal
        };
        process.signal(signal).map_err(|errno| match errno.0 {
            Errno::SRCH => self.wrong_state("container not running"),
            _ => ContainerError::Signal {
                signal,
                pid: process.pid(),
                source: errno,
            },
        })
    }

    /// Sends a signal to every process.
    ///
    /// # Errors
    /// As [`Container::signal`].
    pub fn signal_all(&self, signal: i32) -> Result<(), ContainerError> {
        if signal == libc::SIGKILL {
            return Ok(self.cgroup.kill()?);
        }
        let mut targets: Vec<(u32, OwnedFd)> = Vec::new();
        for pid in self.cgroup.processes()? {
            let pidfd = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pidfd = pidfd.map(|pid| pidfd_open(pid, PidfdFlags::empty()));
            if let Some(Ok(pidfd)) = pidfd {
                targets.push((pid, pidfd));
            }
        }
        // A pid that is still listed now belonged to the container when it was opened, or does so
        // again: either way the pidfd is not of a stranger.
        let listed = self.cgroup.processes()?;
        targets.retain(|(pid, _)| listed.binary_search(pid).is_ok());
        for (pid, pidfd) in targets {
            match sys::pidfd_send_signal(pidfd.as_fd(), signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => {
                    let source = Os(errno);
                    return Err(ContainerError::Signal {
                        signal,
                        pid,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of a process; an exec is forgotten then.
    ///
    /// # Errors
    /// [`ContainerError::NoExec`].
    pub async fn wait(&self, name: &ProcessRef) -> Result<ExitStatus, ContainerError> {
        let process = self.process(name)?;
        let status = process.wait().await;
        if let Some(exec) = &name.exec {
            self.execs.borrow_mut().remove(exec);
        }
        Ok(status)
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Freezes the container.
    ///
    /// # Errors
    /// [`ContainerError::State`] unless it runs; the kernel's.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        self.require_alive("pause")?;
        if self.paused.get() {
            return Err(self.wrong_state("container is already paused"));
        }
        self.paused.set(true);
        let frozen = self.cgroup.freeze(true).await;
        if frozen.is_err() {
            self.paused.set(false);
        }
        Ok(frozen?)
    }

    /// Thaws the container.
    ///
    /// # Errors
    /// [`ContainerError::State`] unless it is paused; the kernel's.
    pub async fn resume(&self) -> Result<(), ContainerError> {
        if !self.paused.get() {
            return Err(self.wrong_state("container not paused"));
        }
        self.cgroup.freeze(false).await?;
        self.paused.set(false);
        Ok(())
    }

    /// Ends all processes and takes the cgroup away.
    ///
    /// # Errors
    /// The kernel's, in which case it can be tried again.
    pub async fn remove(&self) -> Result<(), ContainerError> {
        self.state.set(State::Removing);
        self.end_all().await?;
        // So that no process of a container that is gone is known to anybody.
        self.init.wait().await;
        let execs: Vec<_> = self.execs.borrow().values().flatten().cloned().collect();
        for exec in execs {
            exec.wait().await;
        }
        Ok(self.cgroup.remove()?)
    }

    /// Ends all processes and waits until they are gone.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn end_all(&self) -> Result<(), ContainerError> {
        self.cgroup.kill()?;
        Ok(self.cgroup.wait_empty().await?)
    }

    /// After the end of the init process: ends the others, where the kernel does not do it.
    pub async fn end_with_init(&self) {
        self.init.wait().await;
        if !self.own_pid_namespace {
            // It fails only when the container is being removed, which does the same.
            let _ = self.cgroup.kill();
        }
    }

    fn require_alive(&self, verb: &'static str) -> Result<(), ContainerError> {
        if self.init.status().is_some() || self.state.get() == State::Removing {
            return Err(ContainerError::Stopped {
                verb,
                id: self.id.clone(),
            });
        }
        Ok(())
    }

    fn wrong_state(&self, message: &'static str) -> ContainerError {
        ContainerError::State {
            id: self.id.clone(),
            message,
        }
    }
}

/// Whether the default action of `signal` ends a process (`signal(7)`).
fn ends_by_default(signal: i32) -> bool {
    !matches!(
        signal,
        libc::SIGCHLD
            | libc::SIGCONT
            | libc::SIGURG
            | libc::SIGWINCH
            | libc::SIGSTOP
            | libc::SIGTSTP
            | libc::SIGTTIN
            | libc::SIGTTOU
    )
}

/// Lets a prepared child execute its program, and waits until it has or has not.
async fn release(channel: &Connection, process: &Process) -> Result<(), ContainerError> {
    let gone = || ContainerError::Gone {
        status: process.status(),
    };
    let told = channel.write_all(&[START]).await;
    told.map_err(|_| gone())?;
    match channel.read_frame_with_fd::<Report>().await {
        // The descriptor was closed by the exec.
        Ok(None) => Ok(()),
        Ok(Some((Report::Failed(failure), _))) => {
            // Its end follows at once; then the container is stopped when the reply arrives.
            process.wait().await;
            Err(ContainerError::Setup(failure))
        }
        Ok(Some((Report::Prepared, _))) | Err(_) => Err(gone()),
    }
}

/// The child's report on its set-up, and the master of its pty.
async fn prepared(
    channel: &Connection,
    process: &Process,
) -> Result<Option<OwnedFd>, ContainerError> {
    match channel.read_frame_with_fd::<Report>().await {
        Ok(Some((Report::Prepared, terminal))) => Ok(terminal),
        Ok(Some((Report::Failed(failure), _))) => Err(ContainerError::Setup(failure)),
        Ok(None) | Err(_) => Err(match process.wait().await {
            ExitStatus::Exited(EXIT_CODE_CLOCKS) => ContainerError::Clocks,
            status => ContainerError::Gone {
                status: Some(status),
            },
        }),
    }
}

/// Sets the limits of a child that has nothing left to do but to exec: its own work shall not run
/// into them, and in a user namespace it could not raise them.
fn set_limits(process: &Process, limits: &[Rlimit]) -> Result<(), ContainerError> {
    for limit in limits {
        if limit.resource == libc::RLIMIT_NOFILE {
            allow_descriptors(limit.hard);
        }
        let Rlimit {
            resource,
            soft,
            hard,
        } = *limit;
        sys::set_limit(process.pid(), resource, soft, hard).map_err(|errno| {
            ContainerError::Limit {
                name: RLIMIT_NAMES.get(resource as usize).unwrap_or(&"unknown"),
                soft,
                hard,
                source: Os(errno),
            }
        })?;
    }
    Ok(())
}

/// Most descriptors that the kernel lets a process ask for, until told otherwise (`fs.nr_open`).
const DESCRIPTORS: u64 = 1 << 20;

/// Lets processes have as many descriptors: the host's administrator has allowed them there, where
/// `fs.nr_open` is often higher. When it cannot be, setting the limit says so.
fn allow_descriptors(count: u64) {
    if count > DESCRIPTORS {
        let _ = std::fs::write("/proc/sys/fs/nr_open", count.to_string());
    }
}

/// What a container needs to be made and to make processes.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Where things are.
    pub environment: &'a Environment,
    /// Who learns of ended children.
    pub reaper: &'a Reaper,
}

impl<'a> Host<'a> {
    /// Keeps a filter that is loaded meanwhile, if one is, from being compiled.
    fn interpreted(&self, loads_filter: bool) -> Option<Interpreted<'a>> {
        let switch = self.environment.bpf_compiler.as_deref();
        switch.filter(|_| loads_filter).map(Interpreted::begin)
    }
}

impl From<Failure> for ContainerError {
    fn from(failure: Failure) -> Self {
        Self::Setup(failure)
    }
}
