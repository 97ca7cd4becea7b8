//! `cargo xtask kernel`: the guest's kernel and the emulated host's, built once and cached.
//!
//! A kernel is `allnoconfig` plus the fragments of its folder, without modules. The cache key
//! covers the fragments, the patches, the sources' version and the tools' versions.

mod build;
mod config;
mod patches;
mod source;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{cache, packages, process, workspace};
use patches::Patch;
use source::Source;

/// Bumped when the way a kernel is built changes what comes out.
const RECIPE: u32 = 1;

/// Packages without which no kernel can be built.
const PACKAGES: [&str; 9] = [
    "bc",
    "bison",
    "binutils",
    "flex",
    "gcc",
    "libelf-dev",
    "make",
    "patch",
    "xz-utils",
];

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Of every microVM.
    Guest,
    /// Of the emulated host.
    Host,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Host => "emulated-host",
        }
    }

    /// Folder of its fragments.
    fn fragments(self) -> PathBuf {
        workspace::root().join(match self {
            Self::Guest => "guest-kernel/fragments",
            Self::Host => "tests/emulated-host/kernel",
        })
    }

    /// What is changed in its sources.
    fn patches(self) -> Result<Vec<Patch>> {
        match self {
            Self::Guest => Patch::read_all(&workspace::root().join("guest-kernel/patches")),
            Self::Host => Ok(Vec::new()),
        }
    }

    /// How many steps its build reports, for the progress bar; a little off does no harm.
    fn steps(self) -> u64 {
        match self {
            Self::Guest => 1817,
            Self::Host => 2150,
        }
    }
}

/// Options of the task.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kernel sources, 6.12 or newer: a tree or a tarball. Without it Debian's package
    /// linux-source-6.12 is installed and used.
    #[arg(long, env = "LAZARET_KERNEL_SOURCE")]
    source: Option<PathBuf>,
    /// Which kernels.
    #[arg(value_enum, default_values = ["guest"])]
    kernels: Vec<Kernel>,
}

/// Builds what is missing and prints where it is.
///
/// # Errors
/// If a kernel cannot be built.
pub(crate) fn run(options: &Options) -> Result<()> {
    for kernel in &options.kernels {
        println!("{}", find(*kernel, options.source.clone())?.display());
    }
    Ok(())
}

/// The kernel's stripped `vmlinux`, built if it is not in the cache. Sources are those of
/// `LAZARET_KERNEL_SOURCE`, or Debian's.
///
/// # Errors
/// If it cannot be built.
pub(crate) fn find_default(kernel: Kernel) -> Result<PathBuf> {
    find(
        kernel,
        std::env::var_os("LAZARET_KERNEL_SOURCE").map(PathBuf::from),
    )
}

fn find(kernel: Kernel, source: Option<PathBuf>) -> Result<PathBuf> {
    packages::ensure(&PACKAGES, "to build kernels")?;
    let source = Source::find(source)?;
    let fragments = config::read(&kernel.fragments())?;
    let patches = kernel.patches()?;
    let (gcc, ld) = (tool_version("gcc")?, tool_version("ld")?);
    let recipe = RECIPE.to_le_bytes();
    let inputs = [
        fragments.as_bytes(),
        source.identity().as_bytes(),
        gcc.as_bytes(),
        ld.as_bytes(),
        &recipe,
    ];
    let key = cache::key(inputs.into_iter().chain(patches.iter().map(Patch::text)));
    let name = format!("{}-{key}", kernel.name());
    let entry = cache::entry("kernels", &name, |product| {
        build::Build {
            name: kernel.name(),
            key: &key,
            steps: kernel.steps(),
            fragments: &fragments,
            source: &source,
            patches: &patches,
        }
        .run(product)
        .with_context(|| format!("building the {} kernel", kernel.name()))
    })?;
    Ok(entry.join("vmlinux"))
}

/// First line of a tool's `--version`.
fn tool_version(tool: &str) -> Result<String> {
    let text = process::output(std::process::Command::new(tool).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
