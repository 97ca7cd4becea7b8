//! The virtio-mmio transport, virtio 1.3 §4.2, version 2 registers only.
//!
//! A [`Slot`] is a window of registers in the guest's address space. The accesses of a running
//! driver (interrupt status and acknowledgement, a notification without ioeventfd) take no lock;
//! all others go to the slot's [`Transport`], which owns the device. Nothing here knows a device
//! by name, or KVM.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{device::VirtioDevice, interrupt::Interrupt};

mod queues;
mod registers;
mod save;
#[cfg(test)]
mod tests;
mod transport;

pub use save::{TransportRestoreError, TransportState};
pub use transport::Transport;

/// Guest address of the first slot, in the 32-bit hole.
pub const SLOTS_START: u64 = 0xd000_0000;
/// Length of a slot's register window: a page, so that no two devices share one.
pub const SLOT_BYTES: u64 = 4096;

/// How a queue's notifications reach its event without leaving to the VMM: KVM's ioeventfd.
pub trait Doorbells: Send {
    /// Makes a 32-bit write of `value` at guest address `address` signal `event`.
    ///
    /// # Errors
    /// When the host refuses. Notifications then take the slower way through the VMM.
    fn connect(&self, address: u64, value: u32, event: &EventFd) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect).
    fn disconnect(&self, address: u64, value: u32, event: &EventFd);
}

/// A virtio-mmio device as the guest sees it.
#[derive(Debug)]
pub struct Slot {
    interrupt: Arc<Interrupt>,
    /// One event per queue.
    notifiers: Arc<[Arc<EventFd>]>,
    transport: Mutex<Transport>,
}

impl Slot {
    /// Puts `device` into the slot at guest address `address`; it interrupts through `irq`.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        address: u64,
        irq: Arc<EventFd>,
        doorbells: Box<dyn Doorbells>,
    ) -> io::Result<Self> {
        let interrupt = Arc::new(Interrupt::new(irq));
        let notifiers = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<io::Result<Arc<[_]>>>()?;
        let transport = Transport::new(
            device,
            memory,
            address,
            Arc::clone(&interrupt),
            Arc::clone(&notifiers),
            doorbells,
        );
        Ok(Self {
            interrupt,
            notifiers,
            transport: Mutex::new(transport),
        })
    }

    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            registers::INTERRUPT_STATUS => self.interrupt.status(),
            registers::CONFIG.. => {
                return self
                    .transport()
                    .read_config(offset - registers::CONFIG, data);
            }
            _ => self.transport().read(offset),
        };
        // §4.2.2.2: registers are accessed by aligned 32-bit reads only.
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(register) if offset.is_multiple_of(4) => *register = value.to_le_bytes(),
            _ => data.fill(0),
        }
    }

    /// The guest writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            return self.transport().write_config(offset, data);
        }
        let Ok(register) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(register);
        match offset {
            registers::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            registers::QUEUE_NOTIFY => self.notify(value),
            _ => self.transport().write(offset, value),
        }
    }

    /// The transport, for all that is not the guest's doing.
    pub fn transport(&self) -> MutexGuard<'_, Transport> {
        // Poisoned means that a device panicked: the process ends by itself.
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A notification that no ioeventfd caught.
    fn notify(&self, queue: u32) {
        let event = usize::try_from(queue)
            .ok()
            .and_then(|index| self.notifiers.get(index));
        if let Some(event) = event {
            // Fails only when the counter is full: then a notification is pending already.
            let _ = event.write(1);
        }
    }
}
