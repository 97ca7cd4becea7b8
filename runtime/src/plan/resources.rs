//! `linux.resources`: files of the container's cgroup in the guest, the size of the VM, and the
//! CPUs of the host. Values of cgroup v1 are converted as runc converts them.

use lazaret_protocol::container::Cgroup;
use oci_spec::runtime::{Linux, LinuxCpu, LinuxMemory, LinuxResources};

use super::{Circumstances, PlanError, devices};
use crate::config::{MEMORY_MIB, VCPUS};

/// Memory that a VM needs beside its container's limit, in MiB: kernel image, page structures of
/// a small guest, agent, and page cache of the share.
const GUEST_OVERHEAD_MIB: u64 = 64;

/// Memory below which a guest has no room to work, in MiB.
const GUEST_LEAST_MIB: u64 = 96;

/// Period of `cpu.max` when the spec gives none, in microseconds: the kernel's default.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What the resources come to.
pub(super) struct Resources {
    pub(super) cgroup: Cgroup,
    /// VM memory that the limit asks for.
    pub(super) vm_memory_mib: Option<u64>,
    /// CPUs that the quota asks for.
    pub(super) vm_vcpus: Option<u8>,
    /// CPUs of the host the VM is bound to; empty for all.
    pub(super) host_cpus: Vec<usize>,
}

/// Translates `linux.resources`.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn resources(
    linux: Option<&Linux>,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<Resources, PlanError> {
    let empty = LinuxResources::default();
    let resources = linux
        .and_then(|linux| linux.resources().as_ref())
        .unwrap_or(&empty);
    let mut files = Files(Vec::new());
    let mut result = Resources {
        cgroup: Cgroup::default(),
        vm_memory_mib: None,
        vm_vcpus: None,
        host_cpus: Vec::new(),
    };
    if let Some(memory) = resources.memory() {
        memory_files(memory, &mut files)?;
        result.vm_memory_mib = vm_memory_mib(memory, circumstances.host_memory_mib);
    }
    if let Some(cpu) = resources.cpu() {
        cpu_files(cpu, &mut files)?;
        result.vm_vcpus = vm_vcpus(cpu, circumstances.host_cpus);
        result.host_cpus = host_cpus(cpu)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()) {
        match limit {
            0 => {}
            1.. => files.add("pids.max", limit),
            _ => files.add("pids.max", "max"),
        }
    }
    hugepage_files(resources, &mut files);
    unified_files(resources, &mut files)?;
    warn_of_the_rest(resources, warnings);
    let listed = resources.devices().as_deref().unwrap_or_default();
    result.cgroup = Cgroup {
        files: files.0,
        device_rules: devices::rules(listed)?,
    };
    Ok(result)
}

struct Files(Vec<(String, String)>);

impl Files {
    fn add(&mut self, name: &str, value: impl ToString) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    /// A limit in bytes: 0 is not set, -1 is none at all.
    fn add_limit(&mut self, name: &str, bytes: i64) {
        match bytes {
            0 => {}
            -1 => self.add(name, "max"),
            bytes => self.add(name, bytes),
        }
    }
}

fn memory_files(memory: &LinuxMemory, files: &mut Files) -> Result<(), PlanError> {
    for (name, value) in [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
        ("swap", memory.swap()),
    ] {
        if value.is_some_and(|bytes| bytes < -1) {
            return Err(PlanError::invalid(
                format!("linux.resources.memory.{name}"),
                "must be -1 or a number of bytes",
            ));
        }
    }
    let limit = memory.limit().unwrap_or(0);
    check_swap(memory.swap().unwrap_or(0), limit)?;
    files.add_limit("memory.max", limit);
    files.add_limit("memory.low", memory.reservation().unwrap_or(0));
    Ok(())
}

/// Checks the limit of memory and swap together. It is then met without a file being written,
/// because a guest has no swap.
fn check_swap(swap: i64, limit: i64) -> Result<(), PlanError> {
    let invalid = |problem: &str| PlanError::invalid("linux.resources.memory.swap", problem);
    match (swap, limit) {
        (0 | -1, _) => Ok(()),
        (_, 0 | -1) => Err(invalid(
            "cannot be limited without linux.resources.memory.limit",
        )),
        (swap, limit) if swap < limit => Err(invalid(
            "must not be less than linux.resources.memory.limit",
        )),
        _ => Ok(()),
    }
}

/// A limit above what the machine has is no wish for a VM of that size.
fn vm_memory_mib(memory: &LinuxMemory, host_memory_mib: u64) -> Option<u64> {
    let limit_mib = u64::try_from(memory.limit()?).ok()?.div_ceil(1 << 20);
    if limit_mib == 0 || limit_mib > host_memory_mib {
        return None;
    }
    Some((limit_mib + GUEST_OVERHEAD_MIB).clamp(GUEST_LEAST_MIB, *MEMORY_MIB.end()))
}

