//! `lazaret-e2e prepare`: makes what the cases about the root file system and about engines need.
//! Runs on the machine itself and not in the emulated host: it installs from package registries.

mod engines;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

/// Changes when what is made changes: part of the default directory's name.
const RECIPE: u32 = 2;

/// File system suites: crate, version. Their programs have the crates' names.
const SUITES: &[(&str, &str)] = &[("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Packages of the userland beside apt and what is essential.
const INCLUDED: &str = "git,gcc,libc6-dev,make";

/// Packages that lie in `/packages` for `apt-get install`: a program without dependencies, and two
/// with libraries.
const PACKAGES: &str = "hello bc libreadline8 readline-common file libmagic1 libmagic-mgc";

/// Name of the userland's image.
const IMAGE: &str = "debian.ext4";

/// Makes the file system suites and the Debian userland of some cases.
#[derive(Debug, Parser)]
#[command(name = "lazaret-e2e prepare")]
struct Options {
    /// Where to put them; what is there already stays.
    #[arg(long, default_value_os_t = default_directory())]
    assets: PathBuf,
}

/// Where they are looked for.
pub(crate) fn default_directory() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
        PathBuf::from,
    );
    cache.join(format!("lazaret/tests-{RECIPE}"))
}

/// Whether everything is there.
pub(crate) fn is_complete(assets: &Path) -> bool {
    [IMAGE, engines::USERLAND, engines::ARCHIVE]
        .iter()
        .all(|name| assets.join(name).is_file())
        && SUITES
            .iter()
            .all(|(name, _)| assets.join("bin").join(name).is_file())
}

/// Makes what is missing.
pub(crate) fn main(arguments: &[String]) -> Result<ExitCode> {
    let name = "lazaret-e2e prepare".to_owned();
    let options = Options::parse_from(std::iter::once(&name).chain(arguments));
    fs::create_dir_all(&options.assets)
        .with_context(|| format!("cannot make {}", options.assets.display()))?;
    for (name, version) in SUITES {
        if !options.assets.join("bin").join(name).is_file() {
            install(&options.assets, name, version)
                .with_context(|| format!("cannot install {name}"))?;
        }
    }
    if !options.assets.join(IMAGE).is_file() {
        make_image(&options.assets).context("cannot make the Debian userland")?;
    }
    if !options.assets.join(engines::USERLAND).is_file() {
        engines::make(&options.assets).context("cannot make the engines' userland")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Installs a program from crates.io, static so that it runs in any userland.
fn install(assets: &Path, name: &str, version: &str) -> Result<()> {
    println!("installing {name} {version}");
    run(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args([
                "install",
                "--quiet",
                "--locked",
                "--target",
                "x86_64-unknown-linux-gnu",
            ])
            .args(["--version", version, name, "--root"])
            .arg(assets)
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )
}

/// A Debian userland as an ext4 image with room for what the cases do in it.
fn make_image(assets: &Path) -> Result<()> {
    println!("making a Debian userland with {INCLUDED}");
    let tree = assets.join("tree");
    let partial = assets.join("partial.ext4");
    let packages = format!(
        "mkdir \"$1/packages\" && chroot \"$1\" sh -c 'cd /packages && apt-get -q download {PACKAGES}'"
    );
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=apt"])
        .arg(format!("--include={INCLUDED}"));
    for folder in ["doc", "man", "locale", "info"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{folder}/*"));
    }
    mmdebstrap
        .arg(format!("--customize-hook={packages}"))
        .args(["bookworm"])
        .arg(&tree);
    let outcome = run(&mut mmdebstrap).and_then(|()| {
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F", "-d"])
            .arg(&tree)
            .arg(&partial)
            .arg("1g"))
    });
    // A half-made tree would be in the way of the next try.
    run(Command::new("rm")
        .args(["-rf", "--one-file-system"])
        .arg(&tree))?;
    outcome?;
    fs::rename(&partial, assets.join(IMAGE)).context("cannot rename the image")
}

fn run(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("cannot start {name}"))?;
    ensure!(status.success(), "{name} ended with {status}");
    Ok(())
}
