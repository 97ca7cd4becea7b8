//! The build products in `target/lazaret`: what a checkout runs, and what `dist` packs.
//!
//! All binaries are linked statically: the agent because there is nothing else in the guest, the
//! others because they start faster so, and run on any distribution.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::kernel::{self, Kernel};
use crate::{packages, process, workspace};

/// The target is named even though it is this machine's: only so do the flags of the static link
/// spare build scripts and procedural macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The configuration of a checkout; paths are relative to its folder.
const CONFIG: &str = "# Written by cargo xtask: the products of this checkout.\n\
    vmm = \"bin/lazaret-vmm\"\nkernel = \"vmlinux\"\ninitramfs = \"initramfs.cpio\"\n";

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Products {
    /// `target/lazaret`.
    pub folder: PathBuf,
}

impl Products {
    /// A program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// The configuration file that names the others.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// The guest's kernel.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The guest's initramfs.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }
}

/// Builds what changed: `lazaret`, `lazaret-vmm`, the guest's kernel and initramfs, and the
/// programs of `more` packages.
///
/// # Errors
/// If something does not build.
pub(crate) fn build(more: &[&str]) -> Result<Products> {
    let products = Products {
        folder: workspace::products(),
    };
    let bin = products.folder.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("creating {}", bin.display()))?;
    let kernel = kernel::find_default(Kernel::Guest)?;
    update(&kernel, &products.kernel())?;

    ensure_libraries()?;
    packages::ensure(&["binutils"], "to strip programs")?;
    let mut names = vec!["lazaret", "lazaret-vmm", "lazaret-agent", "rootfs-builder"];
    names.extend(more);
    compile(&names)?;
    let built = workspace::cargo_target().join(TARGET).join("release");
    for name in names {
        install(&built.join(name), &bin.join(name))?;
    }
    let agent = bin.join("lazaret-agent");
    if is_newer(&agent, &products.initramfs())? {
        process::run(
            Command::new(bin.join("rootfs-builder"))
                .args([OsStr::new("initramfs"), OsStr::new("--agent")])
                .arg(&agent)
                .arg("--output")
                .arg(products.initramfs()),
        )?;
    }
    fs::write(products.config(), CONFIG)?;
    Ok(products)
}

/// Installs what programs are linked by and with: libseccomp's archive is part of `lazaret`.
///
/// # Errors
/// If something is missing and cannot be installed.
pub(crate) fn ensure_libraries() -> Result<()> {
    packages::ensure(&["gcc", "libc6-dev", "libseccomp-dev"], "to link programs")
}

/// Programs that are linked to a fixed address: they start at each command, or in each guest, and
/// relocating themselves would be a good part of that. The VMM, which a guest may attack, is not
/// one of them: its addresses stay random.
const FIXED: [&str; 2] = ["lazaret", "lazaret-agent"];

/// Compiles packages whose programs have the packages' names.
fn compile(names: &[&str]) -> Result<()> {
    let (fixed, others): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|name| FIXED.contains(name));
    let build = |verb: &str, names: &[&str], more: &[&str]| {
        let mut cargo = cargo();
        cargo.args([verb, "--release", "--target", TARGET]);
        for name in names {
            cargo.args(["--package", name]);
        }
        if let Some(commit) = commit() {
            cargo.env("LAZARET_COMMIT", commit);
        }
        process::run(
            cargo
                .args(more)
                .env("RUSTFLAGS", "-C target-feature=+crt-static"),
        )
    };
    build("build", &others, &[])?;
    for name in fixed {
        build(
            "rustc",
            &[name],
            &["--bin", name, "--", "-C", "relocation-model=static"],
        )?;
    }
    Ok(())
}

/// The checkout's commit, which `lazaret --version` shows; none where there is no git.
fn commit() -> Option<String> {
    let output = Command::new("git")
        .current_dir(workspace::root())
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}

/// The cargo that started this program, in the checkout's root.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace::root());
    cargo
}

/// Strips a program into its place, if it is newer than what is there.
fn install(built: &Path, place: &Path) -> Result<()> {
    if !is_newer(built, place)? {
        return Ok(());
    }
    // Beside its place and renamed: the old one may be running.
    let fresh = place.with_extension("new");
    process::output(
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&fresh)
            .arg(built),
    )?;
    fs::rename(&fresh, place).with_context(|| format!("installing {}", place.display()))
}

/// Copies a file that comes from the cache, if it is another one than what is there.
fn update(from: &Path, to: &Path) -> Result<()> {
    let same = match (fs::metadata(from), fs::metadata(to)) {
        (Ok(from), Ok(to)) => from.len() == to.len() && from.modified()? <= to.modified()?,
        _ => false,
    };
    if !same {
        let fresh = to.with_extension("new");
        fs::copy(from, &fresh).with_context(|| format!("copying {}", from.display()))?;
        fs::rename(&fresh, to).with_context(|| format!("installing {}", to.display()))?;
    }
    Ok(())
}

/// Whether `made` is missing or older than `source`.
fn is_newer(source: &Path, made: &Path) -> Result<bool> {
    let source_time = fs::metadata(source)
        .and_then(|metadata| metadata.modified())
        .with_context(|| format!("reading {}", source.display()))?;
    let made_time = fs::metadata(made).and_then(|metadata| metadata.modified());
    Ok(made_time.map_or(true, |time| time < source_time))
}
