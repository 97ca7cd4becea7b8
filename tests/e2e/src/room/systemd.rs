//! A real systemd as process 1 of a PID namespace, in a cgroup of its own and with a cgroup
//! namespace, so that the top of that cgroup is the top of its hierarchy. It has the system bus and
//! no other unit: whatever else appears, a case has made.

use std::{
    ffi::CString,
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::CloneFlags;
use rustix::{
    event::{PollFd, PollFlags, poll},
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// Units, each complete: what they replace would need all of a machine's boot.
const UNITS: &[(&str, &str)] = &[
    (
        "e2e.target",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.service\nAfter=dbus.service\n",
    ),
    (
        "dbus.socket",
        "[Unit]\nDefaultDependencies=no\n\
         [Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    (
        "dbus.service",
        "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n\
         [Service]\nType=notify\nNotifyAccess=main\nStandardOutput=null\nStandardError=null\n\
         ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile \
         --systemd-activation\n",
    ),
];

/// Programs that make units from the machine outside.
const GENERATORS: &str = "usr/lib/systemd/system-generators";

/// Where it says that it has booted.
const READY: &str = "/run/e2e-ready";

/// Puts what systemd needs into the room that is going to be at `root`.
pub(super) fn furnish(root: &Path) -> Result<()> {
    for (name, text) in UNITS {
        let path = root.join("etc/systemd/system").join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // Without an identity this were a machine's first boot, at which units are enabled.
    fs::write(
        root.join("etc/machine-id"),
        "0123456789abcdef0123456789abcdef\n",
    )?;
    fs::remove_dir_all(root.join(GENERATORS)).context("cannot remove the generators")
}

/// A mounted hierarchy of cgroups.
struct Hierarchy {
    /// Where it is mounted.
    point: PathBuf,
    /// Its type and options.
    kind: String,
    options: String,
}

impl Hierarchy {
    /// All of this machine, version 1 or 2.
    fn all() -> Result<Vec<Self>> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let found = mounts.lines().filter_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            let hierarchy = Self {
                point: mount.split(' ').nth(4)?.into(),
                kind: kind.next()?.to_owned(),
                options: kind.nth(1)?.replace("rw,", ""),
            };
            hierarchy.kind.starts_with("cgroup").then_some(hierarchy)
        });
        Ok(found.collect())
    }

    /// Brings this process into a cgroup of that name.
    fn enter(&self, name: &str) -> Result<()> {
        let group = self.point.join(name);
        fs::create_dir_all(&group).context("cannot make a cgroup")?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // With version 1 none may be empty.
            if self.kind == "cgroup" && group.join(file).exists() {
                fs::write(group.join(file), fs::read(self.point.join(file))?)?;
            }
        }
        fs::write(group.join("cgroup.procs"), "0").context("cannot enter a cgroup")
    }

    /// Mounts it anew, so that the top of the cgroup namespace is its top.
    fn mount_again(&self) -> Result<()> {
        unmount(&self.point, UnmountFlags::empty())?;
        let named = if self.options.contains("name=") {
            "none,"
        } else {
            ""
        };
        let options = CString::new(format!("{named}{}", self.options))?;
        let flags = MountFlags::empty();
        mount(
            &self.kind,
            &self.point,
            &self.kind,
            flags,
            options.as_c_str(),
        )
        .with_context(|| format!("cannot mount {}", self.point.display()))
    }
}

/// A systemd that runs.
pub(super) struct Systemd(Child);

impl Systemd {
    /// Boots one in the cgroup of that name, in this process's mount namespace.
    pub(super) fn start(cgroup: &str) -> Result<Self> {
        let ready = UnixDatagram::bind(READY).context("cannot listen")?;
        let hierarchies = Hierarchy::all()?;
        for hierarchy in &hierarchies {
            hierarchy.enter(cgroup)?;
        }
        // The next process is the first of a namespace. Its mounts are this process's, too.
        nix::sched::unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWCGROUP)?;
        let mut script = String::new();
        for hierarchy in &hierarchies {
            hierarchy.mount_again()?;
            // Out of its way: with version 2 there may be no process where controllers are passed on.
            hierarchy.enter("outside")?;
            script += &format!("echo 0 > {}/cgroup.procs\n", hierarchy.point.display());
        }
        script += "mount -t proc proc /proc
            exec /lib/systemd/systemd --system --unit=e2e.target --log-target=null --show-status=no";
        let child = Command::new("/bin/sh")
            .args(["-euc", &script])
            .env_clear()
            .env("container", "lazaret-e2e")
            .env("NOTIFY_SOCKET", READY)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let systemd = Self(child);
        systemd.wait_until_booted(&ready)?;
        fs::remove_file(READY)?;
        Ok(systemd)
    }

    fn wait_until_booted(&self, ready: &UnixDatagram) -> Result<()> {
        let process = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty())?;
        loop {
            let mut fds = [
                PollFd::new(ready, PollFlags::IN),
                PollFd::new(&process, PollFlags::IN),
            ];
            poll(&mut fds, None)?;
            if !fds[0].revents().contains(PollFlags::IN) {
                bail!("it ended");
            }
            let mut text = [0; 4096];
            let length = ready.recv(&mut text)?;
            let text = String::from_utf8_lossy(&text[..length]);
            if text.lines().any(|line| line == "READY=1") {
                return Ok(());
            }
        }
    }

    /// Its pid, as this process sees it.
    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Ends it, and with it everything in its PID namespace.
    pub(super) fn end(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}
