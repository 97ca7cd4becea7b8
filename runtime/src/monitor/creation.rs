//! The hooks that run while a container is made: `prestart` and `createRuntime` in the mount
//! namespace of the caller, `createContainer` in the monitor's, whose mounts are what the guest is
//! going to see. They come before the root file system is cloned for the guest, so that what they
//! mount in it comes along. Called by the monitor of a container.

use std::{
    io::PipeWriter,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::fs::{Mode, OFlags};

use super::{ContainerJob, MonitorError, host_error};
use crate::{
    hooks::{self, Place, State},
    plan::HostHooks,
    signals,
    state::Phase,
};

/// The caller's mount namespace, if hooks are going to need it. To be asked for before it is left.
///
/// # Errors
/// [`MonitorError::Host`].
pub(super) fn host_mounts(hooks: &HostHooks) -> Result<Option<OwnedFd>, MonitorError> {
    if !hooks.at_creation() {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())
        .map(Some)
        .map_err(host_error("open the mount namespace"))
}

/// Runs the hooks, until the caller, at the other end of `report`, has gone. The record is written
/// first, because they may ask for the container's state.
///
/// # Errors
/// [`MonitorError::Hook`] for the first that fails.
pub(super) fn run_hooks(
    job: &mut ContainerJob<'_>,
    host_mounts: &OwnedFd,
    report: &PipeWriter,
) -> Result<(), MonitorError> {
    job.record.phase = Phase::Creating;
    job.dir.write(&job.record)?;
    job.record.phase = Phase::Created;
    let interrupts = signals::open_interrupts().map_err(host_error("receive signals"))?;
    let interrupts = [report.as_fd(), interrupts.as_fd()];
    let record = &job.record;
    let state = State {
        oci_version: &record.oci_version,
        id: job.dir.id().as_str(),
        status: "creating",
        pid: record.monitor.pid,
        bundle: &record.bundle,
        annotations: &record.annotations,
    };
    let host = Place {
        mount_namespace: Some(host_mounts.as_fd()),
        directory: Some(&record.bundle),
    };
    let own = Place {
        mount_namespace: None,
        directory: Some(&record.rootfs),
    };
    let wanted = &job.plan.host.hooks;
    for (list, hooks, place) in [
        ("prestart", &wanted.prestart, host),
        ("createRuntime", &wanted.create_runtime, host),
        ("createContainer", &wanted.create_container, own),
    ] {
        hooks::run(list, hooks, state, place, &interrupts)?;
    }
    Ok(())
}
