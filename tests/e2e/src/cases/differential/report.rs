//! The guest side: everything a container's process can see of itself, as one JSON object.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use anyhow::Result;
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::cases::{call::call_64, scheduling::scheduling};

/// What is reported of `/proc/self/status`.
const STATUS: &[&str] = &[
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "NStgid",
    "NSpgid",
    "NSsid",
    "SigBlk",
    "SigIgn",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Threads",
];

/// Files whose content is reported, or why they cannot be read. Not those of limits that are the
/// host's to keep, as a guest has neither swap nor the host's CPUs (docs/resources.md).
const FILES: &[&str] = &[
    "/proc/self/oom_score_adj",
    "/proc/self/uid_map",
    "/proc/self/gid_map",
    "/proc/self/setgroups",
    "/proc/self/cgroup",
    "/proc/self/personality",
    "/proc/self/timens_offsets",
    "/proc/self/timerslack_ns",
    "/proc/self/coredump_filter",
    "/proc/sys/kernel/shmmax",
    "/proc/sys/kernel/msgmax",
    "/proc/sys/kernel/sem",
    "/proc/sys/kernel/msgmnb",
    "/proc/sys/kernel/msgmni",
    "/proc/sys/kernel/shmall",
    "/proc/sys/kernel/shmmni",
    "/proc/sys/kernel/shm_rmid_forced",
    "/proc/sys/fs/mqueue/msg_max",
    "/proc/sys/fs/mqueue/msgsize_max",
    "/proc/sys/fs/mqueue/queues_max",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/ping_group_range",
    "/proc/sys/net/core/somaxconn",
    "/proc/sys/net/ipv4/ip_default_ttl",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    "/proc/net/dev",
    "/sys/fs/cgroup/cgroup.type",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/cpu.weight",
    "/sys/fs/cgroup/memory.high",
    "/sys/fs/cgroup/memory.low",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.min",
    "/sys/fs/cgroup/memory.oom.group",
    "/sys/fs/cgroup/pids.max",
    "/etc/passwd",
    "/data/file",
    "/new/folder/file",
];

/// Where it is tried whether a file can be made.
const FOLDERS: &[&str] = &[
    "/",
    "/dev",
    "/dev/shm",
    "/etc",
    "/data",
    "/home",
    "/mnt",
    "/mnt/new",
    "/new/folder",
    "/proc",
    "/proc/sys/kernel",
    "/sys",
    "/sys/fs/cgroup",
    "/tmp",
    "/work",
];

/// Paths whose attributes and access are reported, beside all of `/dev`.
const PATHS: &[&str] = &[
    "/",
    "/data",
    "/data/zeroes",
    "/etc",
    "/etc/passwd",
    "/home",
    "/mnt/new",
    "/new/folder",
    "/none",
    "/proc/tty",
    "/proc/driver",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/kcore",
    "/proc/keys",
    "/proc/sys",
    "/proc/timer_list",
    "/proc/uptime",
    "/sys",
    "/sys/class",
    "/sys/firmware",
    "/tmp",
    "/work",
    "/work/new/folder",
];

const LIMITS: &[(&str, Resource)] = &[
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("locks", Resource::Locks),
    ("memlock", Resource::Memlock),
    ("msgqueue", Resource::Msgqueue),
    ("nice", Resource::Nice),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("rss", Resource::Rss),
    ("rtprio", Resource::Rtprio),
    ("rttime", Resource::Rttime),
    ("sigpending", Resource::Sigpending),
    ("stack", Resource::Stack),
];

/// System calls of 64-bit x86 whose result is reported, with their arguments. Each fails without a
/// filter as well, or asks for something that is there already.
const CALLS: &[(&str, i64, [u64; 6])] = &[
    ("lseek 0", 8, [u64::MAX, 0, 0, 0, 0, 0]),
    ("lseek 1", 8, [u64::MAX, 0, 1, 0, 0, 0]),
    ("lseek 2", 8, [u64::MAX, 0, 2, 0, 0, 0]),
    ("getpgid", 121, [0; 6]),
    ("mount", 165, [0; 6]),
    ("personality", 135, [0xffff_ffff, 0, 0, 0, 0, 0]),
    ("dumpable", 157, [3, 0, 0, 0, 0, 0]),
    ("sethostname", 170, [0, 1, 0, 0, 0, 0]),
    ("unshare", 272, [0; 6]),
];

/// Numbers of calls that are reported by themselves.
const SOCKET: i64 = 41;
const IOPRIO_GET: i64 = 252;

/// Prints the report on a line. With an argument it stays until its input ends.
pub(super) fn see(arguments: &[String]) -> Result<u8> {
    let names = rustix::system::uname();
    let report = json!({
        "arguments": arguments,
        "environment": std::env::vars().collect::<BTreeMap<_, _>>(),
        "cwd": std::env::current_dir()?,
        "process": [
            rustix::process::getpid().as_raw_pid(),
            rustix::process::Pid::as_raw(rustix::process::getppid()),
            rustix::process::getpgrp().as_raw_pid(),
            rustix::process::getsid(None)?.as_raw_pid(),
        ],
        "priority": rustix::process::getpriority_process(None)?,
        "scheduling": scheduling(&fs::read_to_string("/proc/self/stat")?)?,
        "io priority": call_64(IOPRIO_GET, [1, 0, 0, 0, 0, 0]),
        "hostname": names.nodename().to_string_lossy(),
        "machine": names.machine().to_string_lossy(),
        "status": status()?,
        "limits": limits(),
        "descriptors": descriptors()?,
        "mounts": mounts()?,
        "files": each(FILES, content),
        "writable": each(FOLDERS, writable),
        "devices": walk("/dev"),
        "paths": each(PATHS, |path| attributes(Path::new(path))),
        "calls": calls(),
    });
    let mut line = serde_json::to_vec(&report)?;
    line.push(b'\n');
    std::io::stdout().write_all(&line)?;
    if !arguments.is_empty() {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    }
    Ok(0)
}

