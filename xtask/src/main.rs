//! The development tasks of Lazaret: `cargo xtask --help`.
//!
//! Each task is a module of the same name. The program is also the first process of the emulated
//! host it starts.

mod apt;
mod bench;
mod bundle;
mod cache;
mod dist;
mod emu;
mod emulator;
mod kernel;
mod manual;
mod packages;
mod process;
mod products;
mod rootfs;
mod run;
mod suites;
mod test;
mod tidy;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::rootfs::Rootfs;

/// The development tasks of Lazaret.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a command in a container in its own microVM; builds everything that needs.
    Run(run::Options),
    /// Run a command in the emulated host: an emulated machine with working KVM that sees this
    /// machine's files.
    Emu(emu::Options),
    /// Build the guest's kernel, or the emulated host's, into the cache.
    Kernel(kernel::Options),
    /// Make the root file systems of the bundles in the cache.
    Rootfs {
        /// Which.
        #[arg(value_enum, default_values = ["debian", "busybox"])]
        which: Vec<Rootfs>,
    },
    /// Make OCI bundles in target/lazaret/bundles.
    Bundle {
        /// Which.
        #[arg(value_enum, default_values = ["debian", "busybox"])]
        which: Vec<Rootfs>,
    },
    /// Run all checks and tests; .ci/run calls exactly this.
    Test(test::Options),
    /// Measure starts and memory beside runc, crun and QEMU, in instruction-counted time.
    Bench(bench::Options),
    /// Make a tarball and a Debian package in target/lazaret/dist.
    Dist,
    /// Make the man pages and the shells' completions in target/lazaret/manual.
    Manual,
    /// Check the rules of style that a machine can check.
    Tidy,
}

fn main() -> ExitCode {
    if emulated_host::is_guest() {
        emulated_host::guest::run();
    }
    let result = match Cli::parse().task {
        Task::Run(options) => run::run(options),
        Task::Emu(options) => emu::run(options),
        Task::Kernel(options) => kernel::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Rootfs { which } => print_each(&which, rootfs::find),
        Task::Bundle { which } => products::build(&[])
            .and_then(|products| print_each(&which, |which| bundle::make(&products, which))),
        Task::Test(options) => test::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Bench(options) => bench::run(&options).map(|()| ExitCode::SUCCESS),
        Task::Dist => dist::run().map(|()| ExitCode::SUCCESS),
        Task::Manual => manual::run().map(|()| ExitCode::SUCCESS),
        Task::Tidy => tidy::run().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Makes what was asked for and prints where it is.
fn print_each(which: &[Rootfs], make: impl Fn(Rootfs) -> Result<PathBuf>) -> Result<ExitCode> {
    for which in which {
        println!("{}", make(*which)?.display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
