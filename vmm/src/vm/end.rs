//! How a VM comes to its end: whoever notices reports here, the main thread waits for it.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{Arc, OnceLock},
};

use lazaret_protocol::vm::ExitReason;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Shared by all vCPU threads and the main thread.
#[derive(Debug)]
pub struct End {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl End {
    /// No end yet.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            reason: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        }))
    }

    /// Reports why the VM is over. The first report counts.
    pub fn report(&self, reason: ExitReason) {
        let _ = self.reason.set(reason);
        // The counter cannot overflow: each vCPU writes once.
        let _ = self.event.write(1);
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.get().copied()
    }
}

/// Readable once the VM is over.
impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the event's descriptor is open as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}
