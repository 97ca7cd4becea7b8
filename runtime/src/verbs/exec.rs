//! `exec`: a further process in a running container. In the foreground its session runs in this
//! very process; detached, a monitor is forked for it.

use std::{os::fd::OwnedFd, path::Path};

use lazaret_protocol::{
    agent::ProcessRef,
    container::{Process, Stdio, User},
};

use super::{
    VerbError, launch, open, option_error, pidfd_socket::PidfdSocket, preserve_fds, write_pid_file,
};
use crate::{
    bundle::{self, Bundle},
    caller::Caller,
    cli::{Exec, Global},
    log,
    monitor::{self, ExecJob, Place, session::HostStreams},
    plan::{self, Circumstances},
    signals,
    state::{StateDir, Status},
    terminal::{self, RawMode},
};

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Exec) -> Result<u8, VerbError> {
    // Before this process opens anything under such a number.
    let preserved = preserve_fds::take(options.preserve_fds)?;
    let dir = open(global, &options.container_id)?;
    check(&dir, options)?;
    let place = Place {
        cgroup: sub_cgroup(&options.cgroup)?,
        ignore_paused: options.ignore_paused,
    };
    log::phase("state read");
    let spec = process(&dir, options, &preserved.kinds)?;
    log::phase("plan made");
    launch::check_terminal(
        options.detach,
        spec.terminal.is_some(),
        options.console_socket.as_deref(),
    )?;
    let told = Told {
        pidfd_socket: PidfdSocket::connect(options.pidfd_socket.as_deref())?,
        pid_file: options.pid_file.as_deref(),
    };
    let process = ProcessRef {
        container: dir.id().as_str().to_owned(),
        exec: Some(new_id()),
    };
    if options.detach {
        detached(&dir, process, spec, place, options, preserved.fds, told)
    } else {
        foreground(&dir, &process, &spec, place, preserved.fds, told)
    }
}

fn check(dir: &StateDir, options: &Exec) -> Result<(), VerbError> {
    let refused = match dir.status()?.0 {
        Status::Stopped => Some("cannot exec in a stopped container"),
        Status::Creating => Some("cannot exec in a container that is being created"),
        Status::Paused if !options.ignore_paused => {
            Some("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Status::Created | Status::Running | Status::Paused => None,
    };
    if let Some(reason) = refused {
        return Err(VerbError::WrongStatus(reason.to_owned()));
    }
    Ok(())
}

/// The sub-cgroup that `--cgroup` names: a guest has cgroup v2 only, hence one path at most.
fn sub_cgroup(given: &[String]) -> Result<&str, VerbError> {
    let invalid = |text: &str, why: &str| {
        VerbError::WrongStatus(format!("invalid --cgroup argument: {text}{why}"))
    };
    match given {
        [] => Ok(""),
        [path] => match path.split(':').collect::<Vec<_>>()[..] {
            // As runc: on cgroup v2 a named controller is not one of its cgroups.
            [_, _] => Err(invalid(path, " (a guest has cgroup v2: give a path alone)")),
            [path] => Ok(path),
            _ => Err(invalid(path, "")),
        },
        [first, ..] => Err(invalid(first, " (missing <controller>: prefix)")),
    }
}

/// Who is told the process that stands for the new one.
struct Told<'a> {
    pidfd_socket: Option<PidfdSocket>,
    pid_file: Option<&'a Path>,
}

impl Told<'_> {
    fn tell(&self, pid: i32) -> Result<(), VerbError> {
        if let Some(socket) = &self.pidfd_socket {
            socket.send(pid)?;
        }
        self.pid_file
            .map_or(Ok(()), |path| write_pid_file(path, pid))
    }
}

fn detached(
    dir: &StateDir,
    process: ProcessRef,
    spec: Process,
    place: Place<'_>,
    options: &Exec,
    preserved: Vec<OwnedFd>,
    told: Told<'_>,
) -> Result<u8, VerbError> {
    let console = options
        .console_socket
        .as_deref()
        .map(terminal::connect_console)
        .transpose()?;
    let pid = monitor::exec(ExecJob {
        dir,
        process,
        spec,
        place,
        console,
        preserved,
    })?;
    told.tell(pid)?;
    Ok(0)
}

