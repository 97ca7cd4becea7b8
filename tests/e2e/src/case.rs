//! What a case is, and what it is handed: [`Case`] is registered by the files in `cases/`,
//! [`Test`] is made by `isolation` inside the case's own process.

use std::{cell::Cell, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    bundle::Bundle,
    runtime::{Kind, Runtime},
};

/// A topic: one file of `cases/`, with both sides of its cases.
pub(crate) struct Topic {
    /// Name of the file, first part of the case names.
    pub(crate) name: &'static str,
    /// Host sides.
    pub(crate) cases: &'static [Case],
    /// Guest sides, by name; names are unique over all topics.
    pub(crate) probes: &'static [(&'static str, Probe)],
}

/// The guest side: gets its arguments and returns the exit code.
pub(crate) type Probe = fn(&[String]) -> Result<u8>;

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// Name inside its topic.
    pub(crate) name: &'static str,
    /// The host side.
    pub(crate) run: fn(&Test) -> Result<()>,
    /// Whether no other case may run beside it.
    pub(crate) alone: bool,
    /// Whether it needs what `lazaret-e2e prepare` makes.
    pub(crate) userland: bool,
    /// Seconds after which it has failed, on a machine that is not loaded.
    pub(crate) timeout_s: u64,
    /// Runtimes that it runs under.
    pub(crate) kinds: &'static [Kind],
    /// Why not under the others.
    pub(crate) reason: &'static str,
    /// Runtimes that it runs under where the host has cgroup v1.
    pub(crate) v1_kinds: &'static [Kind],
    /// Why not under the others.
    pub(crate) v1_reason: &'static str,
    /// Requirements of the runtime-spec that it proves: ids of the catalogue in `conformance/`.
    pub(crate) covers: &'static [&'static str],
    /// Which of the runtimes that differ is right, and why.
    pub(crate) right: &'static str,
}

/// Every runtime.
const ALL: &[Kind] = &[Kind::Runc, Kind::Crun, Kind::Lazaret];

impl Case {
    /// A case for every runtime; see `case!`.
    pub(crate) const fn new(name: &'static str, run: fn(&Test) -> Result<()>) -> Self {
        Self {
            name,
            run,
            alone: false,
            userland: false,
            timeout_s: 120,
            kinds: ALL,
            reason: "",
            v1_kinds: ALL,
            v1_reason: "",
            covers: &[],
            right: "",
        }
    }

    /// Runs with nothing beside it: it measures, or fills the machine.
    pub(crate) const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Works in the Debian userland.
    pub(crate) const fn userland(mut self) -> Self {
        self.userland = true;
        self
    }

    /// May take this long instead of two minutes.
    pub(crate) const fn timeout_s(mut self, seconds: u64) -> Self {
        self.timeout_s = seconds;
        self
    }

    /// Runs under these runtimes only; `reason` says why not under the others.
    pub(crate) const fn only(mut self, kinds: &'static [Kind], reason: &'static str) -> Self {
        self.kinds = kinds;
        self.reason = reason;
        self
    }

    /// Where the host has cgroup v1, runs under these of its runtimes only; `reason` says why not
    /// under the others.
    pub(crate) const fn on_v1(mut self, kinds: &'static [Kind], reason: &'static str) -> Self {
        self.v1_kinds = kinds;
        self.v1_reason = reason;
        self
    }

    /// Proves these requirements of the runtime-spec, for `docs/conformance.md`.
    pub(crate) const fn covers(mut self, requirements: &'static [&'static str]) -> Self {
        self.covers = requirements;
        self
    }

    /// Says which of the runtimes that differ is right, and why. A case that covers requirements
    /// and does not run under all runtimes needs it.
    pub(crate) const fn right(mut self, verdict: &'static str) -> Self {
        self.right = verdict;
        self
    }
}

/// Registers a function as the case of the same name.
macro_rules! case {
    ($function:ident) => {
        $crate::case::Case::new(stringify!($function), $function)
    };
}
pub(crate) use case;

/// What the host side of a case works with.
pub(crate) struct Test {
    /// The runtime under test.
    pub(crate) runtime: Runtime,
    /// Directory of this case, on a tmpfs, empty at the start, removed afterwards.
    pub(crate) directory: PathBuf,
    /// Starts the id of every container of this case and of no other.
    pub(crate) tag: String,
    /// Whether `--full` was given.
    pub(crate) full: bool,
    /// What random choices start from.
    pub(crate) seed: u64,
    /// Where `lazaret-e2e prepare` put what it made.
    pub(crate) assets: PathBuf,
    /// The suite's binary, on the same file system as `directory`.
    pub(crate) probe: PathBuf,
    /// How many bundles were made.
    pub(crate) bundles: Cell<u32>,
}

impl Test {
    /// A new bundle that runs the probe `name` with `arguments`.
    pub(crate) fn bundle(&self, name: &str, arguments: &[&str]) -> Result<Bundle> {
        let number = self.bundles.get();
        self.bundles.set(number + 1);
        let id = format!("{}{number}", self.tag);
        let mut bundle = Bundle::new(
            &self.directory.join(format!("bundle-{number}")),
            &id,
            &self.probe,
        )
        .with_context(|| format!("cannot make bundle {id}"))?;
        bundle.probe(name, arguments);
        Ok(bundle)
    }

    /// A new bundle whose process stays until it gets SIGTERM, and then exits with 0.
    pub(crate) fn idle_bundle(&self) -> Result<Bundle> {
        self.bundle("hold", &[])
    }
}
