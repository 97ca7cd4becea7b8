//! `lazaret-e2e enter PID PROGRAM ARGUMENTS`: becomes a program in the mount namespace of another
//! process, as engines do with a container's pid. `lazaret-e2e log-in` with the same arguments:
//! runs a program where a systemd of another PID namespace is process 1. Started by cases.

use std::{
    fs,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::CloneFlags;

/// Joins the namespace, at the root that it has for those who join, and executes the program.
pub(crate) fn main(pid: &str, program: &str, arguments: &[String]) -> Result<ExitCode> {
    let path = format!("/proc/{pid}/ns/mnt");
    let namespace = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS)
        .with_context(|| format!("cannot join {path}"))?;
    let error = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .exec();
    bail!("cannot start {program}: {error}")
}

/// Joins the cgroups and the namespaces of a process, the first of its PID namespace, and runs the
/// program there. Its exit status is that of the program, as a shell has it.
pub(crate) fn log_in(pid: &str, program: &str, arguments: &[String]) -> Result<ExitCode> {
    // Cgroups first: from outside of its cgroup namespace nothing can be moved into it.
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("no such process")?;
    for line in cgroups.lines() {
        join_cgroup(line)?;
    }
    for (name, flag) in [
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ] {
        let path = format!("/proc/{pid}/ns/{name}");
        let namespace = fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        nix::sched::setns(namespace, flag).with_context(|| format!("cannot join {path}"))?;
    }
    let status = Command::new(program)
        .args(arguments)
        .current_dir("/")
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    let code = u8::try_from(code.unwrap_or(255)).context("an exit code beyond 255")?;
    Ok(ExitCode::from(code))
}

/// Joins the cgroup of a line of `/proc/PID/cgroup`, if its hierarchy is mounted.
fn join_cgroup(line: &str) -> Result<()> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
        bail!("{line:?} is no cgroup");
    };
    let top = Path::new("/sys/fs/cgroup");
    let hierarchy = match controllers.strip_prefix("name=").unwrap_or(controllers) {
        "" if top.join("cgroup.procs").exists() => top.to_owned(),
        "" => top.join("unified"),
        name => top.join(name),
    };
    let procs = hierarchy
        .join(path.trim_start_matches('/'))
        .join("cgroup.procs");
    if !hierarchy.exists() {
        return Ok(());
    }
    fs::write(&procs, "0").with_context(|| format!("cannot write to {}", procs.display()))
}
