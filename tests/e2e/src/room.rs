//! The room of a container engine: a Debian userland with Podman and Docker, entered by the
//! programs that a case runs there.
//!
//! A process of this program, the holder (`lazaret-e2e room`), makes the room in a mount namespace
//! of its own, with the userland as its real root (`pivot_root`, as runtimes want to do the same
//! again), and waits. Programs come in through `lazaret-e2e enter` or `log-in`. When the holder has
//! gone and nobody is left inside, all of it is gone. Used by the cases about engines and about
//! systemd, which then is process 1 of the room (`room/systemd.rs`).

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sched::CloneFlags;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, unmount,
};
use serde::{Deserialize, Serialize};

use crate::{
    case::Test,
    invocation::Invocation,
    runtime::{Kind, Runtime},
};

mod systemd;

use systemd::Systemd;

/// Where the runtime under test is in the room, if it is not the userland's own.
const RUNTIME: &str = "usr/bin/lazaret";

/// Where the assets are in the room.
pub(crate) const ASSETS: &str = "/srv";

/// The userland once more in the room, read-only and with nothing mounted in it: the root file
/// system of containers with real programs.
pub(crate) const USERLAND: &str = "/mnt";

/// Longest a single call of an engine may take.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What the programs of the room have in their environment.
const ENVIRONMENT: &[&str] = &[
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "TERM=xterm",
];

/// Where engines keep images and containers: a file system that overlays can lie on.
const STORE_BYTES: u64 = 2 << 30;

/// What the holder is asked to make.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    directory: PathBuf,
    assets: PathBuf,
    program: PathBuf,
    kind: Kind,
    configuration: Option<PathBuf>,
    /// The cgroup in which a systemd is to be process 1, if one is.
    systemd: Option<String>,
}

/// A room, there until dropped.
pub(crate) struct Room {
    holder: Child,
    /// Joins the room, and how it is told to.
    enter: PathBuf,
    mode: &'static str,
    /// Whose namespaces are joined.
    entrance: String,
    tag: String,
}

impl Room {
    /// Makes a room for the case.
    pub(crate) fn new(test: &Test) -> Result<Self> {
        Self::make(test, None)
    }

    /// Makes one where a systemd is process 1 and has booted, with a system bus and nothing else.
    /// The case's directory is there as well.
    pub(crate) fn with_systemd(test: &Test) -> Result<Self> {
        let group = test.tag.trim_end_matches('-').to_owned();
        Self::make(test, Some(group))
    }

