//! Runs a suite's program, which reports several cases as it goes, with a deadline for each.
//!
//! Such a program takes as long to start as a case does to run, so it gets all of a file's cases at
//! once. A case at which it ends or hangs is the last that it gets to: another go takes the rest.

use std::{
    ffi::OsString,
    fs::File,
    io::Read as _,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    Setting,
    tap::{Order, Report, Seen},
};
use crate::{console, leaks, patience};

/// How long a case may take on a machine that is not loaded.
const CASE: Duration = Duration::from_secs(40);

/// Bytes that are read at once.
const CHUNK_BYTES: usize = 4096;

/// What is to be run.
pub(super) struct Program {
    /// Its name and its arguments.
    pub(super) words: Vec<String>,
    /// Where.
    pub(super) folder: PathBuf,
    /// Variables beside those that all cases share.
    pub(super) environment: Vec<(&'static str, OsString)>,
}

/// Runs cases. `program` says how to run those that it is given; `each` is told of every case when
/// nothing more is to come of it, in the order of the file. What a go left running is ended.
pub(super) fn run(
    setting: &Setting,
    names: &[&str],
    order: Order,
    program: impl Fn(&[&str]) -> Program,
    mut each: impl FnMut(Seen),
) -> Result<()> {
    let mut left = names.to_vec();
    while !left.is_empty() {
        let mut go = Go::start(setting, program(&left))?;
        let mut report = Report::new(order);
        let mut take = |seen: Vec<Seen>| {
            for seen in seen {
                left.retain(|name| *name != seen.name);
                each(seen);
            }
        };
        let program = Pid::from_child(&go.child);
        let end = thread::scope(|scope| {
            scope.spawn(|| reap_orphans(program));
            let end = go.follow(&mut report, &mut take);
            go.child.kill().ok();
            end
        });
        leaks::end_descendants()?;
        let (seen, said) = report.end();
        take(seen);
        let end = end?;
        if !left.is_empty() {
            each(Seen::lost(left.remove(0), said + end));
        }
    }
    Ok(())
}

/// A program that runs on a terminal of its own, in a session of its own.
struct Go {
    child: Child,
    terminal: File,
}

impl Go {
    fn start(setting: &Setting, program: Program) -> Result<Self> {
        let (ours, theirs) = console::new_terminal()?;
        let child = setting
            .command("setsid")
            .args(["--ctty", "--wait"])
            .args(&program.words)
            .current_dir(&program.folder)
            .envs(program.environment)
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs.try_clone()?))
            .stderr(Stdio::from(theirs))
            .spawn()
            .context("cannot start setsid")?;
        Ok(Self {
            child,
            terminal: ours.into(),
        })
    }

    /// Reads what it reports until it has ended or a case takes too long; returns what there is to
    /// say of that.
    fn follow(
        &mut self,
        report: &mut Report,
        mut take: impl FnMut(Vec<Seen>),
    ) -> Result<&'static str> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let mut deadline = Instant::now() + patience::of(CASE);
        let mut bytes = [0; CHUNK_BYTES];
        // Nothing more comes from a terminal whose other end is closed.
        let mut is_open = true;
        loop {
            let mut descriptors = [
                PollFd::new(&process, PollFlags::IN),
                PollFd::new(&self.terminal, PollFlags::IN),
            ];
            let left = deadline.saturating_duration_since(Instant::now());
            let count = if is_open { 2 } else { 1 };
            match poll(&mut descriptors[..count], Some(&Timespec::try_from(left)?)) {
                Ok(0) => return Ok("it took too long and was killed\n"),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [process, terminal] = descriptors.map(|descriptor| descriptor.revents());
            if !terminal.is_empty() {
                // An error says that the other end is closed.
                let length = (&self.terminal).read(&mut bytes).unwrap_or(0);
                is_open = length > 0;
                if report.add(&bytes[..length]) {
                    deadline = Instant::now() + patience::of(CASE);
                    take(report.take());
                }
            } else if !process.is_empty() {
                return Ok("the suite's program ended\n");
            }
        }
    }
}

/// Reaps what ends, as an init does, until `program` ends: some cases wait until a process that they
/// have no part in is gone.
fn reap_orphans(program: Pid) {
    loop {
        let ended = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(status) => status.pid(),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => None,
        };
        match ended {
            Some(pid) if pid.as_raw() != program.as_raw_nonzero().get() => {
                waitid(Id::Pid(pid), WaitPidFlag::WEXITED).ok();
            }
            _ => return,
        }
    }
}
