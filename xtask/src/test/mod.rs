//! `cargo xtask test`: everything that must hold before a change goes in.
//!
//! Steps run in order, cheap ones first; the first that fails ends the run, unless `--keep-going`
//! is given. A summary closes the output either way.

mod deny;
mod host;

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use emulated_host::{Cgroups, Command, Host, Streams};

use crate::products::{self, Products, cargo};
use crate::{emu, packages, process, run, suites, tidy};

/// After this time the end-to-end tests, or the other suites, are taken to hang.
const E2E_TIMEOUT: Duration = Duration::from_secs(40 * 60);

/// Most emulated hosts at a time: the longest case then takes longer than a part of the others.
const HOSTS_MAX: usize = 8;

/// Cases whose result may depend on the version of the host's cgroups.
const CGROUP_CASES: [&str; 12] = [
    "cgroup::",
    "limits::",
    "unit_has_the_limits",
    "sandbox_of_two",
    "exec_in_a_sub_cgroup",
    "exec_in_a_paused_container",
    "processes_as_json",
    "delete_while_processes_run",
    "monitor_and_vmm_are_killed",
    "create_and_delete",
    "first_may_end_first",
    "goes_from_one_to_the_next",
];

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Go on after a step failed.
    #[arg(long)]
    keep_going: bool,
    /// Run the steps whose names contain this; can be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Run the end-to-end tests' long cases and full sizes as well, and the other runtimes' suites
    /// under these themselves.
    #[arg(long)]
    full: bool,
}

/// One step: its name and what it does.
type Step = (&'static str, fn(&Options) -> Result<()>);

const STEPS: [Step; 10] = [
    ("format", |_| {
        process::run(cargo().args(["fmt", "--all", "--check"]))
    }),
    ("tidy", |_| tidy::run()),
    ("clippy", |_| {
        process::run(
            cargo()
                .args(["clippy", "--workspace", "--all-targets", "--quiet", "--"])
                .args(["-D", "warnings"]),
        )
    }),
    ("fuzz targets", |_| fuzz_targets()),
    ("deny", |_| deny::run()),
    ("unit, property and VMM tests", |_| {
        products::ensure_libraries()?;
        process::run(cargo().args(["test", "--workspace", "--quiet"]))
    }),
    ("emulated host", |_| host::run()),
    ("end to end", end_to_end),
    ("older cgroups", |_| older_cgroups()),
    ("suites of other runtimes", other_suites),
];

/// Runs the steps and says how they ended.
///
/// # Errors
/// If one failed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut summary = Vec::new();
    let mut failed = 0;
    for (name, step) in STEPS {
        let chosen =
            options.only.is_empty() || options.only.iter().any(|part| name.contains(part.as_str()));
        if !chosen || (failed > 0 && !options.keep_going) {
            summary.push(format!("skipped  {name}"));
            continue;
        }
        eprintln!("== {name}");
        let start = Instant::now();
        let result = step(options);
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => summary.push(format!("ok       {name} ({seconds:.1} s)")),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                summary.push(format!("FAILED   {name} ({seconds:.1} s)"));
                failed += 1;
            }
        }
    }
    println!("{}", summary.join("\n"));
    if failed > 0 {
        bail!("{failed} of {} steps failed", STEPS.len());
    }
    Ok(())
}

/// The targets of `fuzz/`, a workspace of its own: that they are formatted and still fit the crates
/// they feed. Running them takes another toolchain.
fn fuzz_targets() -> Result<()> {
    let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
    process::run(cargo().arg("fmt").args(manifest).arg("--check"))?;
    process::run(
        cargo()
            .arg("check")
            .args(manifest)
            .args(["--locked", "--quiet"])
            // Nothing is linked; without this, libFuzzer's C++ would be compiled.
            .env("CUSTOM_LIBFUZZER_PATH", "/nonexistent/libfuzzer.a"),
    )
}

/// The suite of `tests/e2e`, with real VMs.
fn end_to_end(options: &Options) -> Result<()> {
    let products = prepared()?;
    drive(&products, options.full.then_some("--full").as_slice())
}

/// The suite's binary with all that its cases need.
fn prepared() -> Result<Products> {
    let products = products::build(&["lazaret-e2e"])?;
    packages::ensure(
        &["runc", "crun"],
        "the runtimes that prove the end-to-end cases",
    )?;
    packages::ensure(
        &["mmdebstrap", "e2fsprogs"],
        "to make the userland of the end-to-end cases",
    )?;
    process::run(
        std::process::Command::new(products.program("lazaret-e2e"))
            .arg("prepare")
            .env("CARGO", cargo().get_program()),
    )?;
    Ok(products)
}