fn foreground(
    dir: &StateDir,
    process: &ProcessRef,
    spec: &Process,
    place: Place<'_>,
    preserved: Vec<OwnedFd>,
    told: Told<'_>,
) -> Result<u8, VerbError> {
    signals::block();
    let raw = spec
        .terminal
        .and_then(|_| terminal::of_caller())
        .map(RawMode::enter)
        .transpose()?;
    let streams = HostStreams {
        pty: None,
        preserved,
    };
    let session = monitor::exec_session(dir, process, spec, place, streams)?;
    told.tell(rustix::process::getpid().as_raw_nonzero().get())?;
    let result = session.run();
    log::phase("process has ended");
    drop(raw);
    Ok(monitor::exit_code_of_exec(result, dir))
}

/// The process to run: that of `--process`, or the container's own with the options applied.
fn process(dir: &StateDir, options: &Exec, preserved: &[Stdio]) -> Result<Process, VerbError> {
    let caller = Caller::observe();
    let circumstances = Circumstances {
        preserved,
        ..launch::circumstances(dir.id().as_str(), &caller)
    };
    let mut warnings = Vec::new();
    let process = if let Some(file) = &options.process {
        let (spec, passed_over) = bundle::load_process(file)?;
        warnings = passed_over;
        let spec = match containers_own(dir)? {
            Some(own) => plan::inherit(spec, &own),
            None => spec,
        };
        plan::process(&spec, "process", circumstances, &mut warnings)?
    } else {
        if options.command.is_empty() {
            return Err(VerbError::WrongStatus(
                "process args cannot be empty".to_owned(),
            ));
        }
        let mut spec = containers_own(dir)?.unwrap_or_default();
        spec.set_args(Some(options.command.clone()));
        spec.set_terminal(Some(options.tty));
        spec.set_console_size(None);
        if let Some(cwd) = &options.cwd {
            spec.set_cwd(cwd.clone());
        }
        if let Some(profile) = &options.apparmor {
            spec.set_apparmor_profile(Some(profile.clone()));
        }
        if let Some(label) = &options.process_label {
            spec.set_selinux_label(Some(label.clone()));
        }
        let mut process = plan::process(&spec, "process", circumstances, &mut warnings)?;
        apply(options, &mut process)?;
        process
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(process)
}

/// The process of the container's bundle.
fn containers_own(dir: &StateDir) -> Result<Option<oci_spec::runtime::Process>, VerbError> {
    let Some(record) = dir.read()? else {
        return Err(VerbError::WrongStatus("container not running".to_owned()));
    };
    let bundle = Bundle::load(&record.bundle, &record.config)?;
    Ok(bundle.spec.process().clone())
}

fn apply(options: &Exec, process: &mut Process) -> Result<(), VerbError> {
    process.env.extend(options.env.iter().cloned());
    process.no_new_privileges |= options.no_new_privs;
    if let Some(user) = &options.user {
        set_user(user, &mut process.user)?;
    }
    process
        .user
        .additional_gids
        .extend(&options.additional_gids);
    let sets = &mut process.capabilities;
    for name in &options.cap {
        let Some(bit) = plan::capability(name) else {
            // As runc, and as for those of the bundle.
            tracing::warn!("--cap: {name:?} is unknown, ignored");
            continue;
        };
        for set in [
            &mut sets.bounding,
            &mut sets.effective,
            &mut sets.permitted,
            &mut sets.ambient,
        ] {
            *set |= bit;
        }
    }
    Ok(())
}

/// Reads `UID[:GID]`; without a group the container's is kept, as in runc.
fn set_user(text: &str, user: &mut User) -> Result<(), VerbError> {
    let wrong = || option_error("--user", format!("{text:?} is not of the form UID[:GID]"));
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    user.uid = uid.parse().map_err(|_| wrong())?;
    if let Some(gid) = gid {
        user.gid = gid.parse().map_err(|_| wrong())?;
    }
    Ok(())
}

/// An id that no other exec of the container has: no two processes have the same pid at the same
/// nanosecond.
fn new_id() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let pid = rustix::process::getpid().as_raw_nonzero();
    format!("{pid}-{}.{}", now.tv_sec, now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        let mut user = User {
            gid: 7,
            ..User::default()
        };
        set_user("5", &mut user).unwrap();
        assert_eq!((user.uid, user.gid), (5, 7));
        set_user("6:8", &mut user).unwrap();
        assert_eq!((user.uid, user.gid), (6, 8));
        for wrong in ["", "root", "1:", ":1", "1:2:3", "-1"] {
            let error = set_user(wrong, &mut user).unwrap_err().to_string();
            assert!(error.starts_with("--user: "), "{error}");
        }
    }
}
