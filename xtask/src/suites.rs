//! The test suites of runc and crun from Debian's source packages, unpacked and built in the cache.
//!
//! Called by `cargo xtask test`; `lazaret-e2e suite` runs what is made here. Nothing is downloaded
//! but packages: what the suites would fetch is made of them.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::PrivateApt;
use crate::rootfs::{self, Rootfs};
use crate::{cache, packages, process};

/// Source packages, and how the folder begins that each is unpacked to: releases of upstream.
const SOURCES: [(&str, &str); 2] = [("runc", "runc-1.1.5"), ("crun", "crun-1.8.1")];

/// What unpacks and builds them.
const BUILD: [&str; 12] = [
    "dpkg-dev",
    "xz-utils",
    "gcc",
    "libc6-dev",
    "libseccomp-dev",
    "golang-go",
    "golang-github-containerd-console-dev",
    "golang-github-opencontainers-specs-dev",
    "golang-github-seccomp-libseccomp-golang-dev",
    "golang-github-sirupsen-logrus-dev",
    "golang-github-urfave-cli-dev",
    "golang-golang-x-sys-dev",
];

/// What runs them; among it the compiler, since cases of runc's compile programs of their own.
const RUN: [&str; 11] = [
    "bats",
    "jq",
    "gawk",
    "gcc",
    "libc6-dev",
    "iproute2",
    "procps",
    "python3",
    "util-linux",
    "runc",
    "crun",
];

/// Programs of runc's that its suite uses. Of the third, `sd-helper`, only the systemd driver's cases
/// have need.
const TOOLS: [&str; 2] = ["recvtty", "seccompagent"];

/// Stands for the script that downloads images.
const GET_IMAGES: &str = include_str!("../../tests/e2e/suites/get-images.sh");

/// Stands for a Python module that Debian 12 has not.
const LIBMOUNT: &str = include_str!("../../tests/e2e/suites/libmount.py");

/// Where runc's suite starts the program that takes terminals, in the background, for most of its
/// cases; it waits for nothing.
const RECVTTY_START: &str =
    "\t(\"$RECVTTY\" --pid-file \"$dir/pid\" --mode null \"$CONSOLE_SOCKET\" &) &\n";

/// What is put behind it: a wait, as the suite itself has one where a case starts its own (`update.bats`).
/// Without it a case fails, under runc, too, when that program is slower than all that comes before
/// the first `run`.
const RECVTTY_WAIT: &str = "\tretry 100 0.1 [ -S \"$CONSOLE_SOCKET\" ]\n";

/// What crun's configure script would find out for `tests/init.c`.
const CONFIG_H: &str = "#define HAVE_ERROR_H 1\n#define HAVE_SECCOMP 1\n";

/// Folders of the busybox image that runc's suite knows, and that ours has not.
const FOLDERS: [&str; 4] = ["home", "usr/bin", "usr/sbin", "var/spool/mail"];

/// Folders that ours has and that one has not: cases put something else in their place.
const NO_FOLDERS: [&str; 2] = ["proc", "sys"];

/// Bumped when the way of making them changes what comes out.
const RECIPE: u32 = 3;

/// The directory with both suites, made if it is not in the cache; installs what runs them.
///
/// # Errors
/// If a package cannot be had, or something does not build.
pub(crate) fn find() -> Result<PathBuf> {
    packages::ensure(&RUN, "to run the suites of runc and crun")?;
    let mut inputs: Vec<&[u8]> = [GET_IMAGES, LIBMOUNT, RECVTTY_WAIT]
        .map(str::as_bytes)
        .to_vec();
    inputs.extend(SOURCES.iter().map(|(_, release)| release.as_bytes()));
    let recipe = RECIPE.to_le_bytes();
    inputs.push(&recipe);
    cache::entry("suites", &cache::key(inputs), make)
}

fn make(entry: &Path) -> Result<()> {
    packages::ensure(&BUILD, "to build the suites of runc and crun")?;
    eprintln!("unpacking and building the suites of runc and crun");
    unpack(entry)?;
    let runc = entry.join("runc");
    for tool in TOOLS {
        build_tool(entry, &runc, tool)?;
    }
    let tests = runc.join("tests/integration");
    let script = tests.join("get-images.sh");
    fs::write(&script, GET_IMAGES)?;
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    wait_for_recvtty(&tests.join("helpers.bash"))?;
    make_images(entry, &tests.join("testdata"))?;
    make_crun(&entry.join("crun"))
}