/// The cases about the host's cgroups once more, on hosts that have version 1, alone and with
/// version 2 besides. The machine's own are what they are, so these hosts are emulated anywhere.
fn older_cgroups() -> Result<()> {
    let products = prepared()?;
    let mut arguments = vec!["--runtime", "runc", "--runtime", "lazaret"];
    arguments.extend(CGROUP_CASES.iter().flat_map(|part| ["--filter", part]));
    let host = emu::default_host()?;
    let run = |cgroups| {
        let host = Host {
            timeout: Some(E2E_TIMEOUT),
            cgroups,
            ..host.clone()
        };
        run_shard(&host, &products.folder, &arguments, "1/1")
            .with_context(|| format!("on a host with {cgroups:?} cgroups"))
    };
    if host_count(&host)? == 1 {
        run(Cgroups::Legacy)?;
        return run(Cgroups::Hybrid);
    }
    thread::scope(|scope| {
        let legacy = scope.spawn(|| run(Cgroups::Legacy));
        run(Cgroups::Hybrid)?;
        legacy
            .join()
            .expect("an emulated host's errors are results")
    })
}

/// The suites of other runtimes, under lazaret. With `--full` also the cases that cannot hold, and
/// before that all under their own runtimes, which shows that the lists of what must pass are right.
fn other_suites(options: &Options) -> Result<()> {
    let products = products::build(&["lazaret-e2e"])?;
    let assets = suites::find()?;
    let assets = assets.to_str().context("the cache's path is no text")?;
    let mut under_lazaret = vec!["suite", "--assets", assets, "--runtime", "lazaret"];
    if options.full {
        drive(&products, &["suite", "--assets", assets])?;
        under_lazaret.push("--impossible");
    }
    drive(&products, &under_lazaret)
}

/// Runs `lazaret-e2e` with these arguments, in emulated hosts that share the work if this machine
/// runs no VMs itself.
fn drive(products: &Products, arguments: &[&str]) -> Result<()> {
    if run::has_virtualisation() && rustix::process::geteuid().is_root() {
        return process::run(
            std::process::Command::new(products.program("lazaret-e2e"))
                .args(arguments)
                .env("LAZARET_CONFIG", products.config()),
        );
    }
    let host = Host {
        timeout: Some(E2E_TIMEOUT),
        ..emu::default_host()?
    };
    let shards = host_count(&host)?;
    thread::scope(|scope| {
        let hosts: Vec<_> = (1..=shards)
            .map(|number| {
                let (host, folder) = (&host, &products.folder);
                scope.spawn(move || {
                    run_shard(host, folder, arguments, &format!("{number}/{shards}"))
                        .with_context(|| format!("part {number} of {shards}"))
                })
            })
            .collect();
        let results: Vec<Result<()>> = hosts
            .into_iter()
            .map(|host| host.join().expect("an emulated host's errors are results"))
            .collect();
        results.into_iter().collect()
    })
}

/// As many emulated hosts as keep this machine busy: one has one CPU. A machine with little memory
/// gets fewer.
fn host_count(host: &Host) -> Result<usize> {
    let cpus = thread::available_parallelism()?.get();
    let memory_mib = available_memory_mib()? / u64::from(host.memory_mib);
    Ok(usize::try_from(memory_mib)?.clamp(1, cpus.min(HOSTS_MAX)))
}

/// What `/proc/meminfo` calls `MemAvailable`.
fn available_memory_mib() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("/proc/meminfo has no MemAvailable")?.parse()?;
    Ok(kib >> 10)
}

/// A part of the work in an emulated host of its own.
fn run_shard(host: &Host, products: &Path, arguments: &[&str], shard: &str) -> Result<()> {
    // Off the machine's own file system, and out of the directories that the suite watches.
    let script = "cp -R \"$0\" /var/tmp/products && \
                  LAZARET_CONFIG=/var/tmp/products/config.toml \
                  exec /var/tmp/products/bin/lazaret-e2e \"$@\"";
    let mut command = Command::new(vec!["sh".into(), "-c".into(), script.into()])?;
    command.arguments.push(products.into());
    command.arguments.extend(arguments.iter().map(Into::into));
    // As many hosts as CPUs leave none to spare for the rest of the machine.
    let options = ["--shard", shard, "--patience", "3"];
    command.arguments.extend(options.map(Into::into));
    let outcome = host.run(&command, Streams::inherited()?)?;
    if outcome.status != 0 {
        bail!("lazaret-e2e ended with {}", outcome.status);
    }
    Ok(())
}
