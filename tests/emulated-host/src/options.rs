//! What can be said of an emulated host on a command line. Taken over by this crate's program and
//! by `cargo xtask emu`, which add where kernel and emulator come from.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::launch::{Cgroups, Host, Mode};
use crate::qemu::Qemu;

/// The host and the command to run on it.
#[derive(Debug, Args)]
pub struct HostOptions {
    /// Count instructions as time (2 ns each) on one CPU: figures repeat. For benchmarks.
    #[arg(long)]
    icount: bool,
    /// Memory of the host in MiB.
    #[arg(long, default_value_t = Host::MEMORY_MIB)]
    memory: u32,
    /// CPUs of the host. More than one are faster, but guests and now and then the host itself
    /// crash.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// The host's cgroups: version 2, version 1, or version 1 with version 2 besides.
    #[arg(long, value_enum, default_value_t)]
    cgroups: Cgroups,
    /// Seconds after which the command is killed.
    #[arg(long)]
    timeout: Option<u64>,
    /// A directory the command may really write to (all else is thrown away); can be repeated.
    #[arg(long)]
    writable: Vec<PathBuf>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

impl HostOptions {
    /// The host that was asked for.
    ///
    /// # Errors
    /// As [`Host::new`].
    pub fn host(&self, kernel: PathBuf, qemu: Qemu) -> Result<Host> {
        let mode = if self.icount {
            Mode::Counted
        } else {
            Mode::Functional
        };
        Ok(Host {
            mode,
            memory_mib: self.memory,
            cpus: self.cpus,
            cgroups: self.cgroups,
            timeout: self.timeout.map(Duration::from_secs),
            writable: self.writable.clone(),
            ..Host::new(kernel, qemu)?
        })
    }
}
