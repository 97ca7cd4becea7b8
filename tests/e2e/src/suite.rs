//! The suite: chooses cases, runs each in its own process, and reports.

use std::{
    collections::VecDeque,
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    str::FromStr,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::CloneFlags;
use rustix::{
    fs::MemfdFlags,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Pid, Signal, kill_process},
};
use serde::Serialize;

use crate::{
    case::Case,
    cases, host,
    invocation::ends_within,
    isolation::{Request, Verdict},
    leaks, prepare,
    runtime::Kind,
};

/// Time beyond a case's own deadline that its process gets to clean up.
const CLEANUP: Duration = Duration::from_secs(60);

/// Runs end-to-end cases against OCI runtimes.
#[derive(Debug, clap::Parser)]
#[command(name = "lazaret-e2e", version)]
pub(crate) struct Options {
    /// Runtime to test; may be repeated. Without it: runc and crun, which prove the case, then
    /// lazaret.
    #[arg(long = "runtime", value_enum)]
    runtimes: Vec<Kind>,
    /// Only cases whose `topic::name` contains this; may be repeated.
    #[arg(long = "filter")]
    filters: Vec<String>,
    /// Full sizes: streams of 256 MiB, 100 containers in a row, a minute of idling.
    #[arg(long)]
    full: bool,
    /// What the random documents of the `differential` cases are made from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Cases that run at the same time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Multiply every deadline by this, on a machine that is slow or busy.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    patience: u32,
    /// Run only every N-th case, from the K-th on: N suites, each with its own K from 1 to N, share
    /// the work.
    #[arg(long, value_name = "K/N", default_value = "1/1")]
    shard: Shard,
    /// Directory with what `lazaret-e2e prepare` made.
    #[arg(long, default_value_os_t = prepare::default_directory())]
    assets: PathBuf,
    /// Print the cases and what they need instead of running them.
    #[arg(long)]
    list: bool,
    /// Write the results as JSON to this file as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Directory on which a tmpfs for bundles is mounted, invisible to others. Not in /tmp or /run,
    /// which every case has of its own.
    #[arg(long, default_value = "/var/tmp/lazaret-e2e")]
    scratch: PathBuf,
}

/// One of several suites that share the cases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shard {
    /// Which, from 1.
    number: usize,
    /// How many there are.
    of: usize,
}

impl Shard {
    /// This one's part of the cases.
    pub(crate) fn part<T>(self, cases: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
        cases.skip(self.number - 1).step_by(self.of)
    }

    /// This one's part of groups that must stay together: the largest go first, each to the part
    /// that has the least.
    pub(crate) fn balanced<K, T>(self, mut groups: Vec<(K, Vec<T>)>) -> Vec<(K, Vec<T>)> {
        groups.sort_by_key(|(_, items)| std::cmp::Reverse(items.len()));
        let mut loads = vec![0; self.of];
        groups.retain(|(_, items)| {
            let (least, load) = loads
                .iter_mut()
                .enumerate()
                .min_by_key(|(_, load)| **load)
                .expect("there is a part");
            *load += items.len();
            least == self.number - 1
        });
        groups
    }
}

impl FromStr for Shard {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(number, of)| {
            let (number, of) = (number.parse().ok()?, of.parse().ok()?);
            (1..=of).contains(&number).then_some(Self { number, of })
        });
        parsed.ok_or("not K/N with K from 1 to N")
    }
}

/// One case under one runtime.
#[derive(Clone)]
struct Job {
    number: usize,
    name: String,
    case: &'static Case,
    kind: Kind,
    program: PathBuf,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// A line of the report.
#[derive(Debug, Serialize)]
struct Record {
    runtime: Kind,
    case: String,
    outcome: Outcome,
    reason: String,
    seconds: f64,
}

impl Options {
    /// Parses the command line; wrong ones end the program.
    pub(crate) fn parse_from(arguments: &[String]) -> Self {
        <Self as clap::Parser>::parse_from(arguments)
    }

    /// Runs what was asked for. The exit code is 1 when a case failed.
    pub(crate) fn run(&self) -> Result<ExitCode> {
        // Paths of programs are asked for before the mount namespace changes: in a chroot,
        // /proc/self/exe has another name afterwards.
        let own = std::env::current_exe().context("cannot find this program")?;
        let jobs = self.jobs()?;
        if self.list {
            for job in &jobs {
                println!(
                    "{:<8} {} {}",
                    job.kind.name(),
                    job.name,
                    self.skip_reason(job).unwrap_or_default()
                );
            }
            return Ok(ExitCode::SUCCESS);
        }
        ensure!(!jobs.is_empty(), "no case matches");
        ensure!(rustix::process::geteuid().is_root(), "must run as root");
        self.prepare(&own)
            .context("cannot prepare the scratch directory")?;
        let started = Instant::now();
        let records = self.run_jobs(jobs)?;
        self.report(&records, started.elapsed())
    }

