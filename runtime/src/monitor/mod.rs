//! The monitor: the process that stands for a container, or for a detached exec. The command line
//! forks it and learns from it, through a pipe, that the process was created, or why not; then it
//! carries the process's streams and signals, and exits as the process did.
//!
//! It is forked and not executed: the plan is at hand, and pages that neither side writes to are
//! shared. The command line has no threads, which [`crate::sys::fork`] makes sure of.

use std::{
    io::{self, PipeWriter},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Instant,
};

use lazaret_protocol::{
    agent::{Answer, ProcessRef, Request},
    container::CreateContainer,
};

use crate::{
    agent::{Agent, AgentError},
    config::Config,
    hooks::HookError,
    host_cgroup::{self, CgroupError, HostCgroup},
    log,
    plan::Plan,
    process::ProcessId,
    sandbox::{self, Sandbox},
    seccomp::{self, SeccompError},
    share::{Share, ShareError},
    signals,
    state::{Phase, Record, StateDir, StateError},
    terminal::{self, TerminalError},
};

mod birth;
mod boot_log;
mod creation;
mod disks;
mod exec;
mod machine;
mod proc;
pub(crate) mod session;
pub(crate) mod stdio;
mod vm;

use birth::{Born, fork, report_created, report_failure};
use machine::Machine;
use proc::ProcMount;
use session::{HostStreams, Session, SessionError};
use vm::VmError;

pub(crate) use exec::{ExecJob, Place, exec, exec_session, exit_code_of_exec};
pub(crate) use vm::CONTROL_SOCKET;

/// Exit code of a monitor whose sandbox was lost, as runc's for a container it lost.
pub(crate) const LOST: u8 = 255;

/// Why the monitor has no process to stand for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// The VM could not be started.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The files could not be shared.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The filter of system calls could not be compiled.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// The agent could not make the container.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The streams could not be attached.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The terminal could not be made.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The state could not be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The cgroup could not be entered.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The host's kernel ended the VM.
    #[error(
        "lazaret-vmm was killed: the sandbox needs more memory than its cgroup {} allows",
        path.display()
    )]
    OutOfMemory {
        /// The cgroup.
        path: PathBuf,
    },
    /// Something on the host failed.
    #[error("cannot {action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The command line has gone.
    #[error("interrupted")]
    Interrupted,
    /// What the monitor reported, seen from the command line.
    #[error("{message}")]
    Reported {
        /// Its whole chain of errors.
        message: String,
    },
    /// The monitor ended without a report.
    #[error("the monitor process ended unexpectedly")]
    Died,
}

fn host_error<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> MonitorError {
    move |source| MonitorError::Host {
        action,
        source: source.into(),
    }
}

/// A container to create.
pub(crate) struct ContainerJob<'a> {
    /// Its directory, locked.
    pub(crate) dir: &'a StateDir,
    /// What to do.
    pub(crate) plan: Plan,
    /// Where things are.
    pub(crate) config: &'a Config,
    /// The sandbox's cgroup.
    pub(crate) cgroup: HostCgroup,
    /// The record to write; the monitor fills in the processes.
    pub(crate) record: Record,
    /// The sandbox it joins, if it does not get one of its own.
    pub(crate) sandbox: Option<Sandbox>,
    /// Socket that wants the pty.
    pub(crate) console: Option<UnixStream>,
    /// Descriptors of the caller that the process gets beside its standard streams.
    pub(crate) preserved: Vec<OwnedFd>,
    /// Whether the process is released at once.
    pub(crate) start: bool,
    /// Whether the caller stays, with all signals blocked, and wants those that come meanwhile to
    /// reach the monitor.
    pub(crate) foreground: bool,
}

/// Forks the monitor of a container and waits until the container is created.
///
/// # Errors
/// [`MonitorError`]; nothing of the container is left then.
pub(crate) fn create(mut job: ContainerJob<'_>) -> Result<i32, MonitorError> {
    let dir = job.dir;
    let mut keep = vec![dir.as_fd().as_raw_fd()];
    keep.extend(job.console.as_ref().map(AsRawFd::as_raw_fd));
    keep.extend(job.preserved.iter().map(AsRawFd::as_raw_fd));
    let foreground = job.foreground;
    let sandbox = job.sandbox.clone();
    // It stays here: the monitor closes what it inherits, and must not own it.
    let cradle = job.cgroup.take_cradle();
    let cradle = cradle.as_ref().map(AsFd::as_fd);
    let result = fork(&keep, foreground, cradle, |report, born| {
        monitor_container(job, report, born)
    });
    if matches!(
        result,
        Err(MonitorError::Died | MonitorError::Reported { .. })
    ) {
        // It could not remove the cgroup it was in, or had no time to. The VM ends with it, by its
        // lifeline, unless there are other containers in it.
        clean_up(dir, sandbox.as_ref());
    }
    result
}

