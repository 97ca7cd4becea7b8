//! `cargo xtask bench`: starts and memory beside runc, crun and QEMU, in instruction-counted time.
//!
//! `lazaret-bench` measures; this runs it in the emulated host, keeps its JSON, prints tables and
//! draws what the time is spent on.

mod table;
mod waterfall;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use emulated_host::{Command, Host, Mode, Streams};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::Value;

use crate::products::{self, Products};
use crate::{emu, emulator, packages};

/// A measurement takes minutes. After this time the host is taken to hang, which in the counted mode
/// it does now and then.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);

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

/// Measures, writes `bench.json` and a picture for each verb's phases into `target/lazaret`, and
/// prints tables.
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
        timeout: Some(TIMEOUT),
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
    println!("{}\n", table::of(&report));
    draw(&report, &products.folder)?;
    println!("all figures: {}", path.display());
    Ok(())
}

/// Draws the phases of each verb into a file named by it.
fn draw(report: &Value, folder: &Path) -> Result<()> {
    for timeline in table::array(&report["phases"]) {
        let title = timeline["title"].as_str().unwrap_or_default();
        let verb = title.split(' ').nth(1).unwrap_or("verb");
        let path = folder.join(format!("bench-{verb}.svg"));
        let yardstick = table::yardstick_ms(report, verb);
        fs::write(&path, waterfall::draw(timeline, yardstick))
            .with_context(|| format!("writing {}", path.display()))?;
        println!("phases of {title}: {}", path.display());
    }
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