fn cpu_files(cpu: &LinuxCpu, files: &mut Files) -> Result<(), PlanError> {
    match cpu.shares() {
        None | Some(0) => {}
        Some(shares) if (2..=262_144).contains(&shares) => {
            // Maps 2…262144 onto 1…10000, as runc.
            files.add("cpu.weight", 1 + (shares - 2) * 9_999 / 262_142);
        }
        Some(_) => {
            return Err(PlanError::invalid(
                "linux.resources.cpu.shares",
                "must be a number from 2 to 262144",
            ));
        }
    }
    if let Some(idle) = cpu.idle() {
        files.add("cpu.idle", idle);
    }
    let (quota, period) = (cpu.quota().unwrap_or(0), cpu.period().unwrap_or(0));
    if quota != 0 || period != 0 {
        let quota = match quota {
            1.. => quota.to_string(),
            _ => "max".to_owned(),
        };
        let period = if period == 0 {
            DEFAULT_PERIOD_US
        } else {
            period
        };
        files.add("cpu.max", format!("{quota} {period}"));
    }
    if let Some(burst) = cpu.burst() {
        files.add("cpu.max.burst", burst);
    }
    Ok(())
}

/// As many CPUs as the quota can keep busy, but not more than the machine has.
fn vm_vcpus(cpu: &LinuxCpu, host_cpus: u64) -> Option<u8> {
    let quota = u64::try_from(cpu.quota()?)
        .ok()
        .filter(|&quota| quota > 0)?;
    let period = cpu
        .period()
        .filter(|&period| period > 0)
        .unwrap_or(DEFAULT_PERIOD_US);
    let most = host_cpus.clamp(*VCPUS.start(), *VCPUS.end());
    let vcpus = quota.div_ceil(period).clamp(1, most);
    Some(u8::try_from(vcpus).expect("VCPUS ends below 256"))
}

/// Largest CPU number that a list may name: what `sched_setaffinity(2)` takes with libc's type.
const HOST_CPU_MAX: usize = 1_023;

/// Reads a list such as `0-3,8` (`cpuset(7)`, list format).
fn host_cpus(cpu: &LinuxCpu) -> Result<Vec<usize>, PlanError> {
    let list = cpu.cpus().as_deref().map_or("", str::trim);
    let wrong = || {
        PlanError::invalid(
            "linux.resources.cpu.cpus",
            format!("{list:?} is not a list of CPUs"),
        )
    };
    let mut cpus = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last > HOST_CPU_MAX {
            return Err(wrong());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

fn hugepage_files(resources: &LinuxResources, files: &mut Files) {
    for limit in resources.hugepage_limits().iter().flatten() {
        files.add_limit(&format!("hugetlb.{}.max", limit.page_size()), limit.limit());
    }
}

fn unified_files(resources: &LinuxResources, files: &mut Files) -> Result<(), PlanError> {
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort_unstable();
    for (name, value) in unified {
        if name.is_empty() || name.contains('/') || name.starts_with("cgroup.") {
            return Err(PlanError::invalid(
                format!("linux.resources.unified[{name}]"),
                "must be the name of a controller's file",
            ));
        }
        files.add(name, value);
    }
    Ok(())
}

/// Limits that concern the host's devices, or that cgroup v2 does not have.
fn warn_of_the_rest(resources: &LinuxResources, warnings: &mut Vec<String>) {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    for (field, present) in [
        ("blockIO", resources.block_io().is_some()),
        ("network", resources.network().is_some()),
        (
            "rdma",
            resources.rdma().as_ref().is_some_and(|map| !map.is_empty()),
        ),
        (
            "memory.kernel",
            memory.is_some_and(|memory| memory.kernel().is_some_and(|limit| limit > 0)),
        ),
        (
            "memory.kernelTCP",
            memory.is_some_and(|memory| memory.kernel_tcp().is_some_and(|limit| limit > 0)),
        ),
        (
            "memory.swappiness",
            memory.is_some_and(|memory| memory.swappiness().is_some()),
        ),
        (
            "memory.disableOOMKiller",
            memory.is_some_and(|memory| memory.disable_oom_killer() == Some(true)),
        ),
        (
            "cpu.realtimeRuntime",
            cpu.is_some_and(|cpu| cpu.realtime_runtime().is_some_and(|value| value != 0)),
        ),
        (
            "cpu.realtimePeriod",
            cpu.is_some_and(|cpu| cpu.realtime_period().is_some_and(|value| value != 0)),
        ),
        (
            "cpu.mems",
            cpu.is_some_and(|cpu| cpu.mems().as_ref().is_some_and(|mems| !mems.is_empty())),
        ),
    ] {
        if present {
            warnings.push(format!("linux.resources.{field}: not applied"));
        }
    }
}
