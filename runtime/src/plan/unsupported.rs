//! What `config.json` can ask for and this version does not do. What the container would silently
//! lack is refused; what only this machine or the VM makes meaningless is warned of.

use oci_spec::runtime::{Linux, Spec};

use super::PlanError;

/// Looks for unsupported fields.
///
/// # Errors
/// [`PlanError::Unsupported`] for the first field that must be refused.
pub(super) fn check(spec: &Spec, warnings: &mut Vec<String>) -> Result<(), PlanError> {
    for (field, present) in [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("zos", spec.zos().is_some()),
        ("vm", spec.vm().is_some()),
    ] {
        if present {
            warnings.push(format!("{field}: ignored, this is a Linux container"));
        }
    }
    spec.linux()
        .as_ref()
        .map_or(Ok(()), |linux| check_linux(linux, warnings))
}

fn check_linux(linux: &Linux, warnings: &mut Vec<String>) -> Result<(), PlanError> {
    for (field, present, what) in [
        (
            "linux.intelRdt",
            linux.intel_rdt().is_some(),
            "cache and bandwidth allocation is",
        ),
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|map| !map.is_empty()),
            "moving network devices is",
        ),
    ] {
        if present {
            return Err(PlanError::unsupported(field, what));
        }
    }
    if linux
        .mount_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        warnings.push("linux.mountLabel: not applied, the guest kernel has no SELinux".to_owned());
    }
    Ok(())
}
