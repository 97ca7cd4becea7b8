//! `cargo xtask emu`: a command in the emulated host.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use emulated_host::{Command, Host, Mode, Streams};

use crate::emulator;
use crate::kernel::{self, Kernel};

/// Memory of the host in MiB: room for a handful of VMs and for the files of a test.
const MEMORY_MIB: u32 = 3072;

/// CPUs of the host.
const CPUS: u32 = 1;

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Count instructions as time (2 ns each) on one CPU: figures repeat. For benchmarks.
    #[arg(long)]
    icount: bool,
    /// Memory of the host in MiB.
    #[arg(long, default_value_t = MEMORY_MIB)]
    memory: u32,
    /// CPUs of the host. More than one are faster, but guests and now and then the host itself
    /// crash.
    #[arg(long, default_value_t = CPUS)]
    cpus: u32,
    /// Seconds after which the command is killed.
    #[arg(long)]
    timeout: Option<u64>,
    /// A directory the command may really write to (all else is thrown away); can be repeated.
    #[arg(long)]
    writable: Vec<PathBuf>,
    /// Write the messages of the host's kernel to this file.
    #[arg(long)]
    kernel_log: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command; its exit code is the answer.
///
/// # Errors
/// If the host does not come up or the command cannot be started.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let host = Host {
        mode: if options.icount {
            Mode::Counted
        } else {
            Mode::Functional
        },
        memory_mib: options.memory,
        cpus: options.cpus,
        timeout: options.timeout.map(Duration::from_secs),
        writable: options.writable,
        ..default_host()?
    };
    let outcome = host.run(&Command::new(options.command)?, Streams::inherited()?)?;
    if let Some(path) = options.kernel_log {
        std::fs::write(&path, outcome.kernel_log)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(ExitCode::from(outcome.status))
}

/// A host of this program's own, with a kernel and an emulator that are built or fetched if they
/// are not there.
///
/// # Errors
/// If they cannot be had.
pub(crate) fn default_host() -> Result<Host> {
    Ok(Host {
        kernel: kernel::find_default(Kernel::Host)?,
        qemu: emulator::find()?,
        mode: Mode::Functional,
        memory_mib: MEMORY_MIB,
        cpus: CPUS,
        timeout: None,
        writable: Vec::new(),
        first_process: std::env::current_exe().context("finding this program")?,
    })
}
