//! Mounts: the machine's root under a throw-away overlay, and the pseudo file systems.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use crate::qemu::MESSAGE_BYTES;

/// An existing directory of every machine, on which the overlay is put together.
const SCRATCH: &str = "/tmp";

/// Pseudo file systems beside the cgroups: type, mount point below the new root, options.
const PSEUDO: [(&str, &str, &str); 8] = [
    ("devtmpfs", "dev", ""),
    ("tmpfs", "dev/shm", "mode=1777"),
    ("devpts", "dev/pts", "mode=620,gid=5,ptmxmode=666"),
    ("mqueue", "dev/mqueue", ""),
    ("proc", "proc", ""),
    ("sysfs", "sys", ""),
    ("bpf", "sys/fs/bpf", "mode=700"),
    ("tmpfs", "run", "mode=755"),
];

/// Makes the root file system the command will see, and enters it.
///
/// `/tmp` stays what it is outside (on the overlay, so writing is local): checkouts live there.
pub(super) fn prepare() -> Result<()> {
    attach("tmpfs", SCRATCH, "tmpfs", "size=75%,nr_inodes=0,mode=755")?;
    let part = |name: &str| format!("{SCRATCH}/{name}");
    for name in ["upper", "work", "root"] {
        fs::create_dir(part(name)).with_context(|| format!("creating {}", part(name)))?;
    }
    let root = part("root");
    let options = format!(
        "lowerdir=/,upperdir={},workdir={}",
        part("upper"),
        part("work")
    );
    attach("overlay", &root, "overlay", &options)?;
    for (kind, target, options) in PSEUDO {
        let target = format!("{root}/{target}");
        // Some are missing on a fresh devtmpfs or a small root; a failure shows in the mount.
        let _ = fs::create_dir_all(&target);
        attach(kind, &target, kind, options)?;
    }
    enter(Path::new(&root))
}

/// Mounts a directory of the machine over itself, so that writes reach it.
pub(super) fn writable(tag: &str, path: &Path) -> Result<()> {
    let target = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    let options = format!("trans=virtio,version=9p2000.L,msize={MESSAGE_BYTES},cache=mmap");
    attach(tag, target, "9p", &options)
}

/// Makes `root` the root of this mount namespace and drops the old one.
fn enter(root: &Path) -> Result<()> {
    rustix::process::chdir(root).context("entering the new root")?;
    rustix::process::pivot_root(".", ".").context("changing the root")?;
    unmount(".", UnmountFlags::DETACH).context("dropping the old root")?;
    rustix::process::chdir("/").context("entering the root")?;
    // As systemd does: container runtimes must cope with shared mounts.
    mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .context("sharing the mounts")
}

/// Mounts, and names the target if that fails.
pub(super) fn attach(source: &str, target: &str, kind: &str, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options).context("a mount option has a NUL byte")?;
    mount(
        source,
        target,
        kind,
        MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .with_context(|| format!("mounting {kind} on {target}"))
}
