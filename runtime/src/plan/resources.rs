//! `linux.resources` in the guest: files of the container's cgroup. Values of cgroup v1 are
//! converted as runc converts them. What cannot be is said here as well.

use lazaret_protocol::container::Cgroup;
use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::{
    Circumstances, PlanError, devices,
    limits::{DEFAULT_PERIOD_US, Limits},
};

/// Translates `linux.resources`.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn resources(
    resources: &LinuxResources,
    limits: &Limits,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<Cgroup, PlanError> {
    let mut files = Files(Vec::new());
    if let Some(memory) = resources.memory() {
        // Swap is limited without a file being written, because a guest has none.
        files.add_limit("memory.max", memory.limit().unwrap_or(0));
        files.add_limit("memory.low", memory.reservation().unwrap_or(0));
    }
    if let Some(cpu) = resources.cpu() {
        cpu_files(cpu, &mut files)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()) {
        files.add_limit("pids.max", limit.max(-1));
    }
    hugepage_files(resources, &mut files);
    for (name, value) in &limits.guest_unified {
        files.add(name, value);
    }
    warn_of_the_rest(resources, limits, circumstances, warnings);
    let listed = resources.devices().as_deref().unwrap_or_default();
    Ok(Cgroup {
        files: files.0,
        device_rules: devices::rules(listed)?,
    })
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

fn hugepage_files(resources: &LinuxResources, files: &mut Files) {
    for limit in resources.hugepage_limits().iter().flatten() {
        files.add_limit(&format!("hugetlb.{}.max", limit.page_size()), limit.limit());
    }
}

/// Limits that a VM, or this machine's cgroups, make meaningless.
fn warn_of_the_rest(
    resources: &LinuxResources,
    limits: &Limits,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) {
    let mut warn = |field: &str, present: bool, why: &str| {
        if present {
            warnings.push(format!("linux.resources.{field}: not applied, {why}"));
        }
    };
    const GUEST: &str = "the guest's cgroups are version 2, which has no such limit";
    if let Some(memory) = resources.memory() {
        let set = |limit: Option<i64>| limit.is_some_and(|limit| limit > 0);
        warn("memory.kernel", set(memory.kernel()), GUEST);
        warn("memory.kernelTCP", set(memory.kernel_tcp()), GUEST);
        let v2 = !circumstances.host_cgroup_v1;
        warn(
            "memory.swappiness",
            v2 && limits.swappiness.is_some(),
            GUEST,
        );
        let disabled = memory.disable_oom_killer() == Some(true);
        warn("memory.disableOOMKiller", disabled, GUEST);
        let flat = memory.use_hierarchy() == Some(false);
        warn("memory.useHierarchy", flat, "cgroups are hierarchical");
    }
    if let Some(cpu) = resources.cpu() {
        let runtime = cpu.realtime_runtime().is_some_and(|value| value != 0);
        warn("cpu.realtimeRuntime", runtime, GUEST);
        let period = cpu.realtime_period().is_some_and(|value| value != 0);
        warn("cpu.realtimePeriod", period, GUEST);
        if circumstances.host_cgroup_v1 {
            // The guest has both.
            let why = "to the sandbox: the host's cgroups are version 1, which has no such limit";
            warn("cpu.burst", cpu.burst().is_some(), why);
            warn("cpu.idle", cpu.idle().is_some(), why);
        }
    }
    if let Some(block) = resources.block_io() {
        let devices = block.weight_device().iter().flatten();
        let leaf = devices.filter_map(|device| device.leaf_weight());
        let leaf = leaf.chain(block.leaf_weight()).any(|weight| weight != 0);
        warn("blockIO.leafWeight", leaf, "no kernel has it any more");
    }
    if let Some(network) = resources.network() {
        const TRAFFIC: &str = "a guest's traffic carries no marks of the host's cgroups";
        let class = network.class_id().is_some_and(|class| class != 0);
        warn("network.classID", class, TRAFFIC);
        let priorities = network.priorities().as_ref();
        let priorities = priorities.is_some_and(|list| !list.is_empty());
        warn("network.priorities", priorities, TRAFFIC);
    }
    let rdma = resources.rdma().as_ref().is_some_and(|map| !map.is_empty());
    warn("rdma", rdma, "a guest has no RDMA device");
}
