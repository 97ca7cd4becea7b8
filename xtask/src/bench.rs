//! `cargo xtask bench`: starts and memory beside runc, crun and QEMU, in instruction-counted time.
//!
//! `lazaret-bench` measures; this runs it in the emulated host, keeps its JSON and prints a table.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};

use anyhow::{Context, Result, bail};
use clap::Args;
use emulated_host::{Command, Host, Mode, Streams};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use crate::products::{self, Products};
use crate::{emu, emulator, packages};

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each figure is measured.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Seconds an idle sandbox is watched for work of ours.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u32,
}

/// Measures, writes `target/lazaret/bench.json` and prints a table.
///
/// # Errors
/// If something cannot be built, or the measurement fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    packages::ensure(&["runc", "crun"], "the runtimes to compare with")?;
    let products = products::build(&["lazaret-bench"])?;
    let mut command = Command::new(arguments(&products, options)?)?;
    command
        .environment
        .push(("LAZARET_CONFIG".into(), products.config().into()));
    let host = Host {
        mode: Mode::Counted,
        ..emu::default_host()?
    };
    let mut output: File = memfd_create("bench", MemfdFlags::CLOEXEC)?.into();
    let streams = Streams {
        stdin: File::open("/dev/null")?,
        stdout: output.try_clone()?,
        ..Streams::inherited()?
    };
    let outcome = host.run(&command, streams)?;
    if outcome.status != 0 {
        bail!("lazaret-bench ended with {}", outcome.status);
    }
    let mut json = String::new();
    output.rewind()?;
    output.read_to_string(&mut json)?;
    let path = products.folder.join("bench.json");
    fs::write(&path, &json).with_context(|| format!("writing {}", path.display()))?;
    let report: Value = serde_json::from_str(&json).context("reading lazaret-bench's report")?;
    println!("{}", table(&report));
    println!("all figures: {}", path.display());
    Ok(())
}

/// The command line of `lazaret-bench`.
fn arguments(products: &Products, options: &Options) -> Result<Vec<OsString>> {
    let mut line: Vec<OsString> = vec![products.program("lazaret-bench").into()];
    for runtime in ["runc".into(), "crun".into(), products.program("lazaret")] {
        line.extend(["--runtime".into(), runtime.into_os_string()]);
    }
    line.extend(["--runs".into(), options.runs.to_string().into()]);
    line.extend([
        "--idle-seconds".into(),
        options.idle_seconds.to_string().into(),
    ]);
    line.extend(["--kernel".into(), products.kernel().into()]);
    let qemu = emulator::find()?;
    line.extend(["--qemu".into(), qemu.program.into()]);
    for folder in qemu.firmware {
        line.extend(["-L".into(), folder.into()]);
    }
    Ok(line)
}

/// Medians in milliseconds, a row for each runtime; `run` as a multiple of the first one's too.
fn table(report: &Value) -> String {
    let median = |spread: &Value| spread["median"].as_f64().unwrap_or(f64::NAN) * 1000.0;
    let mut lines = vec![format!(
        "{:<10} {:>8} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "ms", "run", "x", "create", "start", "exec", "kill", "delete"
    )];
    let rows = report["start"].as_array().map_or(&[][..], Vec::as_slice);
    let yardstick = rows.first().map_or(f64::NAN, |row| median(&row["run"]));
    for row in rows {
        let mut line = format!(
            "{:<10} {:>8.1} {:>6.2}",
            row["runtime"].as_str().unwrap_or("?"),
            median(&row["run"]),
            median(&row["run"]) / yardstick
        );
        for verb in row["verbs"].as_array().into_iter().flatten() {
            line += &format!(" {:>8.1}", median(&verb[1]));
        }
        lines.push(line);
    }
    if report["microvm_seconds"].is_object() {
        let time = median(&report["microvm_seconds"]);
        lines.push(format!(
            "{:<10} {time:>8.1} {:>6.2}",
            "microvm",
            time / yardstick
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_ratios_to_the_first_runtime() {
        let report = serde_json::json!({
            "start": [
                {"runtime": "runc", "run": {"median": 0.1}, "verbs": [["create", {"median": 0.05}]]},
                {"runtime": "lazaret", "run": {"median": 0.25}, "verbs": []},
            ],
            "microvm_seconds": {"median": 0.4},
        });
        let table = table(&report);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["runc", "100.0", "1.00", "50.0"]);
        assert_eq!(lines[2], ["lazaret", "250.0", "2.50"]);
        assert_eq!(lines[3], ["microvm", "400.0", "4.00"]);
    }
}