/// Takes away what is left of a container that was not created.
fn clean_up(dir: &StateDir, sandbox: Option<&Sandbox>) {
    if let Some(sandbox) = sandbox {
        sandbox.withdraw(dir);
    }
    if let Err(error) = host_cgroup::remove(dir) {
        tracing::warn!("{}", log::chain(&error));
    }
    if let Err(error) = dir.remove() {
        tracing::warn!("{error}");
    }
}

/// A container, created.
struct Created {
    vm: Machine,
    session: Session,
}

fn monitor_container(mut job: ContainerJob<'_>, report: PipeWriter, born: Born) -> u8 {
    let mut share = None;
    let result = job
        .cgroup
        .enter(born == Born::InCgroup)
        .map_err(MonitorError::from)
        .and_then(|()| create_container(&mut job, &mut share, &report))
        .and_then(|created| report_or_give_back(created, job.foreground, &report));
    let created = match result {
        Ok(created) => created,
        Err(error) => {
            if let Some(share) = share {
                share.unmount();
            }
            // Whoever waits for the report cleans up when this process has left the cgroup.
            if !birth::has_listener(&report) {
                job.cgroup.leave();
                clean_up(job.dir, job.sandbox.as_ref());
            }
            report_failure(report, &error);
            return 1;
        }
    };
    drop(report);
    run_container(job.dir, &job.cgroup, created)
}

fn report_or_give_back(
    created: Created,
    foreground: bool,
    report: &PipeWriter,
) -> Result<Created, MonitorError> {
    if !foreground {
        release_standard_error()?;
    }
    let report = report
        .try_clone()
        .map_err(host_error("report to the command line"))?;
    report_created(report)?;
    Ok(created)
}

fn create_container(
    job: &mut ContainerJob<'_>,
    share_slot: &mut Option<Share>,
    report: &PipeWriter,
) -> Result<Created, MonitorError> {
    let mut since = Instant::now();
    log::monitor_phase("monitor forked");
    let host_mounts = creation::host_mounts(&job.plan.host.hooks)?;
    if let Some(sandbox) = &job.sandbox {
        // In one mount namespace with the directory's descriptor, as links have to be.
        let linked = sandbox.link_sockets(job.dir);
        linked.map_err(host_error("link the sandbox's sockets"))?;
    }
    let share = share_slot.insert(Share::mount(job.dir.path())?);
    log::monitor_phase("share mounted");
    let mut vm = match &job.sandbox {
        None => Machine::start(job, share.top())?,
        Some(sandbox) => Machine::join(sandbox, job.dir)?,
    };
    log::monitor_phase("VM described to the VMM");
    // All this happens while the guest boots.
    job.record.monitor = own_id()?;
    job.record.vmm = vm.id()?;
    if let Some(host_mounts) = host_mounts {
        creation::run_hooks(job, &host_mounts, report)?;
        // They may have taken longer than a guest may.
        since = Instant::now();
    }
    let plan = &mut job.plan;
    share.attach(&mut plan.container, &plan.host.shares)?;
    if let Some(sandbox) = &job.sandbox {
        share.join(sandbox.vmm, &sandbox.owner_dir(job.dir), &plan.container)?;
    }
    log::monitor_phase("files shared");
    let seccomp = plan.seccomp.as_ref().map(seccomp::compile).transpose()?;
    let terminal = plan.container.process.terminal;
    let preserved = std::mem::take(&mut job.preserved);
    let streams = HostStreams::detached(job.console.as_ref(), terminal, preserved)?;
    job.plan.container.seccomp = seccomp;
    if let Machine::Own(vm) = &mut vm {
        vm.wait_ready(since, job.config.boot_timeout_ms, report.as_fd())?;
    }
    let agent = Agent::new(job.dir);
    let made = create_in_guest(job, agent, share, streams, report);
    // A call that broke off because the guest did is best explained by the guest's end.
    let session = made.map_err(|error| explain(error, &mut vm, &job.cgroup))?;
    job.cgroup.limit_cpu()?;
    job.dir.write(&job.record)?;
    job.dir.unlock();
    log::monitor_phase("state written");
    Ok(Created { vm, session })
}

fn create_in_guest(
    job: &mut ContainerJob<'_>,
    agent: Agent,
    share: &mut Share,
    streams: HostStreams,
    report: &PipeWriter,
) -> Result<Session, MonitorError> {
    let container = &job.plan.container;
    agent.call(&Request::CreateContainer(Box::new(container.clone())))?;
    log::monitor_phase("container made");
    share.seal(container)?;
    show_files(share, container, &agent)?;
    let process = ProcessRef {
        container: container.id.clone(),
        exec: None,
    };
    let session = Session::attach(agent.clone(), process, &container.process, streams)?;
    release_input_and_output()?;
    log::monitor_phase("streams attached");
    if job.start {
        let request = Request::StartContainer {
            container: container.id.clone(),
        };
        if container.start_hooks.hooks.is_empty() {
            agent.done(&request)?;
        } else {
            let interrupts = signals::open_interrupts().map_err(host_error("receive signals"))?;
            let call = agent.begin(&request)?;
            call.finish_late(&[report.as_fd(), interrupts.as_fd()])?;
        }
        job.record.phase = Phase::Running;
        log::monitor_phase("process started");
    }
    Ok(session)
}

