//! How large a VM is. The rules are those of docs/resources.md.

use oci_spec::runtime::Spec;

use super::{
    Circumstances, PlanError,
    annotations::Annotations,
    limits::{DEFAULT_PERIOD_US, Limits},
};
use crate::config::{MEMORY_MIB, VCPUS};

/// Memory that a VM needs beside its container's limit, in MiB: kernel image, initramfs, agent.
const GUEST_OVERHEAD_MIB: u64 = 64;

/// The limit's part that is needed besides: the kernel describes each page of 4 KiB in 64 bytes,
/// and sizes its hash tables by memory. A little more, so that the guest shows no less than the
/// limit.
const GUEST_OVERHEAD_PART: u64 = 48;

/// Memory below which a guest has no room to work, in MiB.
const GUEST_LEAST_MIB: u64 = 96;

/// What the CRI says of a whole pod on the container that stands for it.
const CRI_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CRI_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CRI_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CRI_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";

/// Size of a VM, as far as the bundle says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) memory_mib: Option<u64>,
    pub(super) vcpus: Option<u8>,
}

/// The size that our annotations, the limits, or those of the pod ask for.
///
/// # Errors
/// [`PlanError`] for a list of CPUs or an annotation of the CRI that is none.
pub(super) fn size(
    spec: &Spec,
    limits: &Limits,
    annotations: &Annotations,
    circumstances: Circumstances<'_>,
) -> Result<Size, PlanError> {
    let limited = size_with(&Pod::of(spec)?, limits, circumstances)?;
    Ok(Size {
        memory_mib: annotations.memory_mib.or(limited.memory_mib),
        vcpus: annotations.vcpus.or(limited.vcpus),
    })
}

/// The size that limits ask for by themselves.
///
/// # Errors
/// [`PlanError`] for a list of CPUs that is none.
pub(super) fn of_limits(
    limits: &Limits,
    circumstances: Circumstances<'_>,
) -> Result<Size, PlanError> {
    size_with(&Pod::default(), limits, circumstances)
}

fn size_with(
    pod: &Pod,
    limits: &Limits,
    circumstances: Circumstances<'_>,
) -> Result<Size, PlanError> {
    let own = limits
        .memory_bytes
        .and_then(|limit| u64::try_from(limit).ok());
    let bytes = own.max(pod.memory_bytes);
    let period = limits.cpu_period_us;
    let quota = limits
        .cpu_quota_us
        .and_then(|quota| u64::try_from(quota).ok());
    let busy = quota.map(|quota| cpus_of_quota(quota, period));
    let busy = busy.max(pod.cpus);
    let listed = count(&limits.cpus)?;
    let wanted = match (busy, listed) {
        (Some(busy), Some(listed)) => Some(busy.min(listed)),
        (busy, listed) => busy.or(listed),
    };
    Ok(Size {
        memory_mib: bytes.and_then(|bytes| memory_mib(bytes, circumstances.host_memory_mib)),
        vcpus: wanted.map(|cpus| {
            let most = circumstances.host_cpus.clamp(*VCPUS.start(), *VCPUS.end());
            u8::try_from(cpus.clamp(1, most)).expect("VCPUS ends below 256")
        }),
    })
}

/// A limit above what the machine has is no wish for a VM of that size.
fn memory_mib(limit_bytes: u64, host_memory_mib: u64) -> Option<u64> {
    let limit_mib = limit_bytes.div_ceil(1 << 20);
    if limit_mib == 0 || limit_mib > host_memory_mib {
        return None;
    }
    let overhead_mib = GUEST_OVERHEAD_MIB + limit_mib / GUEST_OVERHEAD_PART;
    Some((limit_mib + overhead_mib).clamp(GUEST_LEAST_MIB, *MEMORY_MIB.end()))
}

/// As many CPUs as the quota can keep busy.
fn cpus_of_quota(quota_us: u64, period_us: Option<u64>) -> u64 {
    quota_us.div_ceil(period_us.unwrap_or(DEFAULT_PERIOD_US).max(1))
}

/// What the pod may use together; the sandbox's own container may use next to nothing.
#[derive(Debug, Default)]
struct Pod {
    memory_bytes: Option<u64>,
    cpus: Option<u64>,
}

impl Pod {
    fn of(spec: &Spec) -> Result<Self, PlanError> {
        let Some(annotations) = spec.annotations() else {
            return Ok(Self::default());
        };
        // Containerd writes 0 for what no container of the pod limits, and kubelet -1.
        let number = |name: &str| match annotations.get(name) {
            None => Ok(None),
            Some(text) => match text.parse::<i64>() {
                Ok(number) => Ok(u64::try_from(number).ok().filter(|&number| number > 0)),
                Err(_) => Err(PlanError::invalid(
                    format!("annotations[{name}]"),
                    "must be a number",
                )),
            },
        };
        // Shares are what the pod's cgroup on the host has; they say nothing about a size.
        number(CRI_SHARES)?;
        let (quota, period) = (number(CRI_QUOTA)?, number(CRI_PERIOD)?);
        Ok(Self {
            memory_bytes: number(CRI_MEMORY)?,
            cpus: quota.map(|quota| cpus_of_quota(quota, period)),
        })
    }
}

/// Largest CPU number that a list may name: more than the kernel can be built for.
const CPU_MAX: u64 = 8_191;

/// How many CPUs a list such as `0-3,8` names (`cpuset(7)`, list format); `None` if it is empty.
fn count(list: &str) -> Result<Option<u64>, PlanError> {
    let wrong = || {
        PlanError::invalid(
            "linux.resources.cpu.cpus",
            format!("{list:?} is not a list of CPUs"),
        )
    };
    let mut ranges = Vec::new();
    for part in list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u64 = first.trim().parse().map_err(|_| wrong())?;
        let last: u64 = last.trim().parse().map_err(|_| wrong())?;
        if first > last || last > CPU_MAX {
            return Err(wrong());
        }
        ranges.push((first, last));
    }
    ranges.sort_unstable();
    let (mut total, mut next) = (0, 0);
    for (first, last) in ranges {
        total += (last + 1).saturating_sub(first.max(next));
        next = next.max(last + 1);
    }
    Ok(Some(total).filter(|&total| total > 0))
}

#[cfg(test)]
mod tests;
