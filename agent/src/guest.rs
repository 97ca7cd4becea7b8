//! What PID 1 does to a guest that has just booted, in the order of need: standard streams and a
//! listening socket, the word to the host that calls are welcome, then file systems. Called once
//! by `main`; [`Share`] and [`mount_lazily`] by [`crate::server`].
//!
//! What not every container needs is mounted when one asks for it.
#![forbid(unsafe_code)]

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use lazaret_protocol::VERSION;
use lazaret_protocol::agent::{PORT, READY_PORT, Ready, SHARE_TAG};
use lazaret_protocol::container::{Mount, MountSource};
use lazaret_protocol::frame;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, mkdirat, openat, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{Resource, Rlimit, chdir, chroot, setrlimit};
use std::os::fd::AsRawFd;

use crate::cgroup::{self, CgroupError};
use crate::container::Environment;
use crate::errno::Os;
use crate::loopback;

/// vsock context id of the host.
const HOST_CID: u32 = 2;
/// Connections that wait to be accepted: a burst of calls for many processes at once.
const BACKLOG: i32 = 128;
/// Where the share is mounted.
const SHARE: &str = "/run/lazaret/share";
/// What is read of the share at once, in KiB; Linux's default is 128.
const READ_AHEAD_KIB: &str = "512";
/// Where containers' roots are assembled.
const STAGING: &str = "/run/lazaret/root";
const CGROUP_MOUNT: &str = "/sys/fs/cgroup";
/// Takes what the kernel shall drop that it only keeps for speed (`proc_sys_vm(5)`).
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
/// Directory entries and inodes.
const DROP_INODES: &str = "2";
const BPF_COMPILER: &str = "/proc/sys/net/core/bpf_jit_enable";
/// Open files the agent may have: about eight for each process it carries the streams of. What it
/// starts gets the limits that come with it.
const OPEN_FILES: u64 = 524_288;

/// Kernel parameters that a usual host has set by systemd and programs rely on.
const PARAMETERS: [(&str, &str); 4] = [
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_symlinks", "1"),
    ("fs/protected_regular", "1"),
    ("fs/protected_fifos", "1"),
];

