//! New limits for a container that lives, by the same translation as those of its bundle. Called by
//! `update`.

use oci_spec::runtime::{Linux, LinuxResources};

use super::{Circumstances, PlanError, resources};

/// What new limits come to.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Files of the container's cgroup and what is written to each, in order.
    pub(crate) files: Vec<(String, String)>,
    /// VM memory that the limit would ask for.
    pub(crate) vm_memory_mib: Option<u64>,
    /// CPUs that the quota would ask for.
    pub(crate) vm_vcpus: Option<u8>,
    /// CPUs of the host the VM is to be bound to; empty for no change.
    pub(crate) host_cpus: Vec<usize>,
}

/// Translates `limits`, which has what changes and no more.
///
/// # Errors
/// [`PlanError`], which names the field as in `config.json`.
pub(crate) fn limits(
    limits: &LinuxResources,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<Limits, PlanError> {
    let mut linux = Linux::default();
    linux.set_resources(Some(limits.clone()));
    let resources = resources::resources(Some(&linux), circumstances, warnings)?;
    Ok(Limits {
        files: resources.cgroup.files,
        vm_memory_mib: resources.vm_memory_mib,
        vm_vcpus: resources.vm_vcpus,
        host_cpus: resources.host_cpus,
    })
}
