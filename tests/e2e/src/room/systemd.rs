//! A real systemd as process 1 of a PID namespace, in a cgroup of its own and with a cgroup
//! namespace, so that the top of that cgroup is the top of its hierarchy. It has the system bus and
//! no other unit: whatever else appears, a case has made.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::CloneFlags;
use rustix::{
    event::{PollFd, PollFlags, poll},
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

/// A systemd that runs.
pub(super) struct Systemd(Child);

impl Systemd {
    /// Boots one in the cgroup of that name, in this process's mount namespace.
    pub(super) fn start(cgroup: &str) -> Result<Self> {
        let ready = UnixDatagram::bind(READY).context("cannot listen")?;
        let cgroup = PathBuf::from("/sys/fs/cgroup").join(cgroup);
        fs::create_dir_all(&cgroup).context("cannot make its cgroup")?;
        // The next process is the first of a namespace. Its mounts are this process's, too.
        nix::sched::unshare(CloneFlags::CLONE_NEWPID)?;
        let script = format!(
            "echo 0 > {}/cgroup.procs && exec unshare --cgroup sh -euc '
             mount -t proc proc /proc
             umount /sys/fs/cgroup
             mount -t cgroup2 -o nsdelegate cgroup2 /sys/fs/cgroup
             exec /lib/systemd/systemd --system --unit=e2e.target --log-target=null --show-status=no'",
            cgroup.display()
        );
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
