//! The cgroup hierarchies, mounted as machines under systemd have them.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount_remount};

use super::mounts::attach;
use crate::launch::Cgroups;

/// Where every machine has its cgroups.
const TOP: &str = "/sys/fs/cgroup";

/// Controllers of version 1 that share a hierarchy, under the name of both.
const PAIRS: [[&str; 2]; 2] = [["cpu", "cpuacct"], ["net_cls", "net_prio"]];

/// Mounts them.
pub(super) fn mount(layout: Cgroups) -> Result<()> {
    if layout == Cgroups::Unified {
        attach("cgroup2", TOP, "cgroup2", "nsdelegate")?;
        return enable_controllers();
    }
    attach("tmpfs", TOP, "tmpfs", "mode=755")?;
    if layout == Cgroups::Hybrid {
        hierarchy("cgroup2", "unified", "nsdelegate")?;
    }
    hierarchy("cgroup", "systemd", "none,name=systemd,xattr")?;
    let controllers = fs::read_to_string("/proc/cgroups").context("reading /proc/cgroups")?;
    let mut names: Vec<String> = PAIRS.iter().map(|pair| pair.join(",")).collect();
    let single = controllers.lines().filter(|line| !line.starts_with('#'));
    let single = single.filter_map(|line| line.split_whitespace().next());
    names.extend(
        single
            .filter(|name| !PAIRS.as_flattened().contains(name))
            .map(str::to_owned),
    );
    for name in names {
        hierarchy("cgroup", &name, &name)?;
    }
    for pair in PAIRS {
        for name in pair {
            let link = format!("{TOP}/{name}");
            symlink(pair.join(","), &link).with_context(|| format!("linking {link}"))?;
        }
    }
    mount_remount(TOP, MountFlags::RDONLY, "mode=755")
        .context("making the hierarchies' top read-only")
}

/// Mounts one hierarchy of several.
fn hierarchy(kind: &str, name: &str, options: &str) -> Result<()> {
    let target = format!("{TOP}/{name}");
    fs::create_dir(&target).with_context(|| format!("creating {target}"))?;
    attach(kind, &target, kind, options)
}

/// Has the top of version 2 pass on all it has.
fn enable_controllers() -> Result<()> {
    let controllers = fs::read_to_string(format!("{TOP}/cgroup.controllers"))?;
    let enable: Vec<String> = controllers
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    fs::write(format!("{TOP}/cgroup.subtree_control"), enable.join(" "))
        .context("enabling the cgroup controllers")
}
