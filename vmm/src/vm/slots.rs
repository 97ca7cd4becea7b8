//! Devices come into slots and leave them: wired to KVM's interrupts and notifications the same
//! way whether they are configured or attached later. The builder and the control socket call
//! this; it must not know any device by name.

use std::{io, sync::Arc};

use kvm_ioctls::{IoEventAddress, VmFd};
use lazaret_protocol::vm::DeviceConfig;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Vm;
use crate::{
    boot::mptable,
    devices::{self, DeviceError},
    fds::Fds,
    virtio::{
        device::VirtioDevice,
        mmio::{Doorbells, SLOT_BYTES, SLOTS_START, Slot, SlotError},
    },
};

/// Most slots of a VM: their entries fit into the kernel's command line with room to spare.
pub const SLOTS_MAX: usize = 32;
/// First interrupt of a slot: those below belong to a PC's timer, keyboard and serial ports.
pub const GSI_START: u32 = 5;

/// Why a device cannot be connected to a slot.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The device cannot be made.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The slot does not take it.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The process is out of descriptors.
    #[error("cannot make an event")]
    Event(#[source] io::Error),
    /// KVM refused.
    #[error("cannot register an irqfd")]
    Interrupt(#[source] kvm_ioctls::Error),
}

/// Why a VM's devices were not changed.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// All slots have devices.
    #[error("no spare slot is left, all {count} have devices")]
    NoSpareSlot {
        /// Slots of the VM.
        count: usize,
    },
    /// There is no such slot.
    #[error("slot {slot}: does not exist, the VM has {count}")]
    NoSuchSlot {
        /// What was asked for.
        slot: u32,
        /// Slots of the VM.
        count: usize,
    },
    /// More descriptors came than the device's configuration names.
    #[error("slot {slot}: {count} descriptors were sent that no field of the {kind} device names")]
    SurplusFds {
        /// Where the device was to go.
        slot: u32,
        /// Kind of the device.
        kind: &'static str,
        /// How many.
        count: usize,
    },
    /// The device cannot be made or connected.
    #[error("slot {slot}")]
    Plug {
        /// Where the device was to go.
        slot: u32,
        /// Why.
        #[source]
        source: PlugError,
    },
    /// The device cannot be taken out.
    #[error("slot {slot}")]
    Unplug {
        /// Where it is.
        slot: u32,
        /// Why.
        #[source]
        source: SlotError,
    },
}

/// A device's connections to KVM: its irqfd while it lives, and its ioeventfds.
struct Wires {
    fd: Arc<VmFd>,
    irq: Arc<EventFd>,
    gsi: u32,
}

impl Wires {
    fn new(fd: &Arc<VmFd>, gsi: u32) -> Result<Self, PlugError> {
        let irq = EventFd::new(EFD_NONBLOCK).map_err(PlugError::Event)?;
        fd.register_irqfd(&irq, gsi).map_err(PlugError::Interrupt)?;
        Ok(Self {
            fd: Arc::clone(fd),
            irq: Arc::new(irq),
            gsi,
        })
    }
}

impl Doorbells for Wires {
    fn connect(&self, address: u64, value: u32, event: &EventFd) -> io::Result<()> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(Into::into)
    }

    fn disconnect(&self, address: u64, value: u32, event: &EventFd) {
        // Fails only when it was not connected.
        let _ = self
            .fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), value);
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        // Fails only when it was not registered.
        let _ = self.fd.unregister_irqfd(&self.irq, self.gsi);
    }
}

/// Puts `device` into `slot`, which is number `index` of the VM `fd` with `memory`.
pub(super) fn plug(
    device: Box<dyn VirtioDevice>,
    slot: &Slot,
    index: usize,
    fd: &Arc<VmFd>,
    memory: &GuestMemoryMmap,
) -> Result<(), PlugError> {
    let wires = Wires::new(fd, gsi(index))?;
    let irq = Arc::clone(&wires.irq);
    slot.insert(device, memory.clone(), irq, Box::new(wires))?;
    Ok(())
}

/// Guest address of slot `slot`.
pub fn slot_address(slot: usize) -> u64 {
    SLOTS_START + slot as u64 * SLOT_BYTES
}

/// Interrupt of slot `slot`. From the twentieth on slots share: interrupts are edges, and each
/// edge makes the kernel ask every device on the line.
pub fn gsi(slot: usize) -> u32 {
    let lines = usize::from(mptable::IOAPIC_PINS) - GSI_START as usize;
    let line = u32::try_from(slot % lines).expect("there are 24 lines at most");
    GSI_START + line
}

impl Vm {
    /// Puts the device that `config` describes into the first spare slot and returns its number.
    /// `fds` came with the configuration, all of them for this device. The guest's kernel does not
    /// notice by itself. The VM may run or be paused.
    ///
    /// # Errors
    /// When no slot is spare, and as [`attach_to`](Self::attach_to).
    pub fn attach(&mut self, config: &DeviceConfig, fds: &mut Fds) -> Result<u32, AttachError> {
        let slots = self.bus.slots();
        let count = slots.len();
        let slot = (0..)
            .zip(slots)
            .find_map(|(index, slot)| slot.is_spare().then_some(index))
            .ok_or(AttachError::NoSpareSlot { count })?;
        self.attach_to(slot, config, fds)?;
        Ok(slot)
    }

    /// Puts a device into the spare slot `slot`: as [`attach`](Self::attach) for who rebuilds a VM,
    /// whose devices must be where they were.
    ///
    /// # Errors
    /// When the slot is not spare, the device cannot be made, or descriptors are left over.
    pub fn attach_to(
        &mut self,
        slot: u32,
        config: &DeviceConfig,
        fds: &mut Fds,
    ) -> Result<(), AttachError> {
        let (index, present) = self.slot(slot)?;
        let failed = |source| AttachError::Plug { slot, source };
        let device =
            devices::from_config(config, fds).map_err(|source| failed(PlugError::from(source)))?;
        let kind = device.kind();
        match fds.unused() {
            0 => plug(device, present, index, &self.fd, &self.memory).map_err(failed)?,
            count => return Err(AttachError::SurplusFds { slot, kind, count }),
        }
        tracing::info!(sandbox = self.name, slot, kind, "device attached");
        Ok(())
    }

    /// Takes the device out of slot `slot`, which is spare afterwards: its threads have ended and
    /// its descriptors are closed. The VM may run or be paused.
    ///
    /// # Errors
    /// When there is no such slot, no device in it, or a driver of the guest holds the device.
    pub fn detach(&mut self, slot: u32) -> Result<(), AttachError> {
        let (_, present) = self.slot(slot)?;
        present
            .remove()
            .map_err(|source| AttachError::Unplug { slot, source })?;
        tracing::info!(sandbox = self.name, slot, "device detached");
        Ok(())
    }

    fn slot(&self, slot: u32) -> Result<(usize, &Slot), AttachError> {
        let slots = self.bus.slots();
        let count = slots.len();
        usize::try_from(slot)
            .ok()
            .and_then(|index| Some((index, slots.get(index)?)))
            .ok_or(AttachError::NoSuchSlot { slot, count })
    }
}
