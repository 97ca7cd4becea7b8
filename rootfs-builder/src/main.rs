//! `rootfs-builder`: the command line over the library of the same name.
//!
//! Only parses arguments, reads and writes files, and prints errors.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rootfs_builder::initramfs;

/// Builds the file systems that Lazaret boots and runs.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pack the guest's initramfs: the agent as /init, /dev/console, and nothing else
    Initramfs {
        /// The agent: a static x86-64 executable
        #[arg(long, value_name = "FILE")]
        agent: PathBuf,
        /// Where to write the archive
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Initramfs { agent, output } => pack_initramfs(&agent, &output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rootfs-builder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn pack_initramfs(agent: &Path, output: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(agent).with_context(|| format!("agent {}", agent.display()))?;
    let archive =
        initramfs::guest_initramfs(&bytes).with_context(|| format!("agent {}", agent.display()))?;
    std::fs::write(output, archive).with_context(|| format!("output {}", output.display()))
}
