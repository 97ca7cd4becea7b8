//! `lazaret-e2e suite`: the test suites of runc and of crun, as Debian's source packages have them,
//! under a runtime of one's choice.
//!
//! `cargo xtask test` unpacks and builds them (`xtask/src/suites.rs`) and calls this in the emulated
//! host. What must pass is decided by [`lists`]: every case that passes under the suite's own
//! runtime, apart from the one list of exceptions. It must know nothing of the runtime under test
//! but the path of its program.

mod batch;
mod bats;
mod lists;
mod python;
mod tap;
mod verdict;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use nix::sched::CloneFlags;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::Pid,
};

use self::{
    lists::{Cause, Exception, Expectations},
    tap::{Order, Outcome, Seen},
    verdict::{Verdict, Word},
};
use crate::{loop_device::LoopDevice, patience, suite::Shard};

/// A control group beside the containers', as every host with an init system has one: runc's suite
/// looks into any to learn whether there is a freezer.
const CONTROL_GROUP: &str = "/sys/fs/cgroup/lazaret-suites";

/// Where the cases find programs: those of the packages and no others of the same name.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of the disk that the machine is given: runc's suite passes the first one to a container.
const DISK_BYTES: u64 = 1 << 20;

/// Runs the suites of other runtimes.
#[derive(Debug, Parser)]
#[command(name = "lazaret-e2e suite")]
struct Options {
    /// Which; without any: both.
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Program to test, by its path, or by its name beside this one or on PATH; without it the
    /// suite's own runtime, which must pass every case of the list.
    #[arg(long)]
    runtime: Option<String>,
    /// Directory with the suites, unpacked and built.
    #[arg(long)]
    assets: PathBuf,
    /// Only cases whose `file::name` contains this; may be repeated.
    #[arg(long = "filter")]
    filters: Vec<String>,
    /// Run only the K-th of N parts of the files.
    #[arg(long, value_name = "K/N", default_value = "1/1")]
    shard: Shard,
    /// Multiply every deadline by this, on a machine that is slow or busy.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    patience: u32,
    /// Run the cases that cannot hold as well, which must fail.
    #[arg(long)]
    impossible: bool,
    /// Run every case of the suite and write the names of those that pass into this directory.
    #[arg(long, value_name = "DIR", conflicts_with = "filters")]
    record: Option<PathBuf>,
    /// Print everything that the failed cases said, not only the end of it, and what the excepted ones
    /// said.
    #[arg(long)]
    verbose: bool,
    /// Directory on which a tmpfs for the cases is mounted.
    #[arg(long, default_value = "/var/tmp/lazaret-suites")]
    scratch: PathBuf,
}

/// A suite.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Suite {
    /// `tests/integration` of runc, for bats.
    Runc,
    /// `tests` of crun, in Python.
    Crun,
}

