//! `cargo xtask run`: a command in a container in a microVM, with everything built that it needs.

use std::ffi::OsString;
use std::fs::{self, File};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use emulated_host::Streams;
use rustix::termios::isatty;

use crate::rootfs::Rootfs;
use crate::{bundle, emu, products};

/// What is run when nothing is asked for: where am I?
const TOUR: &str = r#"
say() { printf '%-10s %s\n' "$1" "$2"; }
say system "$(. /etc/os-release; echo "$PRETTY_NAME"), python $(python3 -c 'import platform; print(platform.python_version())')"
say kernel "$(uname -sr)"
say hostname "$(cat /proc/sys/kernel/hostname)"
say 'pid 1' "$(tr '\0' '\n' </proc/1/cmdline | head -n 1)"
say user "$(id)"
say cpus "$(grep -c ^processor /proc/cpuinfo)"
say memory "$(awk '/MemTotal|MemFree/ {printf "%s %d MiB  ", $1, $2/1024}' /proc/meminfo)"
say uptime "$(cut -d' ' -f1 /proc/uptime) s"
echo mounts
awk '{printf "           %-24s %s\n", $2, $3}' /proc/mounts
"#;

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The root file system the command runs in.
    #[arg(long, value_enum, default_value = "debian")]
    rootfs: Rootfs,
    /// The command and its arguments; without one, a short tour of the container.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Runs the command; the exit code is the container's.
///
/// # Errors
/// If something cannot be built, or the host does not come up.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let products = products::build(&[])?;
    let bundle = bundle::make(&products, options.rootfs)?;
    let command = if options.command.is_empty() {
        ["/bin/sh", "-c", TOUR].map(OsString::from).into()
    } else {
        options.command
    };
    let terminal = isatty(rustix::stdio::stdin()) && isatty(rustix::stdio::stdout());
    bundle::set_command(&bundle, &command, terminal)?;

    let mut lazaret: Vec<OsString> = vec![products.program("lazaret").into()];
    lazaret.push("--config".into());
    lazaret.push(products.config().into());
    lazaret.extend(["run", "--bundle"].map(OsString::from));
    lazaret.push(bundle.into());
    lazaret.push(format!("xtask-{}", std::process::id()).into());
    if has_virtualisation() {
        return directly(&lazaret);
    }
    eprintln!("no hardware virtualisation on this machine: running in the emulated host");
    let host = emu::default_host()?;
    let outcome = host.run(
        &emulated_host::Command::new(lazaret)?,
        Streams::inherited()?,
    )?;
    Ok(ExitCode::from(outcome.status))
}

/// Whether VMs can run here: the CPU says so and KVM may be used.
pub(crate) fn has_virtualisation() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let capable = cpu
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_whitespace)
        .any(|flag| flag == "vmx" || flag == "svm");
    capable
        && File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

/// Runs on this machine, as root.
fn directly(command: &[OsString]) -> Result<ExitCode> {
    let (program, arguments) = command.split_first().context("a command is given")?;
    let mut child = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(program);
        sudo
    };
    let status = child
        .args(arguments)
        .status()
        .with_context(|| format!("starting {}", child.get_program().display()))?;
    // A signal has no code; lazaret itself dies of none.
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
