//! `lazaret-e2e enter PID PROGRAM ARGUMENTS`: becomes a program in the mount namespace of another
//! process, as engines do with a container's pid. Started by cases.

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use nix::sched::CloneFlags;

/// Joins the namespace, at the root that it has for those who join, and executes the program.
pub(crate) fn main(
    pid: &str,
    program: &str,
    arguments: &[String],
) -> Result<std::process::ExitCode> {
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
