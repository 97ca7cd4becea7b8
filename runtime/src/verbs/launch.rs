//! What `create` and `run` have in common: from the command line to a container that exists.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
};

use oci_spec::runtime::{LinuxResources, Spec};

use super::{
    VerbError, hooks, option_error, pidfd_socket::PidfdSocket, preserve_fds, store, write_pid_file,
};
use crate::{
    bundle::Bundle,
    caller::Caller,
    cli::{Create, Global},
    config::Config,
    hooks::LaterHooks,
    host_cgroup::{self, CgroupError, HostCgroup},
    log,
    monitor::{self, ContainerJob, stdio},
    plan::{self, Circumstances, Plan, UserNamespace},
    process::ProcessId,
    sandbox::Sandbox,
    state::{ContainerId, Phase, Record, StateDir, VmSize},
    terminal, time,
};

/// A container that can be made: everything is known, nothing is done.
pub(super) struct Prepared {
    id: ContainerId,
    config: Config,
    plan: Plan,
    record: Record,
    sandbox: Option<Sandbox>,
    console: Option<UnixStream>,
    preserved: Vec<OwnedFd>,
    pidfd_socket: Option<PidfdSocket>,
}

/// How far to take a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Launch {
    /// Its process waits.
    Created,
    /// Its process runs by itself.
    Started,
    /// Its process runs and the caller, who has blocked all signals, waits for it.
    InForeground,
}

/// A container that exists.
pub(super) struct Launched {
    /// Pid of its monitor.
    pub(super) pid: i32,
    /// Its directory.
    pub(super) dir: StateDir,
}

/// Reads and checks everything.
///
/// # Errors
/// [`VerbError`]; nothing has been done then.
pub(super) fn prepare(
    global: &Global,
    options: &Create,
    detached: bool,
) -> Result<Prepared, VerbError> {
    let id = ContainerId::new(&options.container_id)?;
    if !rustix::process::geteuid().is_root() {
        return Err(VerbError::WrongStatus(
            "rootless containers are not supported: lazaret needs root, for the mounts it gives \
             its virtual machines"
                .to_owned(),
        ));
    }
    let preserved = preserve_fds::take(options.preserve_fds)?;
    preserve_fds::check_activation(
        |name| std::env::var(name).ok(),
        rustix::process::getpid().as_raw_nonzero().get(),
    )?;
    let pidfd_socket = PidfdSocket::connect(options.pidfd_socket.as_deref())?;
    let config = Config::load(global.config.as_deref())?;
    log::phase("configuration read");
    let bundle = Bundle::load(&options.bundle, &options.config)?;
    log::phase("bundle read");
    let caller = Caller::observe();
    let (sandbox, joins) = Sandbox::find(&bundle.spec, &store(global))?;
    let circumstances = Circumstances {
        joins: &joins,
        preserved: &preserved.kinds,
        ..with_cgroups(circumstances(id.as_str(), &caller), global.systemd_cgroup)?
    };
    let mut plan = plan::plan(&bundle, &config, circumstances)?;
    plan.warnings.extend_from_slice(&bundle.warnings);
    let terminal = plan.container.process.terminal.is_some();
    check_terminal(detached, terminal, options.console_socket.as_deref())?;
    let console = options
        .console_socket
        .as_deref()
        .map(terminal::connect_console)
        .transpose()?;
    let record = record(bundle, &plan, sandbox.as_ref());
    log::phase("plan made");
    Ok(Prepared {
        id,
        config,
        plan,
        record,
        sandbox,
        console,
        preserved: preserved.fds,
        pidfd_socket,
    })
}

/// What the state keeps of a container whose processes are still to come.
fn record(bundle: Bundle, plan: &Plan, sandbox: Option<&Sandbox>) -> Record {
    let annotations = bundle.spec.annotations().iter().flatten();
    let nobody = ProcessId {
        pid: 0,
        start_ticks: 0,
    };
    Record {
        oci_version: bundle.spec.version().clone(),
        rootfs: plan.host.shares[0].source.clone(),
        created: time::rfc3339_nanos_now(),
        annotations: annotations
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        phase: Phase::Created,
        monitor: nobody,
        vmm: nobody,
        exit_code: None,
        hooks: later_hooks(plan),
        sandbox: sandbox.map(|sandbox| sandbox.owner.clone()),
        user_namespace: Some(UserNamespace {
            uids: plan.container.uid_mappings.clone(),
            gids: plan.container.gid_mappings.clone(),
        })
        .filter(|namespace| !namespace.is_guests()),
        vm: match sandbox {
            Some(sandbox) => sandbox.size,
            None => Some(VmSize {
                memory_mib: plan.vm.memory_mib,
                vcpus: plan.vm.vcpus,
            }),
        },
        resources: limits_of(&bundle.spec),
        bundle: bundle.path,
        config: bundle.file,
    }
}

