//! The limits of `linux.resources` that more than one place looks at: the guest's cgroup, the
//! host's, and the size of the VM. Where `unified` says the same as another field, `unified` counts,
//! as in runc.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::PlanError;

/// Period of `cpu.max` when the spec gives none, in microseconds: the kernel's default.
pub(super) const DEFAULT_PERIOD_US: u64 = 100_000;

/// Files that `unified` may name and that concern the host: its CPUs, memory nodes, swap and block
/// devices, which a guest has not.
const HOST_FILES: [&str; 3] = ["cpuset.cpus", "cpuset.mems", "memory.swap.max"];
const HOST_PREFIX: &str = "io.";

/// Weights of cgroup v2 for CPU time.
const CPU_WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// Highest swappiness.
const SWAPPINESS_MAX: u64 = 100;

/// The limits. `None` is not given, `Some(-1)` is explicitly none at all.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// Memory in bytes.
    pub(super) memory_bytes: Option<i64>,
    /// Swap beside the memory, in bytes.
    pub(super) swap_bytes: Option<i64>,
    /// Memory that reclaim spares, in bytes.
    pub(super) reservation_bytes: Option<i64>,
    /// Swappiness, 0 to 100.
    pub(super) swappiness: Option<u64>,
    /// CPU shares of cgroup v1.
    pub(super) cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period.
    pub(super) cpu_quota_us: Option<i64>,
    /// The period, in microseconds.
    pub(super) cpu_period_us: Option<u64>,
    /// Microseconds of CPU time that can be saved up.
    pub(super) cpu_burst_us: Option<u64>,
    /// Whether it runs only when nothing else does.
    pub(super) cpu_idle: Option<i64>,
    /// CPUs of the host, as written; empty for all.
    pub(super) cpus: String,
    /// Memory nodes of the host, as written; empty for all.
    pub(super) mems: String,
    /// Processes and threads.
    pub(super) pids: Option<i64>,
    /// Files of `unified` for the guest, by name.
    pub(super) guest_unified: Vec<(String, String)>,
    /// Files of `unified` for the host, by name.
    pub(super) host_unified: Vec<(String, String)>,
}

impl Limits {
    /// Reads them.
    ///
    /// # Errors
    /// [`PlanError`], which names the field.
    pub(super) fn of(resources: &LinuxResources) -> Result<Self, PlanError> {
        let mut limits = Self::default();
        if let Some(memory) = resources.memory() {
            limits.read_memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            limits.read_cpu(cpu);
        }
        let pids = resources.pids().map(|pids| pids.limit());
        limits.pids = pids.filter(|&limit| limit != 0).map(|limit| limit.max(-1));
        limits.read_unified(resources)?;
        Ok(limits)
    }

    fn read_memory(&mut self, memory: &LinuxMemory) -> Result<(), PlanError> {
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
        self.memory_bytes = Some(limit).filter(|&limit| limit != 0);
        self.reservation_bytes = memory.reservation().filter(|&bytes| bytes != 0);
        self.swap_bytes = swap(memory.swap().unwrap_or(0), limit)?;
        // Callers write -1, which the spec cannot say, for "not set".
        self.swappiness = memory.swappiness().filter(|&value| value != u64::MAX);
        match self.swappiness {
            Some(value) if value > SWAPPINESS_MAX => Err(PlanError::invalid(
                "linux.resources.memory.swappiness",
                format!("must be a number from 0 to {SWAPPINESS_MAX}"),
            )),
            _ => Ok(()),
        }
    }

    fn read_cpu(&mut self, cpu: &LinuxCpu) {
        self.cpu_shares = cpu.shares().filter(|&shares| shares != 0);
        self.cpu_burst_us = cpu.burst();
        self.cpu_idle = cpu.idle();
        self.cpu_quota_us = cpu.quota().filter(|&quota| quota != 0);
        self.cpu_period_us = cpu.period().filter(|&period| period != 0);
        let list = |list: &Option<String>| list.as_deref().unwrap_or_default().trim().to_owned();
        self.cpus = list(cpu.cpus());
        self.mems = list(cpu.mems());
    }

