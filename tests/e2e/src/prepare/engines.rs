//! What the cases with Podman and Docker need: a Debian userland with both, and a container image
//! that either can load. Called by `prepare`; the userland serves as a container's root file
//! system as well, hence the programs with tests or benchmarks of their own in it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::run;

/// The engines with what they start, a systemd, and what containers run in the cases about images.
const INCLUDED: &str = "podman,conmon,runc,crun,docker.io,systemd,dbus,iptables,catatonit,tini,busybox-static,procps,mount,\
    python3,libpython3.11-testsuite,nginx-light,redis,redis-tools,postgresql,postgresql-contrib";

/// Large parts of those packages that no case uses.
const EXCLUDED: &[&str] = &[
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/lib/llvm-14/*",
    "/usr/lib/postgresql/15/lib/bitcode/*",
    "/usr/lib/x86_64-linux-gnu/libLLVM*",
    "/usr/lib/x86_64-linux-gnu/libz3*",
    "/usr/lib/podman/rootlessport",
    "/usr/bin/containerd-shim-runc-v1",
    "/usr/bin/ctr",
    "/usr/bin/dnet",
    "/usr/sbin/ovrouter",
];

/// Keeps packages from starting their services, and PostgreSQL's from making a database: a process
/// left in the tree would hold its mounts.
const NO_SERVICES: &str = "printf '#!/bin/sh\\nexit 101\\n' > \"$1/usr/sbin/policy-rc.d\"; \
    chmod 755 \"$1/usr/sbin/policy-rc.d\"; mkdir -p \"$1/etc/postgresql-common\"; \
    echo 'create_main_cluster = false' > \"$1/etc/postgresql-common/createcluster.conf\"";

/// Name of the userland's image.
pub(super) const USERLAND: &str = "engines.ext4";

/// Name of the container image, as `docker save` writes them.
pub(super) const ARCHIVE: &str = "busybox.tar";

/// Makes both.
pub(super) fn make(assets: &Path) -> Result<()> {
    println!("making a Debian userland with Podman and Docker");
    let tree = assets.join("engines-tree");
    let outcome = make_tree(&tree)
        .and_then(|()| make_archive(assets, &tree))
        .and_then(|()| make_userland(assets, &tree));
    // A half-made tree would be in the way of the next try.
    remove(&tree)?;
    outcome
}

fn make_tree(tree: &Path) -> Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=apt"])
        .arg(format!("--include={INCLUDED}"));
    for path in EXCLUDED {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude={path}"));
    }
    mmdebstrap.arg(format!("--essential-hook={NO_SERVICES}"));
    run(mmdebstrap.arg("bookworm").arg(tree))
}

/// The userland is only ever mounted read-only: without a journal, and without room.
fn make_userland(assets: &Path, tree: &Path) -> Result<()> {
    let partial = assets.join("partial-engines.ext4");
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-m", "0", "-d"])
        .arg(tree)
        .arg(&partial)
        .arg("1g"))?;
    fs::rename(&partial, assets.join(USERLAND)).context("cannot rename the userland")
}

/// An image with busybox, a user, and nothing else.
fn make_archive(assets: &Path, tree: &Path) -> Result<()> {
    let work = assets.join("busybox-tree");
    let outcome = make_layer(&work, tree).and_then(|()| pack(assets, &work));
    remove(&work)?;
    outcome
}

fn make_layer(work: &Path, tree: &Path) -> Result<()> {
    let root = work.join("root");
    for folder in [
        "bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(tree.join("bin/busybox"), &busybox).context("cannot copy busybox")?;
    let list = Command::new(&busybox).arg("--list").output()?;
    ensure!(list.status.success(), "busybox ended with {}", list.status);
    for name in String::from_utf8(list.stdout)?.lines() {
        if name != "busybox" {
            symlink("busybox", root.join("bin").join(name))?;
        }
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users)?;
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
    run(Command::new("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner"])
        .args(["--owner=0", "--group=0", "--file"])
        .arg(work.join("layer.tar"))
        .arg("--directory")
        .arg(&root)
        .arg("."))
}

/// The archive's three files, as the format has them: a list of images, the image's configuration,
/// its layer.
fn pack(assets: &Path, work: &Path) -> Result<()> {
    let sum = Command::new("sha256sum")
        .arg(work.join("layer.tar"))
        .output()?;
    ensure!(sum.status.success(), "sha256sum ended with {}", sum.status);
    let sum = String::from_utf8(sum.stdout)?;
    let digest = sum.split(' ').next().unwrap_or_default();
    let configuration = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sh"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        "history": [{ "created_by": "lazaret-e2e" }],
    });
    let manifest = json!([{
        "Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"],
    }]);
    fs::write(work.join("config.json"), configuration.to_string())?;
    fs::write(work.join("manifest.json"), manifest.to_string())?;
    let partial = assets.join("partial-busybox.tar");
    run(Command::new("tar")
        .args(["--create", "--file"])
        .arg(&partial)
        .arg("--directory")
        .arg(work)
        .args(["manifest.json", "config.json", "layer.tar"]))?;
    fs::rename(&partial, assets.join(ARCHIVE)).context("cannot rename the archive")
}

fn remove(tree: &Path) -> Result<()> {
    let tree: PathBuf = tree.to_owned();
    run(Command::new("rm")
        .args(["-rf", "--one-file-system"])
        .arg(tree))
}
