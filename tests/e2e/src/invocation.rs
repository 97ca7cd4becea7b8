//! One call of a runtime's command line, with a deadline and captured output.
//!
//! Output goes to memory files and not to pipes: a created container keeps its standard streams
//! open after `create` has returned, and a pipe would never end.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    os::{fd::OwnedFd, unix::process::ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::patience;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::MemfdFlags,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};

/// Longest a single call may take unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A call that has not been made yet.
pub(crate) struct Invocation {
    program: PathBuf,
    global: Vec<String>,
    verb: String,
    options: Vec<String>,
    positional: Vec<String>,
    environment: Vec<(String, String)>,
    streams: [Option<Stdio>; 3],
    redirections: Option<String>,
    timeout: Duration,
}

impl Invocation {
    /// `program global… verb positional…`, with nothing on standard input.
    pub(crate) fn new(
        program: PathBuf,
        global: Vec<String>,
        verb: &str,
        positional: &[&str],
    ) -> Self {
        Self {
            program,
            global,
            verb: verb.to_owned(),
            options: Vec::new(),
            positional: positional.iter().map(|&word| word.to_owned()).collect(),
            environment: Vec::new(),
            streams: [None, None, None],
            redirections: None,
            timeout: TIMEOUT,
        }
    }

    /// Adds a global option, in front of the verb.
    pub(crate) fn global(mut self, words: &[&str]) -> Self {
        self.global
            .extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Adds an option of the verb.
    pub(crate) fn option(mut self, words: &[&str]) -> Self {
        self.options
            .extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets standard input.
    pub(crate) fn stdin(mut self, stream: impl Into<Stdio>) -> Self {
        self.streams[0] = Some(stream.into());
        self
    }

    /// Sets standard output; it is not captured then.
    pub(crate) fn stdout(mut self, stream: impl Into<Stdio>) -> Self {
        self.streams[1] = Some(stream.into());
        self
    }

    /// Sets standard error; it is not captured then.
    pub(crate) fn stderr(mut self, stream: impl Into<Stdio>) -> Self {
        self.streams[2] = Some(stream.into());
        self
    }

    /// Has a shell redirect its descriptors, with what the calls above set to begin with.
    pub(crate) fn redirected(mut self, redirections: &str) -> Self {
        self.redirections = Some(redirections.to_owned());
        self
    }

    /// Sets the deadline.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts it.
    pub(crate) fn spawn(self) -> Result<Running> {
        let Self {
            program,
            global,
            verb,
            options,
            positional,
            environment,
            streams,
            redirections,
            timeout,
        } = self;
        let [stdin, stdout, stderr] = streams;
        let captured = [memory_file()?, memory_file()?];
        let mut command = match redirections {
            None => Command::new(&program),
            Some(redirections) => {
                let mut shell = Command::new("/bin/sh");
                let script = format!("exec \"$0\" \"$@\" {redirections}");
                shell.args(["-c", &script]).arg(&program);
                shell
            }
        };
        command
            .args(&global)
            .arg(&verb)
            .args(&options)
            .args(&positional)
            .envs(environment)
            .stdin(stdin.unwrap_or_else(Stdio::null))
            .stdout(or_captured(stdout, &captured[0])?)
            .stderr(or_captured(stderr, &captured[1])?);
        let line = [&global[..], &[verb], &options, &positional]
            .concat()
            .join(" ");
        let line = format!(
            "{} {line}",
            program.file_name().unwrap_or_default().to_string_lossy()
        );
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {line}"))?;
        Ok(Running {
            line,
            child,
            captured,
            started: Instant::now(),
            timeout,
        })
    }

    /// Starts it and waits for its end.
    pub(crate) fn output(self) -> Result<Output> {
        self.spawn()?.wait()
    }

    /// Starts it, waits for its end, and demands exit code 0.
    pub(crate) fn succeed(self) -> Result<Output> {
        self.output()?.code(0)
    }
}

fn memory_file() -> Result<File> {
    let file = rustix::fs::memfd_create("captured", MemfdFlags::CLOEXEC)?;
    Ok(File::from(file))
}

fn or_captured(chosen: Option<Stdio>, captured: &File) -> Result<Stdio> {
    match chosen {
        Some(stream) => Ok(stream),
        None => Ok(OwnedFd::from(captured.try_clone()?).into()),
    }
}

/// A call that is being made.
pub(crate) struct Running {
    line: String,
    /// The runtime's process.
    pub(crate) child: Child,
    captured: [File; 2],
    started: Instant,
    timeout: Duration,
}

impl Running {
    /// Process id of the runtime.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("cannot signal {}", self.line))
    }

    /// Waits for its end, at most until its deadline.
    pub(crate) fn wait(mut self) -> Result<Output> {
        if !ends_within(
            self.pid(),
            self.timeout.saturating_sub(self.started.elapsed()),
        )? {
            let waited = self.started.elapsed().as_secs();
            kill_process(self.pid(), Signal::KILL).ok();
            self.child.wait()?;
            bail!(
                "`{}` did not end within {waited} s; stderr: {}; stdout: {}",
                self.line,
                contents(&self.captured[1])?.trim_end(),
                contents(&self.captured[0])?.trim_end(),
            );
        }
        let status = self.child.wait()?;
        Ok(Output {
            line: self.line,
            status,
            stdout: contents(&self.captured[0])?,
            stderr: contents(&self.captured[1])?,
        })
    }
}

/// Whether a process ends within `timeout`, stretched; it is left for the caller to reap.
pub(crate) fn ends_within(pid: Pid, timeout: Duration) -> Result<bool> {
    let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(descriptor) => descriptor,
        // It has ended, and somebody reaped it.
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let mut descriptors = [PollFd::new(&descriptor, PollFlags::IN)];
    let deadline = Instant::now() + patience::of(timeout);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut descriptors, Some(&Timespec::try_from(left)?)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn contents(file: &File) -> Result<String> {
    // A second open file description would be needed to leave the writers' offset alone; the
    // path under /proc makes one.
    use std::os::fd::AsRawFd as _;
    let mut copy = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    copy.rewind()?;
    let mut bytes = Vec::new();
    copy.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A call that has ended.
#[derive(Debug)]
pub(crate) struct Output {
    line: String,
    /// How the runtime ended.
    pub(crate) status: ExitStatus,
    /// Captured standard output.
    pub(crate) stdout: String,
    /// Captured standard error.
    pub(crate) stderr: String,
}

impl Output {
    /// Demands this exit code.
    pub(crate) fn code(self, expected: i32) -> Result<Self> {
        ensure!(
            self.status.code() == Some(expected),
            "`{}` ended with {}, expected exit code {expected}; stderr: {}",
            self.line,
            describe(self.status),
            self.stderr.trim_end(),
        );
        Ok(self)
    }

    /// Demands exit code `expected` and one error line that contains every one of `words`
    /// (letter case aside).
    pub(crate) fn fails(self, expected: i32, words: &[&str]) -> Result<Self> {
        let output = self.code(expected)?;
        let errors = output.stderr.to_lowercase();
        for word in words {
            ensure!(
                errors.contains(&word.to_lowercase()),
                "the error of `{}` does not name `{word}`: {}",
                output.line,
                output.stderr.trim_end(),
            );
        }
        Ok(output)
    }

    /// Standard output as JSON.
    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("`{}` did not print JSON: {}", self.line, self.stdout))
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no status".to_owned(),
    }
}
