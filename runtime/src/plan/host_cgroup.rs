//! The sandbox's cgroup on the host: where it is (`linux.cgroupsPath`) and what bounds the VM as a
//! whole. Values stay as the spec has them; [`crate::host_cgroup`] turns them into the files of
//! the host's cgroups, version 1 or 2, or into properties of a systemd unit.

use std::path::{Component, Path};

use oci_spec::runtime::{LinuxBlockIo, LinuxResources, LinuxThrottleDevice, Spec};
use serde::Serialize;

use super::{
    Circumstances, PlanError, UnitProperty, limits::Limits, unit_properties::unit_properties,
};

/// What systemd puts a container in whose `cgroupsPath` names no slice.
const DEFAULT_SLICE: &str = "system.slice";

/// First part of a unit's name when `cgroupsPath` is empty.
const DEFAULT_PREFIX: &str = "lazaret";

/// Weights of block devices that the kernel's schedulers know.
const IO_WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Where the cgroup is and what it allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HostCgroup {
    /// Where it is.
    pub(crate) place: Place,
    /// What it allows.
    pub(crate) limits: HostLimits,
    /// What else a unit of systemd's is to have.
    pub(crate) properties: Vec<UnitProperty>,
}

/// Where a cgroup is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Place {
    /// A path, without `.` and `..`: from the top of the hierarchy if it is absolute, else from
    /// the caller's own cgroup as runc has it.
    Path(String),
    /// A transient unit of systemd.
    Unit {
        /// Name of the slice.
        slice: String,
        /// The slice's path in the hierarchy, absolute.
        slice_path: String,
        /// Name of the unit.
        unit: String,
    },
}

/// What the whole sandbox may use. `None` is not limited, `Some(-1)` is explicitly unlimited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct HostLimits {
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<i64>,
    /// Swap beside the memory, in bytes.
    pub(crate) swap_bytes: Option<i64>,
    /// Memory that reclaim spares, in bytes.
    pub(crate) reservation_bytes: Option<i64>,
    /// Swappiness, 0 to 100; cgroup v1 only.
    pub(crate) swappiness: Option<u64>,
    /// CPU shares of cgroup v1, 2 to 262144.
    pub(crate) cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period.
    pub(crate) cpu_quota_us: Option<i64>,
    /// The period, in microseconds.
    pub(crate) cpu_period_us: Option<u64>,
    /// Microseconds of CPU time that can be saved up; cgroup v2 only.
    pub(crate) cpu_burst_us: Option<u64>,
    /// Whether the sandbox runs only when nothing else does; cgroup v2 only.
    pub(crate) cpu_idle: Option<i64>,
    /// CPUs, in the kernel's list format; empty for all.
    pub(crate) cpus: String,
    /// Memory nodes, in the kernel's list format; empty for all.
    pub(crate) mems: String,
    /// Processes and threads.
    pub(crate) pids: Option<i64>,
    /// Weight for block devices.
    pub(crate) io_weight: Option<u16>,
    /// Weight for some block devices: `major:minor` and the weight.
    pub(crate) io_weight_devices: Vec<(String, u16)>,
    /// Throttles of block devices.
    pub(crate) io_throttles: Vec<IoThrottle>,
    /// Files of the host's cgroup v2 by name, from `linux.resources.unified`.
    pub(crate) unified: Vec<(String, String)>,
}

/// A limit on the traffic with one block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct IoThrottle {
    /// `major:minor`.
    pub(crate) device: String,
    /// What is limited.
    pub(crate) kind: IoThrottleKind,
    /// Bytes or operations in a second; 0 is no limit.
    pub(crate) rate: u64,
}

/// What a throttle limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum IoThrottleKind {
    /// Bytes read.
    ReadBps,
    /// Bytes written.
    WriteBps,
    /// Reads.
    ReadIops,
    /// Writes.
    WriteIops,
}

/// Threads and processes of the host that a sandbox has beside its container's: the VMM's for
/// vCPUs and devices, and monitors.
const PIDS_OVERHEAD: i64 = 128;

/// Memory of the host that a VM may need beside its guest's, in MiB, and as a part of the guest's.
/// The fixed part is for the VMM and monitor. Page tables are a 256th; more than that goes into what
/// the kernel keeps for each file that the guest has in its caches: not quite twice of what the
/// guest itself spends on it, so a guest that fills half of its memory with nothing else stays
/// within its bounds.
const MEMORY_OVERHEAD_MIB: u64 = 64;
const MEMORY_OVERHEAD_PART: u64 = 2;

/// The cgroup of a sandbox whose VM has `vm_memory_mib`.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn host_cgroup(
    spec: &Spec,
    limits: &Limits,
    vm_memory_mib: u64,
    circumstances: Circumstances<'_>,
) -> Result<HostCgroup, PlanError> {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let path = path.unwrap_or(Path::new(""));
    let text = path.to_str().filter(|text| !text.contains('\0'));
    let text = text.ok_or_else(|| invalid_path("must not contain a NUL character"))?;
    let (place, properties) = if circumstances.systemd_cgroup {
        (unit(text, circumstances.id)?, unit_properties(spec)?)
    } else {
        (Place::Path(clean_path(text, circumstances.id)?), Vec::new())
    };
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    Ok(HostCgroup {
        place,
        limits: host_limits(resources, limits, vm_memory_mib, circumstances)?,
        properties,
    })
}

fn invalid_path(problem: impl Into<String>) -> PlanError {
    PlanError::invalid("linux.cgroupsPath", problem)
}

/// The path without `.` and `..`, which never lead above where it starts; the id if it is empty.
fn clean_path(path: &str, id: &str) -> Result<String, PlanError> {
    if path.is_empty() {
        return Ok(id.to_owned());
    }
    let mut parts = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().unwrap_or_default()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if parts.is_empty() {
        return Err(invalid_path(format!("{path:?} is no cgroup of its own")));
    }
    let top = if path.starts_with('/') { "/" } else { "" };
    Ok(format!("{top}{}", parts.join("/")))
}

