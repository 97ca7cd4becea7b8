//! Bundles: a root file system with the probe in it, and a `config.json`.
//!
//! The configuration is plain JSON and not a typed spec, for two reasons: the cases must be able
//! to write every mistake, and the suite must not read a field through the same parser as the
//! runtime under test.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// Where the probe lies in a container.
pub(crate) const PROBE: &str = "/probe";

/// Directories of the root file system; the last three are for cases that mount there.
const DIRECTORIES: &[&str] = &[
    "dev", "proc", "sys", "tmp", "etc", "run", "root", "home", "bin", "mnt", "data", "work",
];

/// A bundle on disk and the configuration it will get.
pub(crate) struct Bundle {
    /// The bundle's directory.
    pub(crate) directory: PathBuf,
    /// Container id.
    pub(crate) id: String,
    /// What [`Bundle::save`] writes; change it freely.
    pub(crate) config: Value,
}

impl Bundle {
    /// Makes `directory` with a root file system in it, and a hard link to the suite's binary `probe`.
    pub(crate) fn new(directory: &Path, id: &str, probe: &Path) -> Result<Self> {
        let rootfs = directory.join("rootfs");
        for name in DIRECTORIES {
            fs::create_dir_all(rootfs.join(name))
                .with_context(|| format!("cannot make {}/{name}", rootfs.display()))?;
        }
        fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::write(
            rootfs.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n",
        )?;
        fs::write(rootfs.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
        fs::hard_link(probe, rootfs.join("probe"))
            .with_context(|| format!("cannot link {} into the bundle", probe.display()))?;
        Ok(Self {
            directory: directory.to_owned(),
            id: id.to_owned(),
            config: default_config(id),
        })
    }

    /// The root file system, as the host sees it.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Sets the process to the probe `name` with `arguments`.
    pub(crate) fn probe(&mut self, name: &str, arguments: &[&str]) {
        self.config["process"]["args"] = probe_args(name, arguments).into();
    }

    /// Sets one value by its JSON pointer; parents that are missing are made.
    pub(crate) fn set(&mut self, pointer: &str, value: Value) {
        let mut place = &mut self.config;
        for key in pointer.split('/').skip(1) {
            place = &mut place[key];
        }
        *place = value;
    }

    /// Adds a mount.
    pub(crate) fn mount(&mut self, destination: &str, kind: &str, source: &str, options: &[&str]) {
        let mount = json!({
            "destination": destination, "type": kind, "source": source, "options": options,
        });
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.push(mount);
        }
    }

    /// Adds a bind mount of a host path.
    pub(crate) fn bind(&mut self, destination: &str, source: &Path, options: &[&str]) {
        let mut all = vec!["bind"];
        all.extend_from_slice(options);
        self.mount(destination, "bind", &source.to_string_lossy(), &all);
    }

    /// Writes `config.json`.
    pub(crate) fn save(&self) -> Result<()> {
        let path = self.directory.join("config.json");
        fs::write(&path, serde_json::to_vec_pretty(&self.config)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Program and arguments that run the probe `name`.
pub(crate) fn probe_args(name: &str, arguments: &[&str]) -> Vec<String> {
    [PROBE, "probe", name]
        .iter()
        .chain(arguments)
        .map(|&word| word.to_owned())
        .collect()
}

/// The configuration podman would write, cut down to what every case needs.
fn default_config(id: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD"
    ]);
    json!({
        "ociVersion": "1.0.2",
        "hostname": "guest",
        "root": { "path": "rootfs" },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [PROBE],
            "env": ["PATH=/bin:/", "HOME=/root"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/lazaret-e2e/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
            ],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