impl Suite {
    /// Its name, which is also its runtime's and its folder's in the assets.
    fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }

    /// Where its files are.
    fn folder(self, setting: &Setting) -> PathBuf {
        setting.assets.join(match self {
            Self::Runc => "runc/tests/integration",
            Self::Crun => "crun/tests",
        })
    }

    /// What all names of its files begin and end with.
    fn affixes(self) -> (&'static str, &'static str) {
        match self {
            Self::Runc => ("", ".bats"),
            Self::Crun => ("test_", ".py"),
        }
    }

    /// The name of a file.
    fn file_name(self, file: &str) -> String {
        let (prefix, suffix) = self.affixes();
        format!("{prefix}{file}{suffix}")
    }

    /// Names of its files, without what all of them have in common, sorted.
    fn files(self, setting: &Setting) -> Result<Vec<String>> {
        let folder = self.folder(setting);
        let (prefix, suffix) = self.affixes();
        let mut files = Vec::new();
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
        {
            let name = entry?.file_name();
            let stem = name
                .to_str()
                .and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix));
            files.extend(stem.map(str::to_owned));
        }
        files.sort_unstable();
        Ok(files)
    }

    /// The names of a file's cases.
    fn list(self, setting: &Setting, file: &str) -> Result<Vec<String>> {
        let path = self.folder(setting).join(self.file_name(file));
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match self {
            Self::Runc => Ok(bats::names(&text)),
            Self::Crun => python::names(&text)
                .with_context(|| format!("{} has no table of its cases", path.display())),
        }
    }

    /// Runs cases of a file, and ends everything that they left running.
    fn run(
        self,
        setting: &Setting,
        file: &str,
        names: &[&str],
        each: impl FnMut(Seen),
    ) -> Result<()> {
        let folder = self.folder(setting);
        let name = self.file_name(file);
        match self {
            Self::Runc => {
                let program = |names: &[&str]| bats::program(setting, &folder, &name, names);
                batch::run(setting, names, Order::ResultFirst, program, each)
            }
            Self::Crun => {
                let folder = python::working_copy(setting, &folder)?;
                let program = |names: &[&str]| python::program(setting, &folder, &name, names);
                batch::run(setting, names, Order::ResultLast, program, each)
            }
        }
    }
}

/// What a suite's cases are run with.
pub(crate) struct Setting {
    /// The runtime under test.
    pub(crate) runtime: PathBuf,
    /// The suites, unpacked and built; not written to.
    pub(crate) assets: PathBuf,
    /// A directory of our own, on a tmpfs.
    pub(crate) scratch: PathBuf,
}

impl Setting {
    /// A command with the environment that all cases share.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let name = "LAZARET_CONFIG";
        let kept = std::env::var_os(name).map(|value| (name, value));
        command
            .env_clear()
            .envs(kept)
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("TERM", "xterm")
            .env("TMPDIR", &self.scratch);
        command
    }
}

/// Parses the command line and runs what was asked for; the exit code is 1 when a case failed.
pub(crate) fn main(arguments: &[String]) -> Result<ExitCode> {
    let name = "lazaret-e2e suite".to_owned();
    let mut options = Options::parse_from(std::iter::once(&name).chain(arguments));
    if options.suites.is_empty() {
        options.suites = vec![Suite::Runc, Suite::Crun];
    }
    ensure!(rustix::process::geteuid().is_root(), "must run as root");
    patience::set(options.patience);
    let disk = prepare(&options.scratch).context("cannot prepare the machine")?;
    let outcome = options.run();
    drop(disk);
    outcome
}

/// A tmpfs of our own, mounts that are shared as on a host under systemd, and what else the suites
/// expect of a machine.
fn prepare(scratch: &Path) -> Result<LoopDevice> {
    rustix::process::set_child_subreaper(Some(Pid::INIT))?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    let all = |flags| mount_change("/", flags | MountPropagationFlags::REC);
    all(MountPropagationFlags::PRIVATE).context("make / private")?;
    fs::create_dir_all(scratch).context("mkdir")?;
    mount("tmpfs", scratch, "tmpfs", MountFlags::empty(), c"mode=755").context("mount")?;
    all(MountPropagationFlags::SHARED).context("make / shared")?;
    fs::create_dir_all(CONTROL_GROUP).context("mkdir of a control group")?;
    let disk = scratch.join("disk");
    fs::File::create(&disk)?.set_len(DISK_BYTES)?;
    LoopDevice::attach(&disk)
}

impl Options {
    fn run(&self) -> Result<ExitCode> {
        let started = Instant::now();
        let mut verdicts = Vec::new();
        for &suite in &self.suites {
            let setting = Setting {
                runtime: find(self.runtime.as_deref().unwrap_or(suite.name()))?,
                assets: fs::canonicalize(&self.assets)
                    .with_context(|| format!("there are no suites in {}", self.assets.display()))?,
                scratch: self.scratch.clone(),
            };
            match &self.record {
                Some(directory) => record(suite, &setting, directory)?,
                None => verdicts.extend(self.examine(suite, &setting)?),
            }
        }
        Ok(self.report(&verdicts, started.elapsed()))
    }

