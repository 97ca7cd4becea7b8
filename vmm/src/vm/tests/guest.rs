//! VMs on `/dev/kvm` for tests: configurations, descriptors, and how to wait for the end.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use lazaret_protocol::vm::{DeviceConfig, ExitReason, Fd, VmConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    fds::Fds,
    vm::{BuildError, Vm, builder},
};

pub(crate) use super::script::{INTERRUPTS, Step, enable_interrupt, kernel, kvm, script};

/// Guest memory of each test, in MiB.
pub(crate) const MEMORY_MIB: u64 = 16;
/// How long a test waits for a guest before it fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A configuration whose descriptors are those of [`fds`].
pub(crate) fn config(vcpus: u8, devices: Vec<DeviceConfig>) -> VmConfig {
    VmConfig {
        name: "test".into(),
        kvm: Fd(0),
        kernel: Fd(1),
        initramfs: None,
        command_line: "console=none".into(),
        memory_mib: MEMORY_MIB,
        huge_pages: false,
        vcpus,
        nested: false,
        control: None,
        devices,
        spare_slots: 0,
    }
}

/// `/dev/kvm` and `kernel`.
pub(crate) fn fds(kernel: File) -> Fds {
    Fds::new(vec![kvm(), kernel.into()])
}

/// A VM with one vCPU that boots `kernel`.
pub(crate) fn boot(kernel: File, devices: Vec<DeviceConfig>) -> Result<Vm, BuildError> {
    builder::boot(&config(1, devices), &mut fds(kernel))
}

/// Waits for the end of `vm`. Panics after a minute.
pub(crate) fn wait(vm: &Vm) -> ExitReason {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(reason) = vm.end().reason() {
            return reason;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(
            !left.is_zero(),
            "the guest did not end: {:?}",
            vm.counters()
        );
        let timeout = Timespec::try_from(left).unwrap();
        let _ = poll(
            &mut [PollFd::new(&**vm.end(), PollFlags::IN)],
            Some(&timeout),
        );
    }
}
