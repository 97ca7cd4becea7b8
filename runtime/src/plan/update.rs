//! New limits for a container that lives, by the same translation as those of its bundle. Called by
//! `update`.

use oci_spec::runtime::LinuxResources;

use super::{Circumstances, HostLimits, PlanError, host_cgroup, limits::Limits, resources, size};

/// What new limits come to.
#[derive(Debug)]
pub(crate) struct Changes {
    /// Files of the container's cgroup and what is written to each, in order.
    pub(crate) files: Vec<(String, String)>,
    /// What the whole sandbox may use.
    pub(crate) host: HostLimits,
    /// VM memory that the limit would ask for.
    pub(crate) vm_memory_mib: Option<u64>,
}

/// CPUs that all limits of a container together ask for, if they bound them.
///
/// # Errors
/// [`PlanError`], which names the field as in `config.json`.
pub(crate) fn vcpus(
    limits: &LinuxResources,
    circumstances: Circumstances<'_>,
) -> Result<Option<u8>, PlanError> {
    Ok(size::of_limits(&Limits::of(limits)?, circumstances)?.vcpus)
}

/// Translates `limits`, which has what changes and no more, for a VM that has `vm_memory_mib`.
///
/// # Errors
/// [`PlanError`], which names the field as in `config.json`.
pub(crate) fn limits(
    limits: &LinuxResources,
    vm_memory_mib: u64,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<Changes, PlanError> {
    let shared = Limits::of(limits)?;
    let cgroup = resources::resources(limits, &shared, circumstances, warnings)?;
    let size = size::of_limits(&shared, circumstances)?;
    Ok(Changes {
        files: cgroup.files,
        host: host_cgroup::host_limits(Some(limits), &shared, vm_memory_mib, circumstances)?,
        vm_memory_mib: size.memory_mib,
    })
}