fn each(names: &[&str], of: impl Fn(&str) -> Value) -> BTreeMap<String, Value> {
    names
        .iter()
        .map(|&name| (name.to_owned(), of(name)))
        .collect()
}

/// Results of calls, or their error numbers as negative ones.
fn calls() -> BTreeMap<&'static str, i64> {
    let mut found: BTreeMap<_, _> = CALLS
        .iter()
        .map(|&(name, number, arguments)| (name, call_64(number, arguments)))
        .collect();
    // A packet socket, for which it takes a capability; its number says nothing.
    found.insert("socket", call_64(SOCKET, [17, 3, 0, 0, 0, 0]).min(0));
    found
}

fn status() -> Result<BTreeMap<String, String>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines
        .filter(|(name, _)| STATUS.contains(name))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

fn limits() -> BTreeMap<&'static str, Value> {
    let show = |&(name, resource): &(&'static str, Resource)| {
        let limit = getrlimit(resource);
        (name, json!([limit.current, limit.maximum]))
    };
    LIMITS.iter().map(show).collect()
}

/// Open descriptors and what kind of thing each is.
fn descriptors() -> Result<BTreeMap<String, String>> {
    let folder = fs::File::open("/proc/self/fd")?;
    let own = folder.as_raw_fd().to_string();
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if name != own && !target.starts_with("/proc") {
            let target = target.to_string_lossy().into_owned();
            // Pipes and sockets by kind, without their number.
            let kind = target.split(':').next().unwrap_or_default().to_owned();
            found.insert(name, kind);
        }
    }
    Ok(found)
}

/// `/proc/self/mountinfo` by mount point (proc_pid_mountinfo(5)); the last of several on one point.
fn mounts() -> Result<BTreeMap<String, Value>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(dash) = fields.iter().position(|&field| field == "-") else {
            continue;
        };
        let propagation: Vec<&str> = fields[6..dash]
            .iter()
            .filter_map(|field| field.split(':').next())
            .collect();
        let mount = json!({
            "root": fields[3],
            "options": fields[5].split(',').collect::<Vec<_>>(),
            "propagation": propagation,
            "type": fields[dash + 1],
            "source": fields[dash + 2],
            "super": fields[dash + 3].split(',').collect::<Vec<_>>(),
        });
        found.insert(fields[4].to_owned(), mount);
    }
    Ok(found)
}

fn content(path: &str) -> Value {
    match fs::read(path) {
        Ok(bytes) => json!(String::from_utf8_lossy(&bytes)),
        Err(error) => refusal(&error),
    }
}

fn writable(folder: &str) -> Value {
    let path = Path::new(folder).join("a-file-of-the-report");
    match fs::File::create_new(&path) {
        Ok(file) => {
            let owner = file
                .metadata()
                .map(|data| (data.uid(), data.gid(), data.mode()));
            let removed = fs::remove_file(&path).is_ok();
            json!({ "owner": owner.ok(), "removed": removed })
        }
        Err(error) => refusal(&error),
    }
}

/// All that is below a folder, without going into file systems of their own.
fn walk(folder: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !name.starts_with("/dev/pts") {
            found.extend(walk(&name));
        }
        found.insert(name, attributes(&path));
    }
    found
}

/// Kind, owner, permissions, and whether it can be opened.
fn attributes(path: &Path) -> Value {
    let data = match fs::symlink_metadata(path) {
        Ok(data) => data,
        Err(error) => return refusal(&error),
    };
    let kind = data.file_type();
    if kind.is_symlink() {
        return json!({ "link": fs::read_link(path).ok() });
    }
    let device = kind.is_char_device() || kind.is_block_device();
    let number = rustix::fs::major(data.rdev());
    // Opening a queue would wait for somebody at its other end, and a terminal may become ours.
    let opens = (!kind.is_fifo() && !path.starts_with("/dev/pts")).then(|| {
        json!({
            "read": outcome(fs::File::open(path)),
            "write": outcome(fs::OpenOptions::new().append(true).open(path)),
        })
    });
    json!({
        "kind": format!("{:o}", data.mode() >> 12),
        "mode": format!("{:o}", data.permissions().mode() & 0o7777),
        "owner": [data.uid(), data.gid()],
        "device": device.then(|| [number, rustix::fs::minor(data.rdev())]),
        "entries": kind.is_dir().then(|| fs::read_dir(path).map(Iterator::count).ok()),
        "opens": opens,
    })
}

fn outcome<T>(result: std::io::Result<T>) -> Value {
    result.map_or_else(|error| refusal(&error), |_| json!("yes"))
}

/// The name of an error, for the number says little.
fn refusal(error: &std::io::Error) -> Value {
    json!(error.to_string())
}
