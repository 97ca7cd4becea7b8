//! Starts QEMU, carries the command's streams, and brings back its exit status.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, Read};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::qemu::{Machine, Qemu, Running};
use crate::relay::Relay;
use crate::terminal::{self, RawMode};
use crate::wire::{self, Bytes, Job, Report};

/// How long the guest may take from power-on to its first report. It takes 1 to 3 s; this is for
/// machines under heavy load.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);

/// Most bytes of the kernel's messages that are kept; older ones are dropped.
const KERNEL_LOG_BYTES_MAX: usize = 256 * 1024;

/// Lines of the kernel's messages that an error shows.
const KERNEL_LOG_LINES_SHOWN: usize = 40;

/// Exit status of a command whose output nobody reads any more: 128 + SIGPIPE.
const STATUS_BROKEN_PIPE: u8 = 128 + 13;

/// How time passes inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As outside, one thread for each CPU. For everything but figures.
    Functional,
    /// Two nanoseconds for each instruction, on one CPU: figures repeat however busy the machine
    /// is. A guest VM with more than two vCPUs hangs in this mode, so does one under sustained
    /// virtio-fs load.
    Counted,
}

/// Which cgroup hierarchies there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Cgroups {
    /// Version 2 alone, with all controllers.
    #[default]
    Unified,
    /// Version 1: a hierarchy for each controller or pair of them, and systemd's own.
    Legacy,
    /// Version 1, and version 2 besides, without controllers.
    Hybrid,
}

/// An emulated host that can be switched on for one command.
#[derive(Debug, Clone)]
pub struct Host {
    /// The host's kernel: an ELF `vmlinux` with PVH entry (a bzImage works, but unpacks itself).
    pub kernel: PathBuf,
    /// The emulator.
    pub qemu: Qemu,
    /// How time passes.
    pub mode: Mode,
    /// Memory in MiB. Three quarters of it can hold files the command writes.
    pub memory_mib: u32,
    /// CPUs; [`Mode::Counted`] has always one. With several, which QEMU runs on a thread each,
    /// programs in guests and now and then the host's kernel crash: a few in a thousand guests.
    pub cpus: u32,
    /// Its cgroup hierarchies.
    pub cgroups: Cgroups,
    /// The command is killed after this time, boot included.
    pub timeout: Option<Duration>,
    /// Directories of the machine the command may really write to.
    pub writable: Vec<PathBuf>,
    /// Program that is started as the first process inside and then calls
    /// [`crate::guest::run`]: usually `std::env::current_exe()`.
    pub first_process: PathBuf,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments.
    pub arguments: Vec<OsString>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Working directory.
    pub directory: PathBuf,
}

impl Command {
    /// A command with this process's environment and working directory.
    ///
    /// # Errors
    /// If the working directory is gone.
    pub fn new(arguments: Vec<OsString>) -> Result<Self> {
        Ok(Self {
            arguments,
            environment: std::env::vars_os().collect(),
            directory: std::env::current_dir().context("finding the current directory")?,
        })
    }
}

/// Standard streams of the command. If input and output are the same terminal the command gets a
/// terminal of its own.
#[derive(Debug)]
pub struct Streams {
    /// Standard input. It is read by a thread that ends when the input does.
    pub stdin: File,
    /// Standard output.
    pub stdout: File,
    /// Standard error; where it is the same file as `stdout` both keep their order.
    pub stderr: File,
}

impl Streams {
    /// This process's own.
    ///
    /// # Errors
    /// If one is closed.
    pub fn inherited() -> Result<Self> {
        Ok(Self {
            stdin: rustix::io::dup(rustix::stdio::stdin())?.into(),
            stdout: rustix::io::dup(rustix::stdio::stdout())?.into(),
            stderr: rustix::io::dup(rustix::stdio::stderr())?.into(),
        })
    }
}

/// How it ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit status as a shell has it: 128 + n for signal n.
    pub status: u8,
    /// The newest messages of the host's kernel and of QEMU.
    pub kernel_log: String,
}

/// The launcher's ends of what QEMU has the other ends of.
struct Ends {
    control: UnixStream,
    stdin: UnixStream,
    stdout: UnixStream,
    stderr: UnixStream,
}

impl Host {
    /// Memory in MiB that is enough for a handful of VMs and for the files of a test.
    pub const MEMORY_MIB: u32 = 3072;

    /// A host of one CPU, for everything but figures, whose first process is this program.
    ///
    /// # Errors
    /// If this program's file is gone.
    pub fn new(kernel: PathBuf, qemu: Qemu) -> Result<Self> {
        Ok(Self {
            kernel,
            qemu,
            mode: Mode::Functional,
            memory_mib: Self::MEMORY_MIB,
            cpus: 1,
            cgroups: Cgroups::default(),
            timeout: None,
            writable: Vec::new(),
            first_process: std::env::current_exe().context("finding this program")?,
        })
    }

