//! A runtime's command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A runtime with a state root of its own.
pub(crate) struct Runtime {
    program: PathBuf,
    root: PathBuf,
}

impl Runtime {
    pub(crate) fn new(program: &Path, scratch: &Path) -> Self {
        let name = program.file_name().unwrap_or(program.as_os_str());
        Self {
            root: scratch.join("state").join(name),
            program: program.to_owned(),
        }
    }

    /// File name of its program.
    pub(crate) fn name(&self) -> String {
        self.program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Whether it has a verb that is measured: crun shows no `events`.
    pub(crate) fn has(&self, verb: &str) -> bool {
        (self.name().as_str(), verb) != ("crun", "events")
    }

    /// Its state root.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A verb, with nothing on its standard streams. It is run by [`run`].
    pub(crate) fn verb<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// A verb that logs debug messages to the file `log`, as JSON.
    pub(crate) fn logged_verb(&self, log: &Path, arguments: &[&str]) -> Command {
        let mut words = vec!["--debug", "--log-format", "json", "--log"];
        let log = log.to_string_lossy();
        words.push(&log);
        words.extend(arguments);
        self.verb(&words)
    }

    /// What `state` prints of a container.
    pub(crate) fn state(&self, id: &str) -> Result<Value> {
        let output = self
            .verb(&["state", id])
            .stdout(Stdio::piped())
            .output()
            .context("cannot start the runtime")?;
        serde_json::from_slice(&output.stdout).context("state prints no JSON")
    }

    /// The specification that `spec` writes.
    pub(crate) fn default_spec(&self, scratch: &Path) -> Result<Value> {
        let directory = scratch.join(format!("spec-{}", self.name()));
        std::fs::create_dir_all(&directory)?;
        run(self.verb(&["spec"]).current_dir(&directory))?;
        Ok(serde_json::from_slice(&std::fs::read(
            directory.join("config.json"),
        )?)?)
    }
}

/// Runs a command to its end and demands success.
///
/// # Errors
/// If it cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}
