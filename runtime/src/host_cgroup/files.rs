//! A sandbox's limits as files of the host's cgroups. Values of cgroup v1 become those of v2 as in
//! runc.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{CgroupError, write_file};
use crate::plan::{self, HostLimits, IoThrottleKind};

/// Period of `cpu.max` when the spec gives none, in microseconds: the kernel's default.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What is to be written to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LimitFile {
    /// Controller whose hierarchy it is in, with cgroup v1.
    pub(super) controller: &'static str,
    /// Field of the spec.
    pub(super) field: &'static str,
    /// Names and values; the first that the kernel has is written.
    pub(super) choices: Vec<(String, String)>,
    /// Whether a kernel without it does no harm.
    pub(super) optional: bool,
}

impl LimitFile {
    fn new(
        controller: &'static str,
        field: &'static str,
        name: &str,
        value: impl ToString,
    ) -> Self {
        Self {
            controller,
            field,
            choices: vec![(name.to_owned(), value.to_string())],
            optional: false,
        }
    }

    fn or(mut self, name: &str, value: impl ToString) -> Self {
        self.choices.push((name.to_owned(), value.to_string()));
        self
    }

    fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Writes it to the group at `path`.
    ///
    /// # Errors
    /// [`CgroupError::Limit`].
    pub(super) fn write(&self, path: &Path) -> Result<(), CgroupError> {
        let mut missing = io::Error::from(io::ErrorKind::NotFound);
        for (name, value) in &self.choices {
            match write_file(&path.join(name), value) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing = error,
                Err(error) => return Err(self.error_of(&path.join(name), value, error)),
                Ok(()) => return Ok(()),
            }
        }
        if self.optional {
            return Ok(());
        }
        Err(self.error(path, missing))
    }

    /// That it could not be written to the group at `path`.
    pub(super) fn error(&self, path: &Path, source: io::Error) -> CgroupError {
        let (name, value) = self.choices.last().expect("there is always a choice");
        self.error_of(&path.join(name), value, source)
    }

    fn error_of(&self, path: &Path, value: &str, source: io::Error) -> CgroupError {
        CgroupError::Limit {
            field: self.field,
            value: value.to_owned(),
            path: PathBuf::from(path),
            source,
        }
    }
}

const LIMIT: &str = "linux.resources.memory.limit";
const SWAP: &str = "linux.resources.memory.swap";
const RESERVATION: &str = "linux.resources.memory.reservation";
const QUOTA: &str = "linux.resources.cpu.quota";
const IO_WEIGHT: &str = "linux.resources.blockIO.weight";
const IO_WEIGHT_DEVICE: &str = "linux.resources.blockIO.weightDevice";

/// All limits but [`cpu_time`].
pub(super) fn of(limits: &HostLimits, is_v1: bool) -> Vec<LimitFile> {
    let mut files = if is_v1 { v1(limits) } else { v2(limits) };
    let pids = limits.pids.map(max);
    files.extend(
        pids.map(|limit| LimitFile::new("pids", "linux.resources.pids", "pids.max", limit)),
    );
    for (name, field, list) in [
        ("cpuset.cpus", "linux.resources.cpu.cpus", &limits.cpus),
        ("cpuset.mems", "linux.resources.cpu.mems", &limits.mems),
    ] {
        if !list.is_empty() {
            files.push(LimitFile::new("cpuset", field, name, list));
        }
    }
    files
}

/// A number as cgroup v2 has it.
fn max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        limit => limit.to_string(),
    }
}

/// CPU shares of cgroup v1 as a weight of v2: 2…262144 is mapped onto 1…10000.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// A weight for block devices of cgroup v1 as one of v2: 10…1000 is mapped onto 1…10000.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1_000)) - 10) * 9_999 / 990
}

