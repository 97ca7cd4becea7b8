//! The verbs of a runtime, for `runc`, `crun` and `lazaret` alike.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{bundle::Bundle, invocation::Invocation};

/// A runtime the suite knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// The reference.
    Runc,
    /// The other reference.
    Crun,
    /// What is under test.
    Lazaret,
}

impl Kind {
    /// Name of its program.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
            Self::Lazaret => "lazaret",
        }
    }

    /// Whether it is there to prove the cases.
    pub(crate) fn is_reference(self) -> bool {
        self != Self::Lazaret
    }

    /// Finds the program: beside the suite's own binary for `lazaret` (a checkout), else on `PATH`.
    pub(crate) fn program(self) -> Result<PathBuf> {
        let beside = std::env::current_exe()?.with_file_name(self.name());
        if self == Self::Lazaret && beside.is_file() {
            return Ok(beside);
        }
        std::env::var("PATH")
            .unwrap_or_default()
            .split(':')
            .map(|directory| Path::new(directory).join(self.name()))
            .find(|path| path.is_file())
            .with_context(|| format!("{} is not on PATH", self.name()))
    }
}

/// A runtime with its own state root.
pub(crate) struct Runtime {
    /// Which one.
    pub(crate) kind: Kind,
    /// Its program.
    pub(crate) program: PathBuf,
    /// Its `--root`.
    pub(crate) root: PathBuf,
    /// What stands in front of its options, if the program is one that starts it elsewhere.
    pub(crate) leading: Vec<String>,
}

impl Runtime {
    /// Any verb with positional arguments.
    pub(crate) fn verb(&self, verb: &str, positional: &[&str]) -> Invocation {
        let mut global = self.leading.clone();
        global.push("--root".to_owned());
        global.push(self.root.to_string_lossy().into_owned());
        Invocation::new(self.program.clone(), global, verb, positional)
    }

    /// `run`, with `config.json` written first.
    pub(crate) fn run(&self, bundle: &Bundle) -> Result<Invocation> {
        self.with_bundle("run", bundle)
    }

    /// `create`, with `config.json` written first.
    pub(crate) fn create(&self, bundle: &Bundle) -> Result<Invocation> {
        self.with_bundle("create", bundle)
    }

    fn with_bundle(&self, verb: &str, bundle: &Bundle) -> Result<Invocation> {
        bundle.save()?;
        Ok(self
            .verb(verb, &[&bundle.id])
            .option(&["--bundle", &bundle.directory.to_string_lossy()]))
    }

    /// `start`.
    pub(crate) fn start(&self, id: &str) -> Invocation {
        self.verb("start", &[id])
    }

    /// `kill`.
    pub(crate) fn kill(&self, id: &str, signal: &str) -> Invocation {
        self.verb("kill", &[id, signal])
    }

    /// `delete`.
    pub(crate) fn delete(&self, id: &str) -> Invocation {
        self.verb("delete", &[id])
    }

    /// `delete --force`.
    pub(crate) fn delete_force(&self, id: &str) -> Invocation {
        self.delete(id).option(&["--force"])
    }

    /// `exec` of a program.
    pub(crate) fn exec(&self, id: &str, args: &[&str]) -> Invocation {
        let positional = [&[id], args].concat();
        self.verb("exec", &positional)
    }

    /// `exec` of the probe `name`.
    pub(crate) fn exec_probe(&self, id: &str, name: &str, arguments: &[&str]) -> Invocation {
        self.exec(
            id,
            &[&[crate::bundle::PROBE, "probe", name], arguments].concat(),
        )
    }

    /// What `state` prints.
    pub(crate) fn state(&self, id: &str) -> Result<Value> {
        self.verb("state", &[id]).succeed()?.json()
    }

    /// Demands that `state` shows `status`.
    pub(crate) fn status_is(&self, id: &str, status: &str) -> Result<()> {
        let state = self.state(id)?;
        ensure!(
            state["status"] == status,
            "status is {}, expected {status}",
            state["status"]
        );
        Ok(())
    }

    /// Checks that there is no container of this name.
    pub(crate) fn has_no(&self, id: &str) -> Result<()> {
        self.verb("state", &[id]).output()?.code(1)?;
        Ok(())
    }

    /// The container's pid as `state` shows it.
    pub(crate) fn pid(&self, id: &str) -> Result<Pid> {
        pid_of(&self.state(id)?)
    }

    /// Waits until the container's process has ended. Its pid must be one that a caller who knows
    /// only the pid file can watch.
    pub(crate) fn wait_for_end(&self, id: &str) -> Result<()> {
        let state = self.state(id)?;
        if state["status"] == "stopped" {
            return Ok(());
        }
        let pid = pid_of(&state)?;
        if !crate::invocation::ends_within(pid, std::time::Duration::from_secs(30))? {
            bail!("container {id} (pid {pid:?}) still runs after 30 s");
        }
        Ok(())
    }

    /// `create`, `start`: a running container.
    pub(crate) fn launch(&self, bundle: &Bundle) -> Result<()> {
        self.create(bundle)?.succeed()?;
        self.start(&bundle.id).succeed()?;
        Ok(())
    }

    /// Kills a running container with SIGKILL and deletes it.
    pub(crate) fn destroy(&self, id: &str) -> Result<()> {
        self.kill(id, "KILL").succeed()?;
        self.wait_for_end(id)?;
        self.delete(id).succeed()?;
        Ok(())
    }
}

/// The pid in what `state` printed.
fn pid_of(state: &Value) -> Result<Pid> {
    state["pid"]
        .as_i64()
        .and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?))
        .with_context(|| format!("state shows no pid: {state}"))
}