    fn make(test: &Test, systemd: Option<String>) -> Result<Self> {
        let mode = if systemd.is_some() { "log-in" } else { "enter" };
        let request = Request {
            systemd,
            directory: test.directory.join("room"),
            assets: test.assets.clone(),
            program: test.runtime.program.clone(),
            kind: test.runtime.kind,
            configuration: std::env::var_os("LAZARET_CONFIG").map(PathBuf::from),
        };
        let mut holder = Command::new(&test.probe)
            .arg("room")
            .arg(serde_json::to_string(&request)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the room's holder")?;
        let mut told = String::new();
        let output = holder.stdout.take();
        output.map(|mut out| out.read_to_string(&mut told));
        let room = Self {
            holder,
            enter: test.probe.clone(),
            mode,
            entrance: told,
            tag: test.tag.trim_end_matches('-').to_owned(),
        };
        ensure!(!room.entrance.is_empty(), "the room could not be made");
        Ok(room)
    }

    /// The runtime under test, as it is started in the room.
    pub(crate) fn runtime(&self, test: &Test) -> Runtime {
        let mut leading = self.leading();
        leading.push(test.runtime.kind.name().to_owned());
        Runtime {
            kind: test.runtime.kind,
            program: self.enter.clone(),
            root: test.runtime.root.clone(),
            leading,
        }
    }

    /// What has a program started in the room.
    fn leading(&self) -> Vec<String> {
        // Nothing of the suite's environment: engines and runtimes take their words from there.
        let env = ["/usr/bin/env", "--ignore-environment"];
        [self.mode, &self.entrance]
            .iter()
            .chain(&env)
            .chain(ENVIRONMENT)
            .map(|&word| word.to_owned())
            .collect()
    }

    /// The control group below which an engine is to put its containers.
    pub(crate) fn cgroup_parent(&self) -> String {
        format!("/{}", self.tag)
    }

    /// A program in the room: the first word, with the others as its arguments.
    pub(crate) fn command(&self, words: &[&str]) -> Invocation {
        let (program, arguments) = words.split_first().unwrap_or((&"true", &[]));
        Invocation::new(self.enter.clone(), self.leading(), program, arguments).timeout(TIMEOUT)
    }

    /// A path of the room as it is seen from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// Ends a systemd and takes the cgroups away that were its.
    pub(crate) fn dissolve(self) -> Result<()> {
        let tag = self.tag.clone();
        drop(self);
        let mut groups = crate::host::cgroups(&tag);
        groups.sort_unstable_by_key(|path| std::cmp::Reverse(path.len()));
        groups.iter().try_for_each(|group| {
            fs::remove_dir(group).with_context(|| format!("cannot remove {group}"))
        })
    }

    /// Demands that no container is left of which the runtime knows, with the engine's `--root`, and
    /// that the engine's control group has none; takes away what the engine itself keeps there.
    pub(crate) fn is_clean(&self, runtime: Kind, root: &str) -> Result<()> {
        let left = self
            .command(&[runtime.name(), "--root", root, "list", "--quiet"])
            .succeed()?;
        ensure!(
            left.stdout.is_empty(),
            "containers are left: {}",
            left.stdout
        );
        let mut groups = crate::host::cgroups(&self.tag);
        groups.sort_unstable_by_key(|path| std::cmp::Reverse(path.len()));
        for group in groups {
            // Podman leaves the group in which conmon was, and both the parent they were told.
            let known = group.contains("conmon") || group.ends_with(&self.tag);
            ensure!(known, "control group {group} is left");
            fs::remove_dir(&group).with_context(|| format!("cannot remove {group}"))?;
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.holder.stdin.take());
        self.holder.wait().ok();
    }
}

/// `lazaret-e2e room`: makes the room, says whose namespaces it consists of, and stays until its
/// input ends.
pub(crate) fn hold(request: &str) -> Result<ExitCode> {
    let request: Request = serde_json::from_str(request).context("cannot read the request")?;
    make(&request).context("cannot make the room")?;
    let systemd = request.systemd.as_deref().map(Systemd::start).transpose();
    let systemd = systemd.context("systemd does not boot")?;
    let entrance = systemd.as_ref().map_or(std::process::id(), Systemd::pid);
    // The suite reads to the end of the output.
    let mut output = fs::File::from(rustix::io::dup(rustix::stdio::stdout())?);
    write!(output, "{entrance}")?;
    drop(output);
    rustix::stdio::dup2_stdout(fs::File::open("/dev/null")?)?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    systemd.map_or(Ok(()), Systemd::end)?;
    Ok(ExitCode::SUCCESS)
}

fn make(request: &Request) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("cannot isolate the mounts")?;
    let part = |name: &str| request.directory.join(name);
    for name in ["", "userland", "upper", "work", "root"] {
        fs::create_dir(part(name))?;
    }
    attach(
        &request.assets.join("engines.ext4"),
        &part("userland"),
        true,
    )?;
    let overlay = format!(
        "lowerdir={},upperdir={},workdir={}",
        part("userland").display(),
        part("upper").display(),
        part("work").display()
    );
    let overlay = std::ffi::CString::new(overlay)?;
    let root = part("root");
    let none = MountFlags::empty();
    mount("overlay", &root, "overlay", none, overlay.as_c_str()).context("cannot mount overlay")?;
    let store = part("store");
    fs::File::create(&store)?.set_len(STORE_BYTES)?;
    command(
        Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal"])
            .arg(&store),
    )?;
    attach(&store, &root.join("var/lib"), false)?;
    for name in ["proc", "sys", "dev"] {
        mount_bind_recursive(format!("/{name}"), root.join(name))
            .with_context(|| format!("cannot bind /{name}"))?;
    }
    for name in ["run", "tmp", "dev/shm"] {
        mount("tmpfs", root.join(name), "tmpfs", none, c"mode=1777")
            .with_context(|| format!("cannot mount a tmpfs on {name}"))?;
    }
    bind(&request.assets, &root.join(ASSETS.trim_start_matches('/')))?;
    bind(
        &part("userland"),
        &root.join(USERLAND.trim_start_matches('/')),
    )?;
    if request.kind == Kind::Lazaret {
        furnish(request, &root)?;
    }
    configure_podman(request, &root)?;
    if request.systemd.is_some() {
        systemd::furnish(&root)?;
        let directory = request.directory.parent().context("it is the case's")?;
        let inside = root.join(directory.strip_prefix("/")?);
        fs::create_dir_all(&inside)?;
        bind(directory, &inside)?;
    }
    become_root(&root)
}

