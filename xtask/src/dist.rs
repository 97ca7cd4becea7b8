//! `cargo xtask dist`: a tarball and a Debian package that install to the usual paths.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::products::{self, Products, cargo};
use crate::{cache, manual, process, workspace};

/// The version of cargo-deb that is installed where there is none.
const CARGO_DEB_VERSION: &str = "3.8.0";

/// Builds both and prints where they are.
///
/// # Errors
/// If something does not build.
pub(crate) fn run() -> Result<()> {
    let products = products::build(&[])?;
    let folder = products.folder.join("dist");
    cache::remove(&folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let root = folder.join("root");
    lay_out(&products, &root)?;
    let share = root.join("usr/share");
    let mut copy = Command::new("cp");
    process::output(
        copy.args(["--recursive", "--no-target-directory"])
            .arg(manual::make()?)
            .arg(share),
    )?;
    println!("{}", tarball(&folder, &root)?.display());
    println!("{}", debian_package(&folder)?.display());
    cache::remove(&root)
}

/// Puts each file where it is installed to, below `root`.
fn lay_out(products: &Products, root: &Path) -> Result<()> {
    let checkout = workspace::root();
    let files = [
        (products.program("lazaret"), "usr/bin/lazaret", "0755"),
        (
            products.program("lazaret-vmm"),
            "usr/libexec/lazaret/lazaret-vmm",
            "0755",
        ),
        (products.kernel(), "usr/share/lazaret/vmlinux", "0644"),
        (
            products.initramfs(),
            "usr/share/lazaret/initramfs.cpio",
            "0644",
        ),
        (
            checkout.join("xtask/dist/config.toml"),
            "etc/lazaret/config.toml",
            "0644",
        ),
        (
            checkout.join("README.md"),
            "usr/share/doc/lazaret/README.md",
            "0644",
        ),
        (
            checkout.join("LICENSE"),
            "usr/share/doc/lazaret/LICENSE",
            "0644",
        ),
    ];
    for (from, to, mode) in files {
        process::output(
            Command::new("install")
                .args(["-D", "--mode", mode])
                .arg(&from)
                .arg(root.join(to)),
        )?;
    }
    Ok(())
}

/// `lazaret-VERSION-x86_64.tar.gz`, to be unpacked in `/`.
fn tarball(folder: &Path, root: &Path) -> Result<PathBuf> {
    let path = folder.join(format!(
        "lazaret-{}-x86_64.tar.gz",
        env!("CARGO_PKG_VERSION")
    ));
    process::output(
        Command::new("tar")
            .args([
                "--create",
                "--gzip",
                "--sort=name",
                "--owner=0",
                "--group=0",
            ])
            .args(["--numeric-owner", "--mtime=@0", "--file"])
            .arg(&path)
            .arg("--directory")
            .arg(root)
            .args(["etc", "usr"]),
    )?;
    Ok(path)
}

/// The Debian package, by cargo-deb from what is laid out.
fn debian_package(folder: &Path) -> Result<PathBuf> {
    let name = format!("lazaret_{}_amd64.deb", env!("CARGO_PKG_VERSION"));
    let path = folder.join(name);
    let mut deb = if process::output(cargo().args(["deb", "--version"])).is_ok() {
        let mut deb = cargo();
        deb.arg("deb");
        deb
    } else {
        let tool = cache::entry(
            "tools",
            &format!("cargo-deb-{CARGO_DEB_VERSION}"),
            |folder| {
                eprintln!("installing cargo-deb {CARGO_DEB_VERSION}: minutes");
                process::output(
                    cargo()
                        .args(["install", "cargo-deb", "--locked", "--quiet"])
                        .args(["--version", CARGO_DEB_VERSION, "--root"])
                        .arg(folder),
                )?;
                Ok(())
            },
        )?;
        let mut deb = Command::new(tool.join("bin/cargo-deb"));
        deb.current_dir(workspace::root());
        deb
    };
    // Everything is built and stripped already: `cargo deb` only packs.
    process::output(
        deb.args([
            "--package",
            "lazaret",
            "--no-build",
            "--no-strip",
            "--output",
        ])
        .arg(&path),
    )?;
    Ok(path)
}