    fn jobs(&self) -> Result<Vec<Job>> {
        let all = [Kind::Runc, Kind::Crun, Kind::Lazaret];
        let kinds: &[Kind] = if self.runtimes.is_empty() {
            &all
        } else {
            &self.runtimes
        };
        let chosen = |name: &str| {
            self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
        };
        self.shard
            .part(cases::all().filter(|(name, _)| chosen(name)))
            .flat_map(|(name, case)| kinds.iter().map(move |&kind| (name.clone(), case, kind)))
            .enumerate()
            .map(|(number, (name, case, kind))| {
                let program = if self.list {
                    PathBuf::new()
                } else {
                    kind.program()?
                };
                Ok(Job {
                    number,
                    name,
                    case,
                    kind,
                    program,
                })
            })
            .collect()
    }

    fn skip_reason(&self, job: &Job) -> Option<String> {
        if !job.case.kinds.contains(&job.kind) {
            return Some(job.case.reason.to_owned());
        }
        if host::has_cgroup_v1() && !job.case.v1_kinds.contains(&job.kind) {
            return Some(job.case.v1_reason.to_owned());
        }
        if !host::has_cgroup_v2() && !job.case.legacy_reason.is_empty() {
            return Some(job.case.legacy_reason.to_owned());
        }
        if job.case.userland && !prepare::is_complete(&self.assets) {
            return Some(format!(
                "`lazaret-e2e prepare` has not filled {}",
                self.assets.display()
            ));
        }
        None
    }

    /// A tmpfs of our own, with the suite's binary in it so that bundles can link to it.
    fn prepare(&self, own: &Path) -> Result<()> {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .context("make / private")?;
        fs::create_dir_all(&self.scratch).context("mkdir")?;
        mount(
            "tmpfs",
            &self.scratch,
            "tmpfs",
            MountFlags::empty(),
            c"mode=755",
        )
        .context("mount")?;
        fs::copy(own, self.probe()).with_context(|| format!("cannot copy {}", own.display()))?;
        Ok(())
    }

    fn probe(&self) -> PathBuf {
        self.scratch.join("probe")
    }

    fn run_jobs(&self, jobs: Vec<Job>) -> Result<Vec<Record>> {
        let (alone, beside): (Vec<Job>, Vec<Job>) =
            jobs.into_iter().partition(|job| job.case.alone);
        let records = Mutex::new(Vec::new());
        self.drain(beside, self.jobs, &records)?;
        self.drain(alone, 1, &records)?;
        Ok(records
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn drain(&self, jobs: Vec<Job>, workers: u8, records: &Mutex<Vec<Record>>) -> Result<()> {
        let queue = Mutex::new(VecDeque::from(jobs));
        let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers)
                .map(|_| {
                    scope.spawn(|| {
                        while let Some(job) = next() {
                            let record = self.run_job(&job);
                            print_record(&record);
                            if let Ok(mut records) = records.lock() {
                                records.push(record);
                            }
                        }
                    })
                })
                .collect();
            for worker in workers {
                if worker.join().is_err() {
                    bail!("a worker of the suite panicked");
                }
            }
            Ok(())
        })
    }

