//! The development tasks of Lazaret: `cargo xtask --help`.
//!
//! Each task is a module of the same name. The program is also the first process of the emulated
//! host it starts.

mod cache;
mod emu;
mod emulator;
mod kernel;
mod packages;
mod process;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The development tasks of Lazaret.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a command in the emulated host: an emulated machine with working KVM that sees this
    /// machine's files.
    Emu(emu::Options),
    /// Build the guest's kernel (and with --host the emulated host's) into the cache.
    Kernel(kernel::Options),
}

fn main() -> ExitCode {
    if emulated_host::is_guest() {
        emulated_host::guest::run();
    }
    let result = match Cli::parse().task {
        Task::Emu(options) => emu::run(options),
        Task::Kernel(options) => kernel::run(&options).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
