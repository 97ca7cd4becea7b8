//! The figures of a container, from the files of its cgroup in the guest to the JSON that runc
//! prints (`types/events.go` of runc; how cgroup v2 is mapped onto it, `libcontainer/cgroups/fs2`).
//! The guest's kernel speaks through the agent: what does not parse is left out.

use std::collections::BTreeMap;

use lazaret_protocol::agent::{Answer, Request};
use serde::Serialize;

use crate::{
    agent::{Agent, AgentError},
    state::StateDir,
};

/// Sizes of huge pages on x86-64.
const HUGE_PAGES: [&str; 2] = ["2MB", "1GB"];

/// The files, but for those about huge pages.
const FILES: [&str; 15] = [
    "cpu.stat",
    "cpu.pressure",
    "cpuset.cpus.effective",
    "cpuset.mems.effective",
    "memory.stat",
    "memory.current",
    "memory.max",
    "memory.peak",
    "memory.swap.current",
    "memory.swap.max",
    "memory.pressure",
    "pids.current",
    "pids.max",
    "io.stat",
    "io.pressure",
];

/// `data` of an event of type `stats`.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Stats {
    cpu: Cpu,
    cpuset: Cpuset,
    memory: Memory,
    pids: Pids,
    blkio: Blkio,
    hugetlb: BTreeMap<&'static str, Hugetlb>,
    intel_rdt: IntelRdt,
    /// runc's figures of veth pairs it made itself, which it has not done for years.
    network_interfaces: Option<()>,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Cpu {
    usage: CpuUsage,
    throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// In nanoseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
struct CpuUsage {
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    kernel: u64,
    user: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Throttling {
    #[serde(skip_serializing_if = "is_zero")]
    periods: u64,
    #[serde(skip_serializing_if = "is_zero")]
    throttled_periods: u64,
    /// In nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    throttled_time: u64,
}

/// What cgroup v1 knows of cpusets; with v2 the flags are all zero.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Cpuset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u16>,
    cpu_exclusive: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mems: Vec<u16>,
    mem_hardwall: u64,
    mem_exclusive: u64,
    memory_migrate: u64,
    memory_spread_page: u64,
    memory_spread_slab: u64,
    memory_pressure: u64,
    sched_load_balance: u64,
    sched_relax_domain_level: i64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Memory {
    #[serde(skip_serializing_if = "is_zero")]
    cache: u64,
    usage: MemoryEntry,
    swap: MemoryEntry,
    kernel: MemoryEntry,
    #[serde(rename = "kernelTCP")]
    kernel_tcp: MemoryEntry,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    raw: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

/// In bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize)]
struct MemoryEntry {
    limit: u64,
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    #[serde(skip_serializing_if = "is_zero")]
    max: u64,
    failcnt: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limit: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Blkio {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_service_bytes_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    io_serviced_recursive: Vec<BlkioEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Pressure>,
}

#[derive(Debug, PartialEq, Serialize)]
struct BlkioEntry {
    #[serde(skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    minor: u64,
    op: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    value: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Hugetlb {
    #[serde(skip_serializing_if = "is_zero")]
    usage: u64,
    failcnt: u64,
}

/// A guest has no allocation of caches or bandwidth.
#[derive(Debug, Default, PartialEq, Serialize)]
struct IntelRdt {}

/// Pressure stall information (`Documentation/accounting/psi.rst`).
#[derive(Debug, Default, PartialEq, Serialize)]
struct Pressure {
    some: PressureShare,
    full: PressureShare,
}

/// Averages in per cent, the total in microseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
struct PressureShare {
    avg10: f64,
    avg60: f64,
    avg300: f64,
    total: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Reads the figures of the container in `dir`.
///
/// # Errors
/// [`AgentError`].
pub(super) fn read(dir: &StateDir) -> Result<Stats, AgentError> {
    let mut names = FILES.map(str::to_owned).to_vec();
    for size in HUGE_PAGES {
        names.push(format!("hugetlb.{size}.current"));
        names.push(format!("hugetlb.{size}.events"));
    }
    Ok(stats(&Files::read(dir, names)?))
}

/// How many processes of the container were killed for want of memory so far.
///
/// # Errors
/// [`AgentError`].
pub(super) fn oom_kills(dir: &StateDir) -> Result<u64, AgentError> {
    let files = Files::read(dir, vec!["memory.events".to_owned()])?;
    Ok(files.value("memory.events", "oom_kill"))
}

/// Files of a cgroup by their names.
#[derive(Debug, Default)]
struct Files(BTreeMap<String, String>);

impl Files {
    fn read(dir: &StateDir, names: Vec<String>) -> Result<Self, AgentError> {
        let request = Request::ReadCgroup {
            container: dir.id().as_str().to_owned(),
            files: names.clone(),
        };
        match Agent::new(dir).call(&request)? {
            Answer::Files(contents) if contents.len() == names.len() => {
                let found = names.into_iter().zip(contents);
                Ok(Self(
                    found
                        .filter_map(|(name, text)| Some((name, text?)))
                        .collect(),
                ))
            }
            _ => Err(AgentError::Unexpected),
        }
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A file with one number, or `max`, which is the largest.
    fn number(&self, name: &str) -> Option<u64> {
        match self.text(name).trim() {
            "max" => Some(u64::MAX),
            number => number.parse().ok(),
        }
    }

    /// The number after `key` in a file of keys and values; 0 if there is none.
    fn value(&self, name: &str, key: &str) -> u64 {
        keyed(self.text(name))
            .find(|(found, _)| *found == key)
            .map_or(0, |(_, value)| value)
    }
}

fn keyed(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

fn stats(files: &Files) -> Stats {
    let hugetlb = HUGE_PAGES.into_iter().filter_map(|size| {
        let usage = files.number(&format!("hugetlb.{size}.current"))?;
        let failcnt = files.value(&format!("hugetlb.{size}.events"), "max");
        Some((size, Hugetlb { usage, failcnt }))
    });
    Stats {
        cpu: cpu(files),
        cpuset: Cpuset {
            cpus: list(files.text("cpuset.cpus.effective")),
            mems: list(files.text("cpuset.mems.effective")),
            ..Cpuset::default()
        },
        memory: memory(files),
        pids: Pids {
            current: files.number("pids.current").unwrap_or(0),
            // No limit is 0 here, as ever in runc.
            limit: files
                .number("pids.max")
                .filter(|&limit| limit != u64::MAX)
                .unwrap_or(0),
        },
        blkio: blkio(files),
        hugetlb: hugetlb.collect(),
        intel_rdt: IntelRdt {},
        network_interfaces: None,
    }
}

fn cpu(files: &Files) -> Cpu {
    let value = |key| files.value("cpu.stat", key);
    let nanos = |key| value(key).saturating_mul(1000);
    Cpu {
        usage: CpuUsage {
            total: nanos("usage_usec"),
            kernel: nanos("system_usec"),
            user: nanos("user_usec"),
        },
        throttling: Throttling {
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_time: nanos("throttled_usec"),
        },
        psi: pressure(files.text("cpu.pressure")),
    }
}

fn memory(files: &Files) -> Memory {
    let number = |name| files.number(name).unwrap_or(0);
    let usage = MemoryEntry {
        limit: number("memory.max"),
        usage: number("memory.current"),
        max: number("memory.peak"),
        failcnt: 0,
    };
    let (swap_limit, swap_usage) = (number("memory.swap.max"), number("memory.swap.current"));
    let raw: BTreeMap<_, _> = keyed(files.text("memory.stat"))
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        // Memory and swap together, as cgroup v1 counts.
        swap: MemoryEntry {
            limit: swap_limit.saturating_add(usage.limit),
            usage: swap_usage.saturating_add(usage.usage),
            max: 0,
            failcnt: 0,
        },
        kernel: MemoryEntry::default(),
        kernel_tcp: MemoryEntry::default(),
        raw,
        psi: pressure(files.text("memory.pressure")),
    }
}

/// `io.stat` in the two tables of cgroup v1 that it has figures for.
fn blkio(files: &Files) -> Blkio {
    let mut blkio = Blkio {
        psi: pressure(files.text("io.pressure")),
        ..Blkio::default()
    };
    for line in files.text("io.stat").lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|device| {
            let (major, minor) = device.split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        let Some((major, minor)) = device else {
            continue;
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let (table, op) = match key {
                "rbytes" => (&mut blkio.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut blkio.io_service_bytes_recursive, "Write"),
                "rios" => (&mut blkio.io_serviced_recursive, "Read"),
                "wios" => (&mut blkio.io_serviced_recursive, "Write"),
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                table.push(BlkioEntry {
                    major,
                    minor,
                    op,
                    value,
                });
            }
        }
    }
    blkio
}

/// `None` from a kernel that does not account for it.
fn pressure(text: &str) -> Option<Pressure> {
    let share = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut share = PressureShare::default();
        for (key, value) in line
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
        {
            match key {
                "avg10" => share.avg10 = value.parse().ok()?,
                "avg60" => share.avg60 = value.parse().ok()?,
                "avg300" => share.avg300 = value.parse().ok()?,
                "total" => share.total = value.parse().ok()?,
                _ => {}
            }
        }
        Some(share)
    };
    Some(Pressure {
        some: share("some ")?,
        // The CPU has none with old kernels.
        full: share("full ").unwrap_or_default(),
    })
}

/// Numbers of a list such as `0-3,8`; a guest has fewer CPUs than `LIST_MAX`.
fn list(text: &str) -> Vec<u16> {
    const LIST_MAX: u16 = 1024;
    let mut numbers = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) {
            numbers.extend(first..=last.min(LIST_MAX));
        }
    }
    numbers
}

#[cfg(test)]
mod tests;
