//! The virtio-mmio transport, virtio 1.3 §4.2, version 2 registers only.
//!
//! A [`Slot`] is a window of registers in the guest's address space, with a device behind it or
//! spare. The accesses of a running driver (interrupt status and acknowledgement, a notification
//! without ioeventfd) take no lock; all others go to the slot's [`Transport`], which owns the
//! device. Nothing here knows a device by name, or KVM.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwapOption;
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

/// How a queue's notifications reach its event without leaving to the VMM: KVM's ioeventfd. Dropped
/// with the device that it was made for.
pub trait Doorbells: Send {
    /// Makes a 32-bit write of `value` at guest address `address` signal `event`.
    ///
    /// # Errors
    /// When the host refuses. Notifications then take the slower way through the VMM.
    fn connect(&self, address: u64, value: u32, event: &EventFd) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect).
    fn disconnect(&self, address: u64, value: u32, event: &EventFd);
}

/// Why a device cannot be put into a slot, or taken out.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The slot is not spare.
    #[error("has a device already: {kind}")]
    Occupied {
        /// Kind of that device.
        kind: &'static str,
    },
    /// The slot is spare.
    #[error("has no device")]
    Empty,
    /// The guest has not let go of the device.
    #[error("a driver of the guest holds the {kind} device and must be unbound first")]
    Driven {
        /// Kind of the device.
        kind: &'static str,
    },
    /// The process is out of descriptors.
    #[error("cannot make an event")]
    Event(#[source] io::Error),
}

/// What a running driver reaches of its device without a lock.
#[derive(Debug)]
struct Lines {
    interrupt: Arc<Interrupt>,
    /// One event per queue.
    notifiers: Arc<[Arc<EventFd>]>,
}

/// A window of registers as the guest sees it: a virtio-mmio device, or a placeholder.
///
/// A placeholder has the device id 0, which drivers ignore (§4.2.3.1.1), and nothing else: its
/// other registers read as zeros and ignore what is written. The guest may access a slot at any
/// time while a device comes or goes, and finds either the one or the other.
#[derive(Debug)]
pub struct Slot {
    address: u64,
    /// Set while there is a device.
    lines: ArcSwapOption<Lines>,
    transport: Mutex<Option<Transport>>,
}

impl Slot {
    /// The slot at guest address `address`, without a device.
    pub fn spare(address: u64) -> Self {
        Self {
            address,
            lines: ArcSwapOption::empty(),
            transport: Mutex::new(None),
        }
    }

    /// Puts `device` into the slot; it interrupts through `irq`.
    ///
    /// # Errors
    /// When the slot has a device, or the process is out of descriptors.
    pub fn insert(
        &self,
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        irq: Arc<EventFd>,
        doorbells: Box<dyn Doorbells>,
    ) -> Result<(), SlotError> {
        let mut present = lock(&self.transport);
        if let Some(transport) = &*present {
            let kind = transport.device().kind();
            return Err(SlotError::Occupied { kind });
        }
        let interrupt = Arc::new(Interrupt::new(irq));
        let notifiers = device
            .queue_sizes()
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<io::Result<Arc<[_]>>>()
            .map_err(SlotError::Event)?;
        *present = Some(Transport::new(
            device,
            memory,
            self.address,
            Arc::clone(&interrupt),
            Arc::clone(&notifiers),
            doorbells,
        ));
        // While the transport is locked: no driver finds the device before it finds its lines.
        self.lines.store(Some(Arc::new(Lines {
            interrupt,
            notifiers,
        })));
        Ok(())
    }

    /// Takes the device out, stops it and drops it. The slot is spare afterwards.
    ///
    /// # Errors
    /// When there is no device, or a driver holds it.
    pub fn remove(&self) -> Result<(), SlotError> {
        // Locked until nothing of the device is left, so that the next one finds its doorbells
        // free. Whoever got hold of the lines before writes to events nobody waits for.
        let mut present = lock(&self.transport);
        let transport = present.as_mut().ok_or(SlotError::Empty)?;
        if transport.is_driven() {
            let kind = transport.device().kind();
            return Err(SlotError::Driven { kind });
        }
        transport.reset();
        self.lines.store(None);
        *present = None;
        Ok(())
    }

    /// Whether it has no device.
    pub fn is_spare(&self) -> bool {
        lock(&self.transport).is_none()
    }

    /// The guest reads `data.len()` bytes at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            data.fill(0);
            self.with_transport(|transport| transport.read_config(offset, data));
            return;
        }
        // §4.2.2.2: registers are accessed by aligned 32-bit reads only.
        let register = match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(register) if offset.is_multiple_of(4) => register,
            _ => return data.fill(0),
        };
        *register = self.read_register(offset).to_le_bytes();
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == registers::INTERRUPT_STATUS {
            let lines = self.lines.load();
            return lines.as_ref().map_or(0, |lines| lines.interrupt.status());
        }
        self.with_transport(|transport| transport.read(offset))
            .unwrap_or_else(|| registers::read_placeholder(offset))
    }

    /// The guest writes `data` at `offset`.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(registers::CONFIG) {
            self.with_transport(|transport| transport.write_config(offset, data));
            return;
        }
        let Ok(register) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(register);
        match offset {
            registers::INTERRUPT_ACK => {
                if let Some(lines) = &*self.lines.load() {
                    lines.interrupt.acknowledge(value);
                }
            }
            registers::QUEUE_NOTIFY => self.notify(value),
            _ => {
                self.with_transport(|transport| transport.write(offset, value));
            }
        }
    }

    /// Calls `with` on the transport, for all that is not the guest's doing; `None` when the slot
    /// is spare.
    pub fn with_transport<T>(&self, with: impl FnOnce(&mut Transport) -> T) -> Option<T> {
        lock(&self.transport).as_mut().map(with)
    }

    /// A notification that no ioeventfd caught.
    fn notify(&self, queue: u32) {
        let lines = self.lines.load();
        let event = lines.as_ref().and_then(|lines| {
            let index = usize::try_from(queue).ok()?;
            lines.notifiers.get(index)
        });
        if let Some(event) = event {
            // Fails only when the counter is full: then a notification is pending already.
            let _ = event.write(1);
        }
    }
}

fn lock(transport: &Mutex<Option<Transport>>) -> MutexGuard<'_, Option<Transport>> {
    // Poisoned means that a device panicked: the process ends by itself.
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}