fn v2(limits: &HostLimits) -> Vec<LimitFile> {
    let mut files = Vec::new();
    let memory = [
        // A kernel that does not count swap limits none either.
        (SWAP, "memory.swap.max", limits.swap_bytes, true),
        (LIMIT, "memory.max", limits.memory_bytes, false),
        (RESERVATION, "memory.low", limits.reservation_bytes, false),
    ];
    for (field, name, bytes, optional) in memory {
        if let Some(bytes) = bytes {
            let mut file = LimitFile::new("memory", field, name, max(bytes));
            file.optional = optional;
            files.push(file);
        }
    }
    if let Some(weight) = limits.io_weight {
        let file = LimitFile::new("io", IO_WEIGHT, "io.bfq.weight", weight);
        files.push(file.or("io.weight", io_weight(weight)));
    }
    for (device, weight) in &limits.io_weight_devices {
        let value = format!("{device} {weight}");
        let file = LimitFile::new("io", IO_WEIGHT_DEVICE, "io.bfq.weight", value);
        files.push(file.or("io.weight", format!("{device} {}", io_weight(*weight))));
    }
    for throttle in &limits.io_throttles {
        let key = match throttle.kind {
            IoThrottleKind::ReadBps => "rbps",
            IoThrottleKind::WriteBps => "wbps",
            IoThrottleKind::ReadIops => "riops",
            IoThrottleKind::WriteIops => "wiops",
        };
        let rate = match throttle.rate {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let value = format!("{} {key}={rate}", throttle.device);
        files.push(LimitFile::new(
            "io",
            field_of(throttle.kind),
            "io.max",
            value,
        ));
    }
    if let Some(shares) = limits.cpu_shares {
        let field = "linux.resources.cpu.shares";
        let weight = cpu_weight(shares);
        files.push(LimitFile::new("cpu", field, "cpu.weight", weight));
    }
    if let Some(idle) = limits.cpu_idle {
        let field = "linux.resources.cpu.idle";
        files.push(LimitFile::new("cpu", field, "cpu.idle", idle));
    }
    for (name, value) in &limits.unified {
        files.push(LimitFile::new("io", "linux.resources.unified", name, value));
    }
    files
}

fn field_of(kind: IoThrottleKind) -> &'static str {
    match kind {
        IoThrottleKind::ReadBps => "linux.resources.blockIO.throttleReadBpsDevice",
        IoThrottleKind::WriteBps => "linux.resources.blockIO.throttleWriteBpsDevice",
        IoThrottleKind::ReadIops => "linux.resources.blockIO.throttleReadIOPSDevice",
        IoThrottleKind::WriteIops => "linux.resources.blockIO.throttleWriteIOPSDevice",
    }
}

fn v1(limits: &HostLimits) -> Vec<LimitFile> {
    let mut files = Vec::new();
    let mut memory = |field, name: &str, bytes: Option<i64>, optional| {
        if let Some(bytes) = bytes {
            let file = LimitFile::new("memory", field, name, bytes);
            files.push(if optional { file.optional() } else { file });
        }
    };
    memory(LIMIT, "memory.limit_in_bytes", limits.memory_bytes, false);
    // Here swap is limited together with memory.
    let both = limits.swap_bytes.map(|swap| match limits.memory_bytes {
        Some(memory @ 0..) if swap >= 0 => memory.saturating_add(swap),
        _ => -1,
    });
    memory(SWAP, "memory.memsw.limit_in_bytes", both, true);
    let reservation = limits.reservation_bytes;
    memory(
        RESERVATION,
        "memory.soft_limit_in_bytes",
        reservation,
        false,
    );
    if let Some(swappiness) = limits.swappiness {
        let field = "linux.resources.memory.swappiness";
        files.push(LimitFile::new(
            "memory",
            field,
            "memory.swappiness",
            swappiness,
        ));
    }
    if let Some(weight) = limits.io_weight {
        let file = LimitFile::new("blkio", IO_WEIGHT, "blkio.weight", weight);
        files.push(file.or("blkio.bfq.weight", weight));
    }
    for (device, weight) in &limits.io_weight_devices {
        let value = format!("{device} {weight}");
        let file = LimitFile::new("blkio", IO_WEIGHT_DEVICE, "blkio.weight_device", &value);
        files.push(file.or("blkio.bfq.weight_device", &value));
    }
    for throttle in &limits.io_throttles {
        let name = match throttle.kind {
            IoThrottleKind::ReadBps => "blkio.throttle.read_bps_device",
            IoThrottleKind::WriteBps => "blkio.throttle.write_bps_device",
            IoThrottleKind::ReadIops => "blkio.throttle.read_iops_device",
            IoThrottleKind::WriteIops => "blkio.throttle.write_iops_device",
        };
        let value = format!("{} {}", throttle.device, throttle.rate);
        files.push(LimitFile::new(
            "blkio",
            field_of(throttle.kind),
            name,
            value,
        ));
    }
    if let Some(shares) = limits.cpu_shares {
        let field = "linux.resources.cpu.shares";
        files.push(LimitFile::new("cpu", field, "cpu.shares", shares));
    }
    files
}

/// The limits on CPU time.
pub(super) fn cpu_time(limits: &plan::HostLimits, is_v1: bool) -> Vec<LimitFile> {
    let mut files = Vec::new();
    let (quota, period) = (limits.cpu_quota_us, limits.cpu_period_us);
    if is_v1 {
        let field = "linux.resources.cpu.period";
        files.extend(period.map(|us| LimitFile::new("cpu", field, "cpu.cfs_period_us", us)));
        files.extend(quota.map(|us| LimitFile::new("cpu", QUOTA, "cpu.cfs_quota_us", us)));
        return files;
    }
    if quota.is_some() || period.is_some() {
        let quota = max(quota.unwrap_or(-1));
        let value = format!("{quota} {}", period.unwrap_or(DEFAULT_PERIOD_US));
        files.push(LimitFile::new("cpu", QUOTA, "cpu.max", value));
    }
    if let Some(burst) = limits.cpu_burst_us {
        let field = "linux.resources.cpu.burst";
        files.push(LimitFile::new("cpu", field, "cpu.max.burst", burst));
    }
    files
}