/// Shows the container's files, and its `/proc` if this host can, to those who join the mount
/// namespace.
fn show_files(
    share: &Share,
    container: &CreateContainer,
    agent: &Agent,
) -> Result<(), MonitorError> {
    let proc = ProcMount::new();
    if let Err(error) = &proc {
        tracing::debug!("no /proc for joining processes: {error}");
    }
    let proc = proc.ok();
    share.show(container, proc.as_ref().map(|proc| proc.mount.as_fd()))?;
    if let Some(proc) = proc {
        let served = proc.serve(agent.clone(), container.id.clone());
        served.map_err(host_error("serve /proc to joining processes"))?;
    }
    Ok(())
}

/// Lets go of the caller's input and output, which the session has its own descriptors of: a
/// reader must see their end when the container closes them, not when the monitor ends.
fn release_input_and_output() -> Result<(), MonitorError> {
    let null = terminal::null().map_err(host_error("open /dev/null"))?;
    let failed = || host_error("let go of the standard streams");
    rustix::stdio::dup2_stdin(&null).map_err(failed())?;
    rustix::stdio::dup2_stdout(&null).map_err(failed())?;
    Ok(())
}

/// Lets go of the caller's standard error as well, when it does not wait for the end: it may be the
/// very pipe that is standard output. What is said after this goes to `--log` alone.
fn release_standard_error() -> Result<(), MonitorError> {
    let null = terminal::null().map_err(host_error("open /dev/null"))?;
    rustix::stdio::dup2_stderr(&null).map_err(host_error("let go of the standard streams"))
}

fn own_id() -> Result<ProcessId, MonitorError> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    ProcessId::of(pid).map_err(host_error("examine the monitor"))
}

/// Replaces a broken call by the reason why the VM ended, if it has.
fn explain(error: MonitorError, vm: &mut Machine, cgroup: &HostCgroup) -> MonitorError {
    match &error {
        MonitorError::Agent(agent) | MonitorError::Session(SessionError::Agent(agent))
            if agent.is_broken() =>
        {
            let lost = vm.lost();
            match cgroup.killed_for_memory() {
                Some(path) => MonitorError::OutOfMemory { path: path.into() },
                None => lost.into(),
            }
        }
        _ => error,
    }
}

/// Stands for the container until its end; returns the exit code.
fn run_container(dir: &StateDir, cgroup: &HostCgroup, created: Created) -> u8 {
    let Created { mut vm, session } = created;
    match session.run() {
        Ok(status) => {
            log::monitor_phase("process has ended");
            store_exit(dir, status.shell_code());
            log::monitor_phase("exit code stored");
            if leave(dir, cgroup, &mut vm) {
                log::monitor_phase("guest shut down");
                vm.shut_down();
                log::monitor_phase("VMM has ended");
            } else {
                vm.leave();
            }
            status.shell_code()
        }
        Err(error) => {
            let error = explain(error.into(), &mut vm, cgroup);
            tracing::error!(
                id = dir.id().as_str(),
                "sandbox lost: {}",
                log::chain(&error)
            );
            store_exit(dir, LOST);
            LOST
        }
    }
}

/// Takes the ended container out of its guest; tells whether the guest has nothing left to do.
fn leave(dir: &StateDir, cgroup: &HostCgroup, vm: &mut Machine) -> bool {
    let request = Request::Leave {
        container: dir.id().as_str().to_owned(),
    };
    let last = match Agent::new(dir).call(&request) {
        Ok(Answer::Left { last }) => last,
        // The container has ended: whether its guest still obeys changes nothing for it.
        Ok(_) => true,
        Err(error) => {
            let error = explain(error.into(), vm, cgroup);
            tracing::warn!(
                id = dir.id().as_str(),
                "guest did not let go of the ended container: {}",
                log::chain(&error)
            );
            false
        }
    };
    // The guest's word alone keeps no VM.
    last || !sandbox::is_shared(dir)
}

/// Records the end, unless the container was deleted meanwhile.
fn store_exit(dir: &StateDir, code: u8) {
    let result = dir.lock().and_then(|()| {
        let record = dir.read()?;
        record.map_or(Ok(()), |mut record| {
            record.phase = Phase::Stopped;
            record.exit_code = Some(code);
            dir.write(&record)
        })
    });
    dir.unlock();
    if let Err(error) = result {
        tracing::debug!("{}", log::chain(&error));
    }
}