    fn run_job(&self, job: &Job) -> Record {
        let started = Instant::now();
        let (outcome, reason) = self.skip_reason(job).map_or_else(
            || outcome(job.kind, || self.attempt(job)),
            |reason| (Outcome::Skipped, reason),
        );
        Record {
            runtime: job.kind,
            case: job.name.clone(),
            outcome,
            reason,
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    /// Runs a job once. The error is what was wrong.
    fn attempt(&self, job: &Job) -> Result<(), String> {
        let Verdict { failure, leaks } = self.verdict(job).map_err(|error| format!("{error:#}"))?;
        match failure {
            Some(failure) => Err(failure),
            None if leaks.is_empty() => Ok(()),
            None => Err(format!("left behind: {}", leaks.join(", "))),
        }
    }

    /// Runs a job in its own process.
    fn verdict(&self, job: &Job) -> Result<Verdict> {
        let directory = self.scratch.join(format!("c{}", job.number));
        fs::create_dir(&directory)?;
        let request = Request {
            case: job.name.clone(),
            kind: job.kind,
            program: job.program.clone(),
            directory: directory.clone(),
            probe: self.probe(),
            private: private_directories(&job.program, &self.assets),
            tag: format!("e2e-{}-{}-", std::process::id(), job.number),
            full: self.full,
            seed: self.seed,
            patience: self.patience,
            assets: self.assets.clone(),
        };
        let limit = (Duration::from_secs(job.case.timeout_s) + CLEANUP) * self.patience;
        let verdict = ask(&request, limit);
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
        verdict
    }

    fn report(&self, records: &[Record], elapsed: Duration) -> Result<ExitCode> {
        if let Some(path) = &self.json {
            fs::write(path, serde_json::to_vec_pretty(records)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let count = |outcome| {
            records
                .iter()
                .filter(|record| record.outcome == outcome)
                .count()
        };
        println!("\nin {:.0} s", elapsed.as_secs_f64());
        for record in records
            .iter()
            .filter(|record| record.outcome == Outcome::Failed)
        {
            println!(
                "failed: {} {}: {}",
                record.runtime.name(),
                record.case,
                record.reason
            );
        }
        let failed = count(Outcome::Failed);
        println!(
            "{} passed, {failed} failed, {} skipped",
            count(Outcome::Passed),
            count(Outcome::Skipped)
        );
        Ok(ExitCode::from(u8::from(failed > 0)))
    }
}

/// The watched directories in which nothing lies that a case needs: the runtime, its configuration,
/// the assets.
fn private_directories(program: &Path, assets: &Path) -> Vec<String> {
    let configuration = std::env::var_os("LAZARET_CONFIG").map(PathBuf::from);
    let mut needed = vec![program, assets];
    needed.extend(configuration.as_deref());
    leaks::WATCHED_DIRECTORIES
        .iter()
        .filter(|directory| !needed.iter().any(|path| path.starts_with(directory)))
        .map(|&directory| directory.to_owned())
        .collect()
}

fn ask(request: &Request, limit: Duration) -> Result<Verdict> {
    let mut answer = fs::File::from(rustix::fs::memfd_create("verdict", MemfdFlags::CLOEXEC)?);
    let mut child = Command::new(&request.probe)
        .arg("case")
        .arg(serde_json::to_string(request)?)
        .current_dir(Path::new("/"))
        .stdin(Stdio::null())
        .stdout(OwnedFd::from(answer.try_clone()?))
        .spawn()
        .context("cannot start the case's process")?;
    let pid = Pid::from_child(&child);
    if !ends_within(pid, limit)? {
        kill_process(pid, Signal::KILL).ok();
    }
    let status = child.wait()?;
    let mut text = String::new();
    answer.seek(SeekFrom::Start(0))?;
    answer.read_to_string(&mut text)?;
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .with_context(|| format!("the case's process gave no verdict and ended with {status}"))
}

/// How a case ends whose attempts give these results. It gets a second one under a reference runtime:
/// those have races of their own (runc may leave the cgroup of a container it refused), which say
/// nothing of the case.
fn outcome(kind: Kind, mut attempt: impl FnMut() -> Result<(), String>) -> (Outcome, String) {
    match attempt() {
        Ok(()) => (Outcome::Passed, String::new()),
        Err(first) if kind.is_reference() => match attempt() {
            Ok(()) => (Outcome::Passed, format!("second attempt, after: {first}")),
            Err(second) => (Outcome::Failed, second),
        },
        Err(failure) => (Outcome::Failed, failure),
    }
}

fn print_record(record: &Record) {
    let word = match record.outcome {
        Outcome::Passed => "ok",
        Outcome::Failed => "FAILED",
        Outcome::Skipped => "skipped",
    };
    let mut line = format!(
        "{word:<8}{:<8}{:<40}{:>7.1} s",
        record.runtime.name(),
        record.case,
        record.seconds
    );
    if !record.reason.is_empty() {
        line += &format!("  {}", record.reason);
    }
    let mut out = std::io::stdout().lock();
    // One write: lines of different workers must not mix.
    out.write_all(format!("{line}\n").as_bytes())
        .and_then(|()| out.flush())
        .ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reference_has_a_second_attempt() {
        let outcome = |kind, results: &[Result<(), &str>]| {
            let mut results = results.iter();
            let result = outcome(kind, || results.next().unwrap().map_err(str::to_owned));
            assert_eq!(results.next(), None, "it is not made");
            result
        };
        let passed = |reason: &str| (Outcome::Passed, reason.to_owned());
        let failed = |reason: &str| (Outcome::Failed, reason.to_owned());
        assert_eq!(outcome(Kind::Runc, &[Ok(())]), passed(""));
        assert_eq!(
            outcome(Kind::Runc, &[Err("a"), Ok(())]),
            passed("second attempt, after: a")
        );
        assert_eq!(outcome(Kind::Crun, &[Err("a"), Err("b")]), failed("b"));
        assert_eq!(outcome(Kind::Lazaret, &[Err("a")]), failed("a"));
    }

    #[test]
    fn groups_are_shared_evenly_and_none_is_lost() {
        let groups = || {
            vec![
                ("a", vec![(); 3]),
                ("b", vec![(); 5]),
                ("c", vec![(); 1]),
                ("d", vec![(); 2]),
            ]
        };
        let names = |shard: &str| {
            let shard: Shard = shard.parse().unwrap();
            let part = shard.balanced(groups());
            part.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(names("1/1"), ["b", "a", "d", "c"]);
        assert_eq!(names("1/2"), ["b", "c"]);
        assert_eq!(names("2/2"), ["a", "d"]);
        assert_eq!(names("5/5"), Vec::<&str>::new());
    }
}
