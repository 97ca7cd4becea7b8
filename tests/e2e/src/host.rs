//! Reads the host's `/proc` and `/sys`: what processes, mounts, links and cgroups there are.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

/// A process of the host.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    /// Process id.
    pub(crate) pid: i32,
    /// Its parent.
    pub(crate) parent: i32,
    /// Name of its program, as the kernel keeps it.
    pub(crate) name: String,
    /// State letter of `proc(5)`; `Z` is a zombie.
    pub(crate) state: char,
}

/// Every process.
pub(crate) fn processes() -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ends meanwhile is not there any more.
        if let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
            && let Some(process) = parse_stat(pid, &stat)
        {
            found.push(process);
        }
    }
    Ok(found)
}

/// `pid (name) state parent …`, where the name may contain anything.
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    let open = stat.find('(')?;
    let close = stat.rfind(')')?;
    let mut rest = stat.get(close + 1..)?.split_whitespace();
    Some(Process {
        pid,
        name: stat.get(open + 1..close)?.to_owned(),
        state: rest.next()?.chars().next()?,
        parent: rest.next()?.parse().ok()?,
    })
}

/// All processes below `ancestor`, it not included.
pub(crate) fn descendants(ancestor: i32) -> Result<Vec<Process>> {
    let all = processes()?;
    let mut family = vec![ancestor];
    let mut found = Vec::new();
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        for process in all.iter().filter(|process| process.parent == parent) {
            family.push(process.pid);
            found.push(process.clone());
        }
        next += 1;
    }
    Ok(found)
}

/// Processor time that a process has used, in clock ticks, without that of its virtual CPUs, whose
/// time is the guest's.
pub(crate) fn own_cpu_ticks(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/task");
    let mut sum = 0;
    for thread in fs::read_dir(&path).with_context(|| format!("cannot read {path}"))? {
        let path = thread?.path().join("stat");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // `TID (name) state …`; the name may hold anything, parentheses included.
        let (name, fields) = text.rsplit_once(')').unwrap_or_default();
        if !name.contains("(vcpu") {
            // utime and stime are the fields 14 and 15; the state behind the name is field 3.
            let times = fields.split_whitespace().skip(11).take(2);
            sum += times
                .filter_map(|word| word.parse::<u64>().ok())
                .sum::<u64>();
        }
    }
    Ok(sum)
}

/// How many file descriptors a process has open.
pub(crate) fn open_descriptors(pid: i32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path)
        .with_context(|| format!("cannot read {path}"))?
        .count())
}

/// Resident memory of a process in KiB, without guest memory: mappings for which no swap is
/// reserved (`nr` among the flags of `/proc/pid/smaps`), whether memory or a file that was mapped
/// into the guest.
pub(crate) fn resident_kib(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let (mut sum, mut resident) = (0, 0);
    for line in text.lines() {
        if let Some(kib) = kib(line, "Rss:") {
            resident = kib;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && !flags.split_whitespace().any(|flag| flag == "nr")
        {
            // The flags are a mapping's last line.
            sum += resident;
        }
    }
    Ok(sum)
}

fn kib(line: &str, key: &str) -> Option<u64> {
    line.strip_prefix(key)?
        .trim()
        .strip_suffix(" kB")?
        .trim()
        .parse()
        .ok()
}

/// Available memory of the machine, in KiB.
pub(crate) fn available_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    text.lines()
        .find_map(|line| kib(line, "MemAvailable:"))
        .context("/proc/meminfo has no MemAvailable")
}

/// Mount points of this mount namespace with their type, sorted.
pub(crate) fn mounts() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read mountinfo")?;
    let mut mounts: Vec<String> = text
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            Some(format!(
                "{} ({})",
                left.split(' ').nth(4)?,
                right.split(' ').next()?
            ))
        })
        .collect();
    mounts.sort_unstable();
    Ok(mounts)
}

/// Network interfaces of this network namespace, sorted.
pub(crate) fn links() -> Result<Vec<String>> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").context("cannot read net/dev")?;
    let mut names: Vec<String> = text
        .lines()
        .skip(2)
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Everything below `directory`, it not included; nothing if it isn't there.
pub(crate) fn tree(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            found.push(entry.path().to_string_lossy().into_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    found.sort_unstable();
    found
}

/// Whether this machine's controllers belong to cgroup v1.
pub(crate) fn has_cgroup_v1() -> bool {
    !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Control groups whose path contains `tag`.
pub(crate) fn cgroups(tag: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![Path::new("/sys/fs/cgroup").to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(tag) {
                    found.push(path.to_string_lossy().into_owned());
                }
                open.push(path);
            }
        }
    }
    found
}
