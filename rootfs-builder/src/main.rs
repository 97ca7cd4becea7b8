//! `rootfs-builder`: the command line over the library of the same name.
//!
//! Only parses arguments, reads and writes files, shows progress and prints errors.

#![forbid(unsafe_code)]

mod progress;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use rootfs_builder::bundle::{self, Overrides};
use rootfs_builder::image::{Image, ImageReference, Platform};
use rootfs_builder::{Limits, initramfs};

use progress::Progress;

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
    FromOci(FromOci),
    Bundle(FromDirectory),
}

/// Unpack an image into a bundle: its layers to rootfs/, its configuration to config.json
///
/// The image is an OCI image layout, as a directory or as a tar archive, or an archive made
/// by `docker save`. Digests of all blobs and layers are checked. Nothing in a layer can reach outside
/// the bundle, and if anything is wrong, no bundle is left behind.
///
/// Owners, devices and capabilities of files are kept, so this needs root.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  skopeo copy docker://debian:12 oci:images:debian    fetch an image
  rootfs-builder from-oci images:debian bundle        make a bundle of it
  rootfs-builder from-oci saved.tar bundle -- id -u   run another command")]
struct FromOci {
    /// The image, and its tag, name or digest if there are several
    #[arg(value_name = "IMAGE[:NAME]")]
    image: String,
    /// The bundle to make: a path where nothing is, or an empty directory
    bundle: PathBuf,
    /// What the image must be built for
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value_t = Platform::guest())]
    platform: Platform,
    /// How large all layers together may be when unpacked, in MiB
    #[arg(long, value_name = "MIB", default_value_t = Limits::default().unpacked_bytes >> 20)]
    max_size_mib: u64,
    /// How many files, directories and links the layers may have
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().entries)]
    max_entries: u64,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    container: Container,
    /// The command, in place of the image's own (its entrypoint stays before it)
    #[arg(last = true, value_name = "COMMAND")]
    args: Vec<String>,
}

/// Make a bundle whose root file system is a directory, left where it is
#[derive(Debug, Args)]
struct FromDirectory {
    /// The root file system
    #[arg(long, value_name = "DIRECTORY")]
    rootfs: PathBuf,
    /// The bundle to make: a path where nothing is, or an empty directory
    bundle: PathBuf,
    #[command(flatten)]
    container: Container,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    args: Vec<String>,
}

/// What can be said of any container.
#[derive(Debug, Args)]
struct Container {
    /// Set an environment variable (may be repeated)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Start the process in this directory
    #[arg(long, value_name = "PATH")]
    cwd: Option<String>,
    /// Run as this user, by names or numbers
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Set the host name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Give the process a terminal
    #[arg(long, short)]
    terminal: bool,
    /// Make the root file system read-only
    #[arg(long)]
    read_only: bool,
    /// Add an annotation (may be repeated)
    #[arg(long, value_name = "NAME=VALUE", value_parser = annotation)]
    annotation: Vec<(String, String)>,
}

impl Container {
    fn overrides(self, args: Vec<String>) -> Overrides {
        Overrides {
            args,
            env: self.env,
            cwd: self.cwd,
            user: self.user,
            hostname: self.hostname,
            terminal: self.terminal,
            read_only: self.read_only,
            annotations: self.annotation,
        }
    }
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Initramfs { agent, output } => pack_initramfs(&agent, &output),
        Command::FromOci(arguments) => unpack_image(arguments),
        Command::Bundle(FromDirectory {
            rootfs,
            bundle,
            container,
            args,
        }) => {
            bundle::from_directory(&rootfs, &bundle, &container.overrides(args)).map_err(Into::into)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Names come from images: nothing of them may reach the terminal as a control code.
            let line: String = format!("{error:#}").chars().map(printable).collect();
            eprintln!("rootfs-builder: {line}");
            ExitCode::FAILURE
        }
    }
}

fn printable(character: char) -> char {
    if character.is_control() {
        '\u{fffd}'
    } else {
        character
    }
}

fn annotation(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not of the form NAME=VALUE".to_owned()),
    }
}

fn pack_initramfs(agent: &Path, output: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::read(agent).with_context(|| format!("agent {}", agent.display()))?;
    let archive =
        initramfs::guest_initramfs(&bytes).with_context(|| format!("agent {}", agent.display()))?;
    std::fs::write(output, archive).with_context(|| format!("output {}", output.display()))
}

fn unpack_image(arguments: FromOci) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("unpacking an image sets owners and makes devices: run this as root");
    }
    let progress = Progress::new(arguments.quiet)?;
    let reference = ImageReference::new(&arguments.image);
    let image = Image::open(
        &reference.path,
        reference.name.as_deref(),
        &arguments.platform,
    )?;
    let limits = Limits {
        unpacked_bytes: arguments.max_size_mib.saturating_mul(1 << 20),
        entries: arguments.max_entries,
    };
    let overrides = arguments.container.overrides(arguments.args);
    bundle::from_image(&image, &arguments.bundle, &overrides, limits, &progress)?;
    Ok(())
}
