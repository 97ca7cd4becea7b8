//! One case in a process of its own: a subreaper with its own mount and network namespace and
//! its own `/tmp`, `/run` and `/dev/shm`, so that everything the case leaves behind is found, is
//! known to be its own, and is gone when the process ends.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::CloneFlags;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    case::Test,
    cases, host,
    leaks::{self, Snapshot},
    patience,
    runtime::{Kind, Runtime},
};

/// What the suite asks a case's process to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// `topic::name`.
    pub(crate) case: String,
    /// The runtime.
    pub(crate) kind: Kind,
    /// Its program.
    pub(crate) program: PathBuf,
    /// The case's own directory.
    pub(crate) directory: PathBuf,
    /// See [`Test::probe`].
    pub(crate) probe: PathBuf,
    /// See [`Test::assets`].
    pub(crate) assets: PathBuf,
    /// Directories that the case gets empty and for itself.
    pub(crate) private: Vec<String>,
    /// See [`Test::tag`].
    pub(crate) tag: String,
    /// See [`Test::full`].
    pub(crate) full: bool,
    /// See [`Test::seed`].
    pub(crate) seed: u64,
    /// What every deadline is multiplied by.
    pub(crate) patience: u32,
}

/// What it answers on standard output: nothing is wrong, or what is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// Why the case failed.
    pub(crate) failure: Option<String>,
    /// What it left behind.
    pub(crate) leaks: Vec<String>,
}

/// Runs one case and prints its [`Verdict`].
pub(crate) fn main(request: &str) -> Result<ExitCode> {
    let request: Request = serde_json::from_str(request).context("cannot read the request")?;
    patience::set(request.patience);
    isolate(&request.private).context("cannot isolate the case")?;
    let verdict = run(&request)?;
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(ExitCode::SUCCESS)
}

fn isolate(private: &[String]) -> Result<()> {
    // With no argument the kernel asks only whether a pid is given: any makes it a subreaper.
    rustix::process::set_child_subreaper(Some(Pid::INIT))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    for directory in private {
        mount(
            "tmpfs",
            directory,
            "tmpfs",
            MountFlags::empty(),
            c"mode=1777",
        )
        .with_context(|| format!("cannot mount a tmpfs on {directory}"))?;
    }
    // A host under systemd shares its mounts with namespaces made from it: a runtime that does
    // not cut the propagation leaks every mount of a container, and must be caught here.
    mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )?;
    Ok(())
}

fn run(request: &Request) -> Result<Verdict> {
    let case =
        cases::find(&request.case).with_context(|| format!("there is no case {}", request.case))?;
    let root = request.directory.join("state");
    let test = Test {
        runtime: Runtime {
            kind: request.kind,
            program: request.program.clone(),
            root: root.clone(),
            leading: Vec::new(),
        },
        directory: request.directory.clone(),
        tag: request.tag.clone(),
        full: request.full,
        seed: request.seed,
        probe: request.probe.clone(),
        assets: request.assets.clone(),
        bundles: Cell::new(0),
    };
    let before = Snapshot::take()?;
    let outcome = guarded(
        test,
        case.run,
        patience::of(Duration::from_secs(case.timeout_s)),
    );
    let verdict = match outcome {
        Ok(()) => Verdict {
            failure: None,
            leaks: before.leaks(&request.tag, &root)?,
        },
        Err(error) => Verdict {
            failure: Some(format!("{error:#}")),
            leaks: Vec::new(),
        },
    };
    leaks::end_descendants()?;
    remove_cgroups(&request.tag);
    Ok(verdict)
}

/// Runs the case in a thread, so that neither a panic nor a hang keeps this process.
fn guarded(test: Test, case: fn(&Test) -> Result<()>, timeout: Duration) -> Result<()> {
    let (sender, receiver) = channel();
    let thread = std::thread::spawn(move || {
        let outcome = case(&test);
        // The receiver is gone after a timeout only, and then nobody wants to know.
        sender.send(outcome).ok();
    });
    match receiver.recv_timeout(timeout) {
        Ok(outcome) => {
            thread.join().map_err(|_| anyhow!("the case panicked"))?;
            outcome
        }
        Err(RecvTimeoutError::Timeout) => Err(anyhow!("not done after {} s", timeout.as_secs())),
        Err(RecvTimeoutError::Disconnected) => Err(anyhow!("the case panicked")),
    }
}

/// What is left after a failure must not be found by the next run with the same tag.
fn remove_cgroups(tag: &str) {
    let mut paths = host::cgroups(tag);
    paths.sort_unstable_by_key(|path| std::cmp::Reverse(path.len()));
    for path in paths {
        std::fs::remove_dir(Path::new(&path)).ok();
    }
}