/// Brings the runtime under test in, with what its configuration names.
fn furnish(request: &Request, root: &Path) -> Result<()> {
    fs::write(root.join(RUNTIME), "")?;
    bind(&request.program, &root.join(RUNTIME))?;
    let Some(path) = &request.configuration else {
        return Ok(());
    };
    let mut table: toml::Table = fs::read_to_string(path)?.parse()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    for (name, place) in [
        ("vmm", "lazaret-vmm"),
        ("kernel", "vmlinux"),
        ("initramfs", "initramfs"),
    ] {
        let Some(toml::Value::String(file)) = table.get_mut(name) else {
            continue;
        };
        let inside = Path::new("/usr/lib").join(format!("lazaret-{place}"));
        let outside = root.join(inside.strip_prefix("/")?);
        fs::write(&outside, "")?;
        bind(&folder.join(&file), &outside)?;
        *file = inside.to_string_lossy().into_owned();
    }
    fs::create_dir_all(root.join("etc/lazaret"))?;
    fs::write(root.join("etc/lazaret/config.toml"), table.to_string())
        .context("cannot write the runtime's configuration")
}

/// What Podman needs to know: whether there is a systemd, no journal, and which runtime to use.
fn configure_podman(request: &Request, root: &Path) -> Result<()> {
    let cgroups = match request.systemd {
        Some(_) => "systemd",
        None => "cgroupfs",
    };
    let text = format!(
        "[engine]\ncgroup_manager = \"{cgroups}\"\nevents_logger = \"file\"\nruntime = \"{}\"\n\
         [engine.runtimes]\nlazaret = [\"/{RUNTIME}\"]\n",
        request.kind.name()
    );
    fs::create_dir_all(root.join("etc/containers"))?;
    fs::write(root.join("etc/containers/containers.conf"), text)?;
    // For `--userns=auto`.
    for name in ["etc/subuid", "etc/subgid"] {
        fs::write(root.join(name), "containers:100000:1000000\n")?;
    }
    Ok(())
}

fn become_root(root: &Path) -> Result<()> {
    rustix::process::chdir(root)?;
    rustix::process::pivot_root(".", ".").context("cannot change the root")?;
    unmount(".", UnmountFlags::DETACH).context("cannot let go of the old root")?;
    rustix::process::chdir("/")?;
    // As on a host under systemd.
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    mount_change("/", shared).context("cannot share the mounts")
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount_bind(from, to).with_context(|| format!("cannot bind {}", from.display()))
}

/// Mounts an image. `mount -o loop` would keep the device open for writing, which kernels without
/// `CONFIG_BLK_DEV_WRITE_MOUNTED` refuse to mount.
fn attach(image: &Path, place: &Path, readonly: bool) -> Result<()> {
    let mut losetup = Command::new("losetup");
    losetup.args(["--find", "--show"]).arg(image);
    let mut mount = Command::new("mount");
    if readonly {
        losetup.arg("--read-only");
        mount.args(["-o", "ro"]);
    }
    let output = losetup.output().context("cannot start losetup")?;
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "losetup: {}", errors.trim_end());
    let outcome = command(mount.arg(&device).arg(place));
    // A mounted device goes with its last user, which from now on is the mount.
    command(Command::new("losetup").args(["--detach", &device]))?;
    outcome
}

fn command(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", errors.trim_end());
    Ok(())
}