/// Fetches the source packages and unpacks them, Debian's patches applied.
fn unpack(entry: &Path) -> Result<()> {
    let apt = PrivateApt::new(entry, "", true)?;
    apt.get(&["update"])?;
    for (package, release) in SOURCES {
        apt.get(&["source", "--only-source", package])?;
        let mut found = None;
        for file in fs::read_dir(&apt.folder)? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            if file.file_type()?.is_dir() && name.starts_with(release) {
                found = Some(file.path());
            }
        }
        let Some(folder) = found else {
            bail!("the source package {package} is not {release}");
        };
        fs::rename(folder, entry.join(package))?;
    }
    cache::remove(&apt.folder)
}

/// Builds one of runc's programs with Debian's libraries for Go.
fn build_tool(entry: &Path, runc: &Path, tool: &str) -> Result<()> {
    let go = entry.join("go");
    let place = go.join("src/github.com/opencontainers");
    fs::create_dir_all(&place)?;
    symlink(runc, place.join("runc"))?;
    let folder = runc.join("contrib/cmd").join(tool);
    process::output(
        Command::new("go")
            .args(["build", "-tags", "seccomp", "-ldflags", "-s -w", "-o"])
            .arg(folder.join(tool))
            .arg(format!("./contrib/cmd/{tool}"))
            .current_dir(place.join("runc"))
            // Go looks into $PWD to learn by which name it is in a workspace.
            .env("PWD", place.join("runc"))
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "")
            .env("GOPATH", format!("{}:/usr/share/gocode", go.display()))
            .env("GOCACHE", entry.join("go/cache")),
    )?;
    cache::remove(&go)
}

/// Has a case wait until terminals can be sent: the one change to a file of the suites.
fn wait_for_recvtty(helpers: &Path) -> Result<()> {
    let text = fs::read_to_string(helpers)?;
    let Some((before, after)) = text.split_once(RECVTTY_START) else {
        bail!("{} does not start recvtty as known", helpers.display());
    };
    let text = [before, RECVTTY_START, RECVTTY_WAIT, after].concat();
    fs::write(helpers, text).with_context(|| format!("writing {}", helpers.display()))
}

/// The archives that runc's bundles are made from.
fn make_images(entry: &Path, testdata: &Path) -> Result<()> {
    let tree = entry.join("busybox");
    process::run(
        Command::new("cp")
            .arg("--archive")
            .arg(rootfs::find(Rootfs::Busybox)?)
            .arg(&tree),
    )?;
    for folder in FOLDERS {
        fs::create_dir_all(tree.join(folder))?;
    }
    for folder in NO_FOLDERS {
        fs::remove_dir(tree.join(folder))?;
    }
    symlink("../../bin/env", tree.join("usr/bin/env"))?;
    archive(&tree, &testdata.join("busybox.tar"))?;
    cache::remove(&tree)?;
    archive(&rootfs::find(Rootfs::Debian)?, &testdata.join("debian.tar"))
}

fn archive(tree: &Path, to: &Path) -> Result<()> {
    process::run(
        Command::new("tar")
            .args(["--create", "--numeric-owner", "--file"])
            .arg(to)
            .arg("--directory")
            .arg(tree)
            .arg("."),
    )
}

/// The program that crun's suite runs in its containers, and the Python module.
fn make_crun(crun: &Path) -> Result<()> {
    let tests = crun.join("tests");
    fs::write(tests.join("config.h"), CONFIG_H)?;
    fs::write(tests.join("libmount.py"), LIBMOUNT)?;
    process::output(
        Command::new("gcc")
            .args(["-static", "-O2", "-s", "-I"])
            .arg(&tests)
            .arg(tests.join("init.c"))
            .arg("-o")
            .arg(tests.join("init")),
    )?;
    File::open(tests.join("init")).context("the compiler made no program")?;
    Ok(())
}
