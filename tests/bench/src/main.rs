//! `lazaret-bench`: measures starts and memory of `lazaret` beside `runc`, `crun` and QEMU.
//!
//! `cargo xtask bench` runs it in the emulated host's instruction-counted mode, where a second is
//! 500 million instructions and figures repeat; it runs on any host with KVM. It knows the
//! runtimes through their command line, and lazaret's VMM by its counters. The result is JSON on standard output.
//!
//! The same program is the first process of the empty VM that is measured for comparison.

#![forbid(unsafe_code)]

mod bundle;
mod idle;
mod memory;
mod microvm;
mod phases;
mod runtime;
mod sandbox;
mod start;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;

/// Measure starts and memory of lazaret, runc, crun and QEMU's microvm.
#[derive(Debug, Parser)]
struct Options {
    /// Runtimes to measure: a name to look up on PATH, or a path. The first is the yardstick.
    #[arg(long, required = true)]
    runtime: Vec<PathBuf>,
    /// QEMU, with its options for firmware, to boot the guest's kernel in a microvm; left out if
    /// not given.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_terminator = ";", requires = "kernel")]
    qemu: Vec<String>,
    /// The guest's kernel, for QEMU.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// How often each figure is measured, after one run that is not counted.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Seconds an idle sandbox is watched for work of ours.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    /// Times, in seconds.
    start: Vec<start::Figures>,
    /// What the time of the verbs of each runtime is spent on, if it says so.
    phases: Vec<phases::Timeline>,
    /// QEMU microvm: from its start to its end, in seconds.
    microvm_seconds: Option<start::Spread>,
    /// One idle sandbox of each VM runtime.
    sandbox: Vec<sandbox::Figures>,
}

fn main() -> ExitCode {
    if microvm::is_first_process() {
        microvm::end_vm();
    }
    match measure(&Options::parse()) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<String> {
    let scratch = bundle::Scratch::new()?;
    let mut report = Report {
        start: Vec::new(),
        phases: Vec::new(),
        microvm_seconds: None,
        sandbox: Vec::new(),
    };
    for program in &options.runtime {
        let runtime = runtime::Runtime::new(program, scratch.path());
        eprintln!("measuring {}", runtime.name());
        let spec = runtime.default_spec(scratch.path())?;
        let figures = start::measure(&runtime, &scratch, &spec, options.runs)
            .with_context(|| format!("measuring {}", runtime.name()))?;
        report.start.push(figures);
        let timelines = phases::measure(&runtime, &scratch, &spec, options.runs)
            .with_context(|| format!("measuring the phases of {}", runtime.name()))?;
        report.phases.extend(timelines);
        if let Some(figures) = sandbox::measure(&runtime, &scratch, spec, options.idle_seconds)? {
            report.sandbox.push(figures);
        }
    }
    if let (Some(kernel), [program, arguments @ ..]) = (&options.kernel, options.qemu.as_slice()) {
        eprintln!("measuring QEMU microvm");
        let vm = microvm::Microvm {
            program,
            arguments,
            kernel,
        };
        report.microvm_seconds = Some(vm.measure(scratch.path(), options.runs)?);
    }
    Ok(serde_json::to_string_pretty(&report)?)
}
