//! `cargo xtask emu`: a command in the emulated host.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use emulated_host::{Command, Host, Streams};

use crate::emulator;
use crate::kernel::{self, Kernel};

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write the messages of the host's kernel to this file.
    #[arg(long)]
    kernel_log: Option<PathBuf>,
    #[command(flatten)]
    host: emulated_host::HostOptions,
}

/// Runs the command; its exit code is the answer.
///
/// # Errors
/// If the host does not come up or the command cannot be started.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let kernel = kernel::find_default(Kernel::Host)?;
    let host = options.host.host(kernel, emulator::find()?)?;
    let command = Command::new(options.host.command)?;
    let outcome = host.run(&command, Streams::inherited()?)?;
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
    Host::new(kernel::find_default(Kernel::Host)?, emulator::find()?)
}