/// Adds what the sandbox's cgroup has to know.
fn with_cgroups(
    circumstances: Circumstances<'_>,
    systemd_cgroup: bool,
) -> Result<Circumstances<'_>, CgroupError> {
    if systemd_cgroup {
        host_cgroup::check_systemd()?;
    }
    Ok(Circumstances {
        host_cgroup_v1: host_cgroup::is_v1(),
        systemd_cgroup,
        ..circumstances
    })
}

/// What `update` starts from.
fn limits_of(spec: &Spec) -> LinuxResources {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().clone());
    let mut resources = resources.unwrap_or_default();
    resources.set_devices(None);
    resources
}

/// The hooks that are still to come when the container exists.
fn later_hooks(plan: &Plan) -> LaterHooks {
    LaterHooks {
        start_container: !plan.container.start_hooks.hooks.is_empty(),
        poststart: plan.host.hooks.poststart.clone(),
        poststop: plan.host.hooks.poststop.clone(),
    }
}

impl Prepared {
    /// Whether the process has a terminal that is the caller's own.
    pub(super) fn wants_callers_terminal(&self) -> bool {
        self.plan.container.process.terminal.is_some() && self.console.is_none()
    }

    /// Makes the container.
    ///
    /// # Errors
    /// [`VerbError`]; nothing is left behind then.
    pub(super) fn launch(
        self,
        global: &Global,
        how: Launch,
        pid_file: Option<&Path>,
    ) -> Result<Launched, VerbError> {
        let dir = store(global).create(&self.id)?;
        log::phase("state directory made");
        let cgroup = HostCgroup::make(&dir, &self.plan.host.cgroup).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = host_cgroup::remove(&dir);
            let _ = dir.remove();
        })?;
        log::phase("cgroup made");
        let mut warnings = self.plan.warnings.clone();
        warnings.extend_from_slice(cgroup.warnings());
        let hooked = (!self.record.hooks.is_empty()).then(|| self.record.clone());
        let made = monitor::create(ContainerJob {
            dir: &dir,
            plan: self.plan,
            config: &self.config,
            cgroup,
            record: self.record,
            sandbox: self.sandbox,
            console: self.console,
            preserved: self.preserved,
            start: how != Launch::Created,
            foreground: how == Launch::InForeground,
        });
        if let (Err(_), Some(record)) = (&made, &hooked) {
            hooks::poststop(&dir, record, &record.hooks.poststop);
        }
        let pid = made?;
        // Not before it worked: a failure is explained by its error alone.
        for warning in warnings {
            tracing::warn!(id = self.id.as_str(), "{warning}");
        }
        let told = match &self.pidfd_socket {
            Some(socket) => socket.send(pid),
            None => Ok(()),
        };
        let told = told.and_then(|()| pid_file.map_or(Ok(()), |path| write_pid_file(path, pid)));
        if let Err(error) = told {
            super::delete::take_down(&dir)?;
            return Err(error);
        }
        if how != Launch::Created
            && hooked.is_some()
            && let Some(record) = dir.read()?
            && let Err(error) = hooks::poststart(&dir, &record)
        {
            // The process was killed for it already.
            super::delete::destroy(&dir)?;
            return Err(error);
        }
        Ok(Launched { pid, dir })
    }
}

/// What the plan has to know about this process and this machine.
pub(super) fn circumstances<'a>(id: &'a str, caller: &'a Caller) -> Circumstances<'a> {
    let info = rustix::system::sysinfo();
    let bytes = (info.totalram as u64).saturating_mul(info.mem_unit.into());
    let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count());
    Circumstances {
        id,
        stdio: stdio::kinds(),
        preserved: &[],
        terminal_size: terminal::of_caller()
            .map(|terminal| terminal::size(std::os::fd::AsFd::as_fd(&terminal)))
            .unwrap_or_default(),
        host_memory_mib: bytes >> 20,
        host_cpus: cpus.into(),
        host_cgroup_v1: false,
        host_has_block_device: |major, minor| {
            Path::new(&format!("/sys/dev/block/{major}:{minor}")).exists()
        },
        systemd_cgroup: false,
        caller,
        joins: &[],
    }
}

/// The rules of runc about who has the terminal.
///
/// # Errors
/// [`VerbError::Option`].
pub(super) fn check_terminal(
    detached: bool,
    terminal: bool,
    console_socket: Option<&Path>,
) -> Result<(), VerbError> {
    if detached && terminal && console_socket.is_none() {
        Err(option_error(
            "--console-socket",
            "cannot allocate tty if lazaret will detach without setting console socket",
        ))
    } else if !(detached && terminal) && console_socket.is_some() {
        Err(option_error(
            "--console-socket",
            "cannot use console socket if lazaret will not detach or allocate tty",
        ))
    } else {
        Ok(())
    }
}