    /// Runs the chosen cases of a suite's list and judges them.
    fn examine(&self, suite: Suite, setting: &Setting) -> Result<Vec<Verdict>> {
        let expectations = Expectations::read(suite)?;
        let exceptions: &[Exception] = match self.runtime {
            Some(_) => &expectations.exceptions,
            None => &[],
        };
        let is_possible = |case: &String| {
            let exception = exceptions.iter().find(|exception| exception.case == *case);
            exception.is_none_or(|exception| exception.cause != Cause::Never)
        };
        let chosen = |case: &&String| {
            (self.impossible || is_possible(case))
                && (self.filters.is_empty()
                    || self.filters.iter().any(|filter| case.contains(filter)))
        };
        let files = lists::by_file(expectations.cases.iter().filter(chosen))?;
        let mut verdicts = Vec::new();
        for (file, names) in self.shard.balanced(files) {
            let known = suite.list(setting, file)?;
            if let Some(unknown) = names.iter().find(|name| !known.iter().any(|k| k == *name)) {
                bail!("{}'s suite has no case {file}::{unknown}", suite.name());
            }
            suite.run(setting, file, &names, |seen| {
                let case = format!("{file}::{}", seen.name);
                let exception = exceptions.iter().find(|exception| exception.case == case);
                let verdict = Verdict::new(suite, case, seen, exception);
                println!("{verdict}");
                if verdict.word == Word::Failed {
                    // At once: whoever ends the run early wants to know as well.
                    println!("{}", verdict.explained(self.verbose));
                }
                verdicts.push(verdict);
            })?;
        }
        Ok(verdicts)
    }

    fn report(&self, verdicts: &[Verdict], elapsed: Duration) -> ExitCode {
        println!("\nin {:.0} s", elapsed.as_secs_f64());
        let of = |word| verdicts.iter().filter(move |verdict| verdict.word == word);
        let excepted = verdicts.iter().filter(|verdict| {
            self.verbose && matches!(verdict.word, Word::Excepted | Word::Pending)
        });
        for verdict in of(Word::Failed).chain(excepted) {
            println!("{}", verdict.explained(self.verbose));
        }
        let failed = of(Word::Failed).count();
        println!(
            "{} passed, {failed} failed, {} excepted, {} pending",
            of(Word::Passed).count(),
            of(Word::Excepted).count(),
            of(Word::Pending).count(),
        );
        ExitCode::from(u8::from(failed > 0))
    }
}

/// Finds a program: a path is one, and a name is looked for beside this program and on `PATH`.
fn find(name: &str) -> Result<PathBuf> {
    if name.contains('/') {
        return fs::canonicalize(name).with_context(|| format!("there is no runtime {name}"));
    }
    let own = std::env::current_exe().context("cannot find this program")?;
    let path = std::env::var("PATH").unwrap_or_default();
    std::iter::once(own.with_file_name(name))
        .chain(path.split(':').map(|folder| Path::new(folder).join(name)))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not on PATH"))
}

/// Runs the whole suite and writes the cases that pass, one a line.
fn record(suite: Suite, setting: &Setting, directory: &Path) -> Result<()> {
    let mut text = String::new();
    for file in suite.files(setting)? {
        let names = suite.list(setting, &file)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        suite.run(setting, &file, &names, |seen| {
            let reason = match &seen.outcome {
                Outcome::Passed => {
                    writeln!(text, "{file}::{}", seen.name).ok();
                    return;
                }
                Outcome::Skipped(reason) => format!("skipped: {reason}"),
                Outcome::Failed => format!("failed:\n{}", seen.said),
            };
            println!("{} {file}::{}: {reason}", suite.name(), seen.name);
        })?;
    }
    let path = directory.join(format!("{}.cases", suite.name()));
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