/// Reads `slice:prefix:name`.
fn unit(path: &str, id: &str) -> Result<Place, PlanError> {
    let parts: Vec<&str> = path.split(':').collect();
    let (slice, prefix, name) = match parts[..] {
        [""] => ("", DEFAULT_PREFIX, id),
        [slice, prefix, name] => (slice, prefix, name),
        _ => {
            // The words are runc's.
            return Err(invalid_path(format!(
                "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, \
                 got {path:?} instead"
            )));
        }
    };
    let slice = if slice.is_empty() {
        DEFAULT_SLICE
    } else {
        slice
    };
    let slice_path =
        expand_slice(slice).ok_or_else(|| invalid_path(format!("invalid slice name: {slice}")))?;
    let unit = format!("{prefix}-{name}.scope");
    if name.is_empty() || name.contains('/') || prefix.contains('/') {
        return Err(invalid_path(format!("{unit:?} is not the name of a unit")));
    }
    Ok(Place::Unit {
        slice: slice.to_owned(),
        slice_path,
        unit,
    })
}

/// Where systemd has a slice: `a-b.slice` is in `/a.slice/a-b.slice`.
fn expand_slice(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some("/".to_owned());
    }
    let mut path = String::new();
    let mut end = 0;
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return None;
        }
        end += part.len();
        path.push('/');
        path.push_str(&name[..end]);
        path.push_str(".slice");
        // The hyphen.
        end += 1;
    }
    Some(path)
}

/// What bounds a sandbox whose VM has `vm_memory_mib`.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn host_limits(
    resources: Option<&LinuxResources>,
    limits: &Limits,
    vm_memory_mib: u64,
    circumstances: Circumstances<'_>,
) -> Result<HostLimits, PlanError> {
    let mut host = HostLimits {
        memory_bytes: limits.memory_bytes.map(|limit| match limit {
            -1 => -1,
            _ => host_memory_bytes(vm_memory_mib),
        }),
        swap_bytes: limits.swap_bytes,
        reservation_bytes: limits.reservation_bytes,
        swappiness: limits.swappiness,
        cpu_shares: limits.cpu_shares,
        cpu_quota_us: limits.cpu_quota_us,
        cpu_period_us: limits.cpu_period_us,
        cpu_burst_us: limits.cpu_burst_us,
        cpu_idle: limits.cpu_idle,
        cpus: limits.cpus.clone(),
        mems: limits.mems.clone(),
        pids: limits.pids.map(|limit| match limit {
            -1 => -1,
            limit => limit.saturating_add(PIDS_OVERHEAD),
        }),
        ..HostLimits::default()
    };
    if let Some(block) = resources.and_then(|resources| resources.block_io().as_ref()) {
        block_io(block, &mut host)?;
    }
    for (name, value) in &limits.host_unified {
        if circumstances.host_cgroup_v1 {
            return Err(PlanError::invalid(
                format!("linux.resources.unified[{name}]"),
                "concerns devices of the host, whose cgroups are version 1",
            ));
        }
        host.unified.push((name.clone(), value.clone()));
    }
    Ok(host)
}

/// What a sandbox may use of the host's memory.
fn host_memory_bytes(vm_memory_mib: u64) -> i64 {
    let mib = vm_memory_mib + vm_memory_mib / MEMORY_OVERHEAD_PART + MEMORY_OVERHEAD_MIB;
    i64::try_from(mib << 20).unwrap_or(i64::MAX)
}

fn block_io(block: &LinuxBlockIo, host: &mut HostLimits) -> Result<(), PlanError> {
    const FIELD: &str = "linux.resources.blockIO";
    let weight = |field: &str, weight: Option<u16>| match weight {
        None | Some(0) => Ok(None),
        Some(weight) if IO_WEIGHTS.contains(&weight) => Ok(Some(weight)),
        Some(_) => Err(PlanError::invalid(
            format!("{FIELD}.{field}"),
            "must be a number from 10 to 1000",
        )),
    };
    host.io_weight = weight("weight", block.weight())?;
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        let field = format!("weightDevice[{index}]");
        if let Some(weight) = weight(&format!("{field}.weight"), device.weight())? {
            let number = device_number(&format!("{FIELD}.{field}"), device.major(), device.minor());
            host.io_weight_devices.push((number?, weight));
        }
    }
    let lists: [(&str, &Option<Vec<LinuxThrottleDevice>>, IoThrottleKind); 4] = [
        (
            "throttleReadBpsDevice",
            block.throttle_read_bps_device(),
            IoThrottleKind::ReadBps,
        ),
        (
            "throttleWriteBpsDevice",
            block.throttle_write_bps_device(),
            IoThrottleKind::WriteBps,
        ),
        (
            "throttleReadIOPSDevice",
            block.throttle_read_iops_device(),
            IoThrottleKind::ReadIops,
        ),
        (
            "throttleWriteIOPSDevice",
            block.throttle_write_iops_device(),
            IoThrottleKind::WriteIops,
        ),
    ];
    for (name, list, kind) in lists {
        for (index, device) in list.iter().flatten().enumerate() {
            let field = format!("{FIELD}.{name}[{index}]");
            host.io_throttles.push(IoThrottle {
                device: device_number(&field, device.major(), device.minor())?,
                kind,
                rate: device.rate(),
            });
        }
    }
    Ok(())
}

fn device_number(field: &str, major: i64, minor: i64) -> Result<String, PlanError> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(PlanError::invalid(field, "is not the number of a device")),
    }
}

#[cfg(test)]
mod tests;