    /// Switches the host on, runs `command`, and switches it off.
    ///
    /// # Errors
    /// If QEMU does not start, the host does not come up, the command cannot be started, or the
    /// time is over; with the last messages of the host's kernel. That the command fails is no
    /// error.
    pub fn run(&self, command: &Command, streams: Streams) -> Result<Outcome> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let (ends, running, log) = self.power_on()?;
        let result = self.converse(command, streams, ends, deadline);
        drop(running);
        let kernel_log = log
            .join()
            .map_err(|_| anyhow!("the reader of the kernel's messages panicked"))?;
        match result {
            Ok(status) => Ok(Outcome { status, kernel_log }),
            Err(error) => {
                Err(error.context(format!("the emulated host failed{}", tail(&kernel_log))))
            }
        }
    }

    /// Starts QEMU.
    fn power_on(&self) -> Result<(Ends, Running, JoinHandle<String>)> {
        let (control, stdin, stdout, stderr, log) = (pair()?, pair()?, pair()?, pair()?, pair()?);
        let machine = Machine {
            host: self,
            ports: [control.1, stdin.1, stdout.1, stderr.1],
            log: log.1,
        };
        let running = machine.start()?;
        let ends = Ends {
            control: control.0.into(),
            stdin: stdin.0.into(),
            stdout: stdout.0.into(),
            stderr: stderr.0.into(),
        };
        let log = thread::spawn(move || collect(log.0.into()));
        Ok((ends, running, log))
    }

    /// Hands the job over, carries streams, and waits for the end. Returns the exit status.
    fn converse(
        &self,
        command: &Command,
        streams: Streams,
        ends: Ends,
        deadline: Option<Instant>,
    ) -> Result<u8> {
        let mut reports = BufReader::new(ends.control.try_clone()?);
        let mut next_report = |limit: Option<Instant>| -> Result<Option<Report>> {
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                bail!("time is over");
            }
            ends.control.set_read_timeout(left)?;
            wire::receive(&mut reports)
        };

        let boot_limit = Instant::now() + BOOT_TIMEOUT;
        match next_report(Some(
            deadline.map_or(boot_limit, |limit| limit.min(boot_limit)),
        ))? {
            Some(Report::Ready) => {}
            Some(other) => bail!("the host came up with {other:?}"),
            None => bail!("the host ended before it came up"),
        }
        let job = self.job(command, &streams)?;
        let _raw_mode = job.terminal.and_then(|_| RawMode::enter(&streams.stdin));
        wire::send(&mut &ends.control, &job)?;

        let hang_up = Arc::new(ends.control.try_clone()?);
        let when_over = move |_, broken| {
            if broken {
                // The reader of the output went away: wake the wait for the end below.
                let _ = hang_up.shutdown(Shutdown::Both);
            }
        };
        // QEMU drops what it has not read yet once a socket is closed, but not when it is only shut
        // down: this keeps the socket open to the end.
        let _stdin_end = ends.stdin.try_clone()?;
        Relay::start(streams.stdin, file(ends.stdin), |port, _| {
            // If QEMU is gone there is nobody to tell.
            let _ = rustix::net::shutdown(&port, rustix::net::Shutdown::Write);
        });
        let stdout = Relay::start(file(ends.stdout), streams.stdout, when_over.clone());
        let stderr = Relay::start(file(ends.stderr), streams.stderr, when_over);

        let report = next_report(deadline);
        if stdout.is_broken() || stderr.is_broken() {
            return Ok(STATUS_BROKEN_PIPE);
        }
        match report? {
            Some(Report::Ended {
                status,
                stdout_bytes,
                stderr_bytes,
            }) => {
                stdout.wait_for_bytes(stdout_bytes);
                stderr.wait_for_bytes(stderr_bytes);
                Ok(status)
            }
            Some(Report::Failed(reason)) => bail!("{reason}"),
            Some(Report::Ready) => bail!("the host restarted"),
            None => bail!("the host ended before the command did"),
        }
    }

    fn job(&self, command: &Command, streams: &Streams) -> Result<Job> {
        let terminal = terminal::size(&streams.stdin, &streams.stdout);
        let (out, err) = (streams.stdout.metadata()?, streams.stderr.metadata()?);
        Ok(Job {
            arguments: command.arguments.iter().map(Bytes::from).collect(),
            environment: command
                .environment
                .iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            directory: (&command.directory).into(),
            terminal,
            joined_output: {
                use std::os::unix::fs::MetadataExt;
                (out.dev(), out.ino(), out.rdev()) == (err.dev(), err.ino(), err.rdev())
            },
            cgroups: self.cgroups,
            writable: self
                .writable
                .iter()
                .enumerate()
                .map(|(index, path)| (Machine::writable_tag(index), path.into()))
                .collect(),
        })
    }
}

/// A connected pair of sockets.
fn pair() -> Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair().context("making a socket pair")?;
    Ok((ours.into(), theirs.into()))
}

fn file(socket: UnixStream) -> File {
    OwnedFd::from(socket).into()
}

/// Reads the kernel's messages to their end and keeps the newest.
fn collect(mut from: File) -> String {
    let mut log = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        log.extend_from_slice(&chunk[..count]);
        if log.len() > 2 * KERNEL_LOG_BYTES_MAX {
            log.drain(..log.len() - KERNEL_LOG_BYTES_MAX);
        }
    }
    String::from_utf8_lossy(&log).replace('\r', "")
}

/// The last lines of the kernel's messages, as the end of an error.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(KERNEL_LOG_LINES_SHOWN)..];
    if shown.is_empty() {
        return String::new();
    }
    format!("; its last messages:\n  {}\n", shown.join("\n  "))
}