/// Guest paths that containers bind now and then: path, type, data.
const LAZY: [(&str, &str, &str); 3] = [
    ("/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
    ("/dev/shm", "tmpfs", "mode=1777"),
    ("/dev/mqueue", "mqueue", ""),
];

/// The guest could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// A file system.
    #[error("mount {fs_type} on {path}")]
    Mount {
        /// Its type.
        fs_type: &'static str,
        /// Where.
        path: &'static str,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// A step.
    #[error("{step}")]
    Step {
        /// Which.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

impl GuestError {
    fn step<E: Into<Os>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Step {
            step,
            source: error.into(),
        }
    }
}

/// The sandbox's share.
#[derive(Debug)]
pub struct Share {
    /// Mounted by the agent, or somebody else's directory.
    own: bool,
    /// Why it is not mounted. A guest without a share is of some use, so this is told to whoever
    /// needs it.
    failure: Option<GuestError>,
}

impl Share {
    /// A directory that is there already.
    pub fn existing() -> Self {
        Self {
            own: false,
            failure: None,
        }
    }

    /// Whether it can be used.
    ///
    /// # Errors
    /// Why it could not be mounted.
    pub fn mounted(&self) -> Result<(), &GuestError> {
        self.failure.as_ref().map_or(Ok(()), Err)
    }

    /// Lets go of files that nobody uses, so that the host's end of the share does not keep those of
    /// a container that is gone.
    pub fn release_unused(&self) {
        if self.own {
            // The host only keeps files open longer if it fails.
            let _ = fs::write(DROP_CACHES, DROP_INODES);
        }
    }
}

/// The guest's time since its boot in microseconds, time in suspension included.
pub fn clock_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    // Neither part of the time since a boot is negative.
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// Makes a booted guest ready to serve calls: the listening socket comes back with the rest.
/// `started_us` is when the program began, by [`clock_us`].
///
/// # Errors
/// [`GuestError`], naming what is missing from the guest's kernel or initramfs.
pub fn prepare(started_us: u64) -> Result<(OwnedFd, Environment, Share), GuestError> {
    leave_initial_root()?;
    mount_new("devtmpfs", "/dev", MountFlags::NOSUID, None)?;
    connect_streams()?;
    let listener = listen_for_calls()?;
    announce(started_us)?;

    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_new("proc", "/proc", flags, None)?;
    mount_new("sysfs", "/sys", flags, None)?;
    mount_new("cgroup2", CGROUP_MOUNT, flags, Some(c"nsdelegate"))?;
    cgroup::enable_controllers(Path::new(CGROUP_MOUNT))?;
    set_parameters();
    loopback::bring_up().map_err(GuestError::step("bring the loopback interface up"))?;
    make_directories(STAGING)?;
    let share = Share {
        own: true,
        failure: mount_share().err(),
    };
    let environment = Environment {
        executable: c"/proc/self/exe".into(),
        share: PathBuf::from(SHARE),
        staging: PathBuf::from(STAGING),
        nodes: PathBuf::from("/"),
        cgroup_mount: PathBuf::from(CGROUP_MOUNT),
        // Each level costs as much as a container's own cgroup does.
        cgroup_parent: PathBuf::from(CGROUP_MOUNT),
        bpf_compiler: Some(PathBuf::from(BPF_COMPILER)),
    };
    Ok((listener, environment, share))
}

/// Mounts what of [`LAZY`] the binds of a container need.
///
/// # Errors
/// [`GuestError::Mount`].
pub fn mount_lazily(mounts: &[Mount]) -> Result<(), GuestError> {
    for mount in mounts {
        let MountSource::Guest(source) = &mount.source else {
            continue;
        };
        for (path, fs_type, data) in LAZY {
            let all = source == "/dev" && mount.flags & libc::MS_REC != 0;
            if (all || Path::new(source).starts_with(path)) && !is_mount_point(path) {
                let flags = MountFlags::NOSUID | MountFlags::NOEXEC;
                let data = std::ffi::CString::new(data).unwrap_or_default();
                mount_new(fs_type, path, flags, Some(&data))?;
            }
        }
    }
    Ok(())
}

/// Whether another file system than its parent's is at `path`.
fn is_mount_point(path: &str) -> bool {
    let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
    let path = Path::new(path);
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// Opens `/dev/null` as all three standard streams: whatever the kernel gave us, nothing may be
/// written to a console by accident, and no other file may get these numbers.
fn connect_streams() -> Result<(), GuestError> {
    let failed = || GuestError::step("open /dev/null");
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = openat(CWD, "/dev/null", flags, Mode::empty()).map_err(failed())?;
    rustix::stdio::dup2_stdin(&null).map_err(failed())?;
    rustix::stdio::dup2_stdout(&null).map_err(failed())?;
    rustix::stdio::dup2_stderr(&null).map_err(failed())?;
    if null.as_raw_fd() <= 2 {
        // The kernel gave us no console; this is one of the three now.
        std::mem::forget(null);
    }
    Ok(())
}

fn vsock() -> Result<OwnedFd, GuestError> {
    socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|errno| GuestError::step("make a vsock socket")(std::io::Error::from(errno)))
}

fn listen_for_calls() -> Result<OwnedFd, GuestError> {
    let listener = vsock()?;
    let failed = |errno: nix::Error| {
        GuestError::step("listen on the agent's vsock port")(std::io::Error::from(errno))
    };
    let address = VsockAddr::new(libc::VMADDR_CID_ANY, PORT);
    bind(listener.as_raw_fd(), &address).map_err(failed)?;
    listen(&listener, Backlog::new(BACKLOG).map_err(failed)?).map_err(failed)?;
    Ok(listener)
}

/// Tells the host that calls are welcome.
fn announce(started_us: u64) -> Result<(), GuestError> {
    let socket = vsock()?;
    let announced = || -> Result<(), std::io::Error> {
        let address = VsockAddr::new(HOST_CID, READY_PORT);
        connect(socket.as_raw_fd(), &address)?;
        let ready = Ready {
            version: VERSION,
            started_us,
            ready_us: clock_us(),
        };
        let ready = frame::encode(&ready).map_err(std::io::Error::other)?;
        rustix::net::send(&socket, &ready, rustix::net::SendFlags::NOSIGNAL)?;
        Ok(())
    };
    announced().map_err(GuestError::step("tell the host that the agent is ready"))
}

/// Puts a mount of the initial root on top of itself and moves into it. The kernel refuses
/// `pivot_root(2)` away from the initial root, and every container needs that call.
fn leave_initial_root() -> Result<(), GuestError> {
    let failed = || GuestError::step("leave the initial root");
    // The initramfs has this directory, and nothing is mounted on it yet.
    mount_bind("/", "/dev").map_err(failed())?;
    chdir("/dev").map_err(failed())?;
    mount_move(".", "/").map_err(failed())?;
    chroot(".").map_err(failed())
}

fn mount_share() -> Result<(), GuestError> {
    make_directories(SHARE)?;
    mount(SHARE_TAG, SHARE, "virtiofs", MountFlags::empty(), None).map_err(|errno| {
        GuestError::Mount {
            fs_type: "virtiofs",
            path: SHARE,
            source: Os(errno),
        }
    })?;
    let _ = read_further_ahead();
    Ok(())
}

/// Has the kernel read more of a file at once than it does for a disk: each request is a way to the
/// host and back, and what comes of it is in the host's memory mostly. All that is lost if it fails
/// is time.
fn read_further_ahead() -> std::io::Result<()> {
    // What is known is enough: asking the host takes as long as a request.
    let share = statx(CWD, SHARE, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    let device = format!("{}:{}", share.stx_dev_major, share.stx_dev_minor);
    let file = format!("/sys/class/bdi/{device}/read_ahead_kb");
    fs::write(file, READ_AHEAD_KIB)
}

fn mount_new(
    fs_type: &'static str,
    path: &'static str,
    flags: MountFlags,
    data: Option<&std::ffi::CStr>,
) -> Result<(), GuestError> {
    let failed = |errno| GuestError::Mount {
        fs_type,
        path,
        source: Os(errno),
    };
    match mount(fs_type, path, fs_type, flags, data) {
        // The mount point is missing.
        Err(Errno::NOENT) => {
            make_directories(path)?;
            mount(fs_type, path, fs_type, flags, data).map_err(failed)
        }
        mounted => mounted.map_err(failed),
    }
}

fn make_directories(path: &str) -> Result<(), GuestError> {
    let ends = path.match_indices('/').map(|(at, _)| at).skip(1);
    for end in ends.chain([path.len()]) {
        match mkdirat(CWD, &path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(GuestError::step("make a mount point")(errno)),
        }
    }
    Ok(())
}

/// Sets what can be set; a kernel without one of the parameters is fine.
fn set_parameters() {
    for (name, value) in PARAMETERS {
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    let _ = setrlimit(Resource::Nofile, limit);
}
