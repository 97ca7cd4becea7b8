//! Runs a command in the emulated host, with kernel and emulator named by the caller.
//!
//! `cargo xtask emu` is the comfortable way, it finds or builds both; this program is for use
//! without cargo. It must not know where they come from.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use emulated_host::{Command, Host, Mode, Qemu, Streams};

/// Runs a command on an emulated machine with working KVM.
#[derive(Debug, Parser)]
struct Options {
    /// Kernel of the host, an ELF vmlinux.
    #[arg(long)]
    kernel: PathBuf,
    /// Folder into which QEMU's packages were unpacked; else the installed QEMU is used.
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// Count instructions as time, on one CPU.
    #[arg(long)]
    icount: bool,
    /// Memory in MiB.
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// CPUs. More than one are faster, but guests and now and then the host itself crash.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Seconds after which the command is killed.
    #[arg(long)]
    timeout: Option<u64>,
    /// A directory the command may really write to; can be repeated.
    #[arg(long)]
    writable: Vec<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
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
    let host = Host {
        kernel: options.kernel,
        qemu,
        mode: if options.icount {
            Mode::Counted
        } else {
            Mode::Functional
        },
        memory_mib: options.memory,
        cpus: options.cpus,
        timeout: options.timeout.map(Duration::from_secs),
        writable: options.writable,
        first_process: std::env::current_exe()?,
    };
    let outcome = host.run(&Command::new(options.command)?, Streams::inherited()?)?;
    Ok(ExitCode::from(outcome.status))
}
