//! Runs a command in the emulated host, with kernel and emulator named by the caller.
//!
//! `cargo xtask emu` is the comfortable way, it finds or builds both; this program is for use
//! without cargo. It must not know where they come from.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use emulated_host::{Command, Qemu, Streams};

/// Runs a command on an emulated machine with working KVM.
#[derive(Debug, Parser)]
struct Options {
    /// Kernel of the host, an ELF vmlinux.
    #[arg(long)]
    kernel: PathBuf,
    /// Folder into which QEMU's packages were unpacked; else the installed QEMU is used.
    #[arg(long)]
    qemu: Option<PathBuf>,
    #[command(flatten)]
    host: emulated_host::HostOptions,
}

fn main() -> Result<ExitCode> {
    if emulated_host::is_guest() {
        emulated_host::guest::run();
    }
    let options = Options::parse();
    let qemu = match options.qemu {
        Some(root) => Qemu::unpacked(&root),
        None => Qemu::installed(),
    };
    qemu.check()?;
    let host = options.host.host(options.kernel, qemu)?;
    let outcome = host.run(&Command::new(options.host.command)?, Streams::inherited()?)?;
    Ok(ExitCode::from(outcome.status))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Options::command().debug_assert();
    }
}