    fn read_unified(&mut self, resources: &LinuxResources) -> Result<(), PlanError> {
        let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
        // A map has no order, but the first error must be the same each time.
        unified.sort_unstable();
        for (name, value) in unified {
            if name.is_empty() || name.contains('/') || name.starts_with("cgroup.") {
                return Err(PlanError::invalid(
                    format!("linux.resources.unified[{name}]"),
                    "must be the name of a controller's file",
                ));
            }
            self.read_file(name, value);
            if name == "memory.swap.max" && number(value.trim()).is_none() {
                return Err(PlanError::invalid(
                    format!("linux.resources.unified[{name}]"),
                    "must be max or a number of bytes",
                ));
            }
            let entry = (name.clone(), value.clone());
            if name.starts_with(HOST_PREFIX) {
                self.host_unified.push(entry);
            } else if !HOST_FILES.contains(&name.as_str()) {
                self.guest_unified.push(entry);
            }
        }
        Ok(())
    }

    /// Takes a file of `unified` for the field that says the same.
    fn read_file(&mut self, name: &str, value: &str) {
        let words: Vec<&str> = value.split_whitespace().collect();
        match (name, &words[..]) {
            ("memory.max", [bytes]) => self.memory_bytes = number(bytes),
            ("memory.swap.max", [bytes]) => self.swap_bytes = number(bytes),
            ("memory.low", [bytes]) => self.reservation_bytes = number(bytes),
            ("pids.max", [limit]) => self.pids = number(limit),
            ("cpu.max", [quota]) => self.cpu_quota_us = number(quota),
            ("cpu.max", [quota, period]) => {
                self.cpu_quota_us = number(quota);
                self.cpu_period_us = period.parse().ok();
            }
            ("cpu.weight", [weight]) => self.cpu_shares = weight.parse().ok().and_then(cpu_shares),
            ("cpu.idle", [idle]) => self.cpu_idle = idle.parse().ok(),
            ("cpu.max.burst", [burst]) => self.cpu_burst_us = burst.parse().ok(),
            ("cpuset.cpus", _) => value.trim().clone_into(&mut self.cpus),
            ("cpuset.mems", _) => value.trim().clone_into(&mut self.mems),
            _ => {}
        }
    }
}

/// The fewest shares of cgroup v1 that runc turns into this weight of v2.
fn cpu_shares(weight: u64) -> Option<u64> {
    let is_weight = CPU_WEIGHTS.contains(&weight);
    is_weight.then(|| 2 + ((weight - 1) * 262_142).div_ceil(9_999))
}

/// A number of a file of cgroup v2, where `max` is none at all and a letter multiplies. What is no
/// number is left to the guest's kernel, which refuses it.
fn number(word: &str) -> Option<i64> {
    if word == "max" {
        return Some(-1);
    }
    let shift = match word.chars().last()?.to_ascii_uppercase() {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => return word.parse().ok(),
    };
    let number: i64 = word[..word.len() - 1].parse().ok()?;
    number.checked_mul(1 << shift)
}

/// Swap that the limit of memory and swap together leaves, as cgroup v2 counts it.
fn swap(swap: i64, limit: i64) -> Result<Option<i64>, PlanError> {
    let invalid = |problem: &str| PlanError::invalid("linux.resources.memory.swap", problem);
    match (swap, limit) {
        // As runc: whoever asks for unlimited memory means swap, too.
        (0, -1) | (-1, _) => Ok(Some(-1)),
        (0, _) => Ok(None),
        (_, 0 | -1) => Err(invalid(
            "cannot be limited without linux.resources.memory.limit",
        )),
        (swap, limit) if swap < limit => Err(invalid(
            "must not be less than linux.resources.memory.limit",
        )),
        (swap, limit) => Ok(Some(swap - limit)),
    }
}
