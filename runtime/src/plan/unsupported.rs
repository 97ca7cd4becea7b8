//! What `config.json` can ask for and this version does not do. What the container would silently
//! lack is refused; what only this machine or the VM makes meaningless is warned of.

use oci_spec::runtime::{Hooks, Linux, LinuxSeccomp, LinuxSeccompAction, Spec};

use super::PlanError;

/// Looks for unsupported fields.
///
/// # Errors
/// [`PlanError::Unsupported`] for the first field that must be refused.
pub(super) fn check(spec: &Spec, warnings: &mut Vec<String>) -> Result<(), PlanError> {
    if let Some(hooks) = spec.hooks() {
        check_hooks(hooks)?;
    }
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

fn check_hooks(hooks: &Hooks) -> Result<(), PlanError> {
    for (name, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(PlanError::unsupported(
                format!("hooks.{name}"),
                "running hooks is",
            ));
        }
    }
    Ok(())
}

fn check_linux(linux: &Linux, warnings: &mut Vec<String>) -> Result<(), PlanError> {
    if let Some(seccomp) = linux.seccomp() {
        check_seccomp(seccomp)?;
    }
    let offsets = linux.time_offsets().as_ref();
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
        (
            "linux.memoryPolicy",
            linux.memory_policy().is_some(),
            "a memory policy is",
        ),
        (
            "linux.personality",
            linux.personality().is_some(),
            "a personality is",
        ),
        (
            "linux.timeOffsets",
            offsets.is_some_and(|offsets| !offsets.is_empty()),
            "offsetting clocks is",
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

/// A profile that allows everything is no loss; any other is the caller's wish to be protected.
fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<(), PlanError> {
    let allows = seccomp.default_action() == LinuxSeccompAction::ScmpActAllow;
    let syscalls = seccomp.syscalls().as_ref();
    if allows && syscalls.is_none_or(Vec::is_empty) {
        return Ok(());
    }
    Err(PlanError::unsupported(
        "linux.seccomp",
        "filtering system calls (podman, docker: --security-opt seccomp=unconfined) is",
    ))
}
