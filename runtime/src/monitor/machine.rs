//! The VM as a container's monitor has it: started by itself, or joined while another container's
//! monitor, or its heir, keeps it. Called by the monitor only; starting one is [`super::vm`]'s.

use std::{
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use lazaret_protocol::{
    frame,
    vm::{ControlReply, ControlRequest},
};

use super::{
    ContainerJob,
    vm::{CONTROL_SOCKET, Vm, VmError, VmFiles, host_error},
};
use crate::{
    log,
    process::{self, ProcessId},
    sandbox::Sandbox,
    state::StateDir,
};

/// How long a VMM may take to answer, or to end once it was told to.
pub(super) const END_TIMEOUT: Duration = Duration::from_secs(5);

/// A VM.
#[derive(Debug)]
pub(super) enum Machine {
    /// This process started it.
    Own(Vm),
    /// It was there.
    Joined(JoinedVm),
}

impl Machine {
    /// Starts the VM that the plan of `job` describes, with `share` as the files of its guest.
    ///
    /// # Errors
    /// [`VmError`].
    pub(super) fn start(job: &ContainerJob<'_>, share: &OwnedFd) -> Result<Self, VmError> {
        let plan = &job.plan;
        let mut vm = Vm::start(job.config)?;
        log::monitor_phase("VMM spawned");
        let files = VmFiles {
            console: plan.host.console.as_deref(),
            disks: &plan.host.disks,
        };
        vm.launch(plan.vm.clone(), job.config, job.dir, share, files)?;
        Ok(Self::Own(vm))
    }

    /// Joins the VM of `sandbox` for the container in `dir`.
    ///
    /// # Errors
    /// [`VmError`], if it has ended or refuses.
    pub(super) fn join(sandbox: &Sandbox, dir: &StateDir) -> Result<Self, VmError> {
        JoinedVm::hold(sandbox.vmm, dir).map(Self::Joined)
    }

    /// The VMM's process.
    ///
    /// # Errors
    /// [`VmError::Host`] when it has ended.
    pub(super) fn id(&self) -> Result<ProcessId, VmError> {
        match self {
            Self::Own(vm) => ProcessId::of(vm.pid()).map_err(host_error("examine lazaret-vmm")),
            Self::Joined(vm) => Ok(vm.vmm),
        }
    }

    /// Ends the VM, whose guest has nothing left to do, and waits until it is gone.
    pub(super) fn shut_down(self) {
        match self {
            Self::Own(vm) => vm.shut_down(),
            Self::Joined(vm) => vm.shut_down(),
        }
    }

    /// Lets it go on for the sandbox's other containers.
    pub(super) fn leave(self) {
        if let Self::Own(vm) = self {
            // Dropping it would kill it. Its lifeline closes with this process, which is at its end.
            std::mem::forget(vm);
        }
    }

    /// Finds out why the VM ended, which it has, or is about to.
    pub(super) fn lost(&mut self) -> VmError {
        match self {
            Self::Own(vm) => vm.lost(),
            Self::Joined(vm) => vm.lost(),
        }
    }
}

/// A VM that was made for another container. It lives at least as long as this.
#[derive(Debug)]
pub(super) struct JoinedVm {
    vmm: ProcessId,
    pidfd: OwnedFd,
    control: UnixStream,
}

impl JoinedVm {
    /// Holds the VM whose control socket is in the state directory `dir`.
    ///
    /// # Errors
    /// [`VmError`], if it has ended or refuses.
    fn hold(vmm: ProcessId, dir: &impl AsFd) -> Result<Self, VmError> {
        let ended = || VmError::Lost {
            reason: "the sandbox has ended".to_owned(),
        };
        let pidfd = vmm.open().ok_or_else(ended)?;
        // By way of the descriptor: a socket's path has at most 108 bytes.
        let fd = dir.as_fd().as_raw_fd();
        let mut control = UnixStream::connect(format!("/proc/self/fd/{fd}/{CONTROL_SOCKET}"))
            .map_err(|_| ended())?;
        control
            .set_read_timeout(Some(END_TIMEOUT))
            .map_err(host_error("set a deadline"))?;
        let reply = frame::write(&mut control, &ControlRequest::Hold)
            .and_then(|()| frame::read::<ControlReply>(&mut control));
        match reply {
            Ok(Ok(_)) => Ok(Self {
                vmm,
                pidfd,
                control,
            }),
            Ok(Err(message)) => Err(VmError::Refused { message }),
            Err(_) => Err(ended()),
        }
    }

    fn shut_down(mut self) {
        if frame::write(&mut self.control, &ControlRequest::Shutdown).is_ok() {
            let _ = frame::read::<ControlReply>(&mut self.control);
            process::wait_for_end(&self.pidfd, END_TIMEOUT);
        }
    }

    fn lost(&self) -> VmError {
        let reason = if process::wait_for_end(&self.pidfd, END_TIMEOUT) {
            "the sandbox's VM has ended"
        } else {
            "lost the connection to the guest agent"
        };
        VmError::Lost {
            reason: reason.to_owned(),
        }
    }
}
