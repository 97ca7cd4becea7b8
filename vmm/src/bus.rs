//! Where the guest's accesses to ports and device registers go: virtio-mmio slots by address, and
//! the few ports of a PC that a kernel touches even when it need not. Called on vCPU threads.

use lazaret_protocol::vm::ExitReason;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::mmio::{SLOT_BYTES, SLOTS_START, Slot};

/// Command and status port of the keyboard controller.
const I8042_COMMAND: u16 = 0x64;
/// Its command that pulses the reset line of the processor.
const I8042_RESET: u8 = 0xfe;
/// Where the BIOS data area keeps the warm boot flag, and its value. Linux writes it when its
/// `reboot_mode` is warm, which `reboot=panic_warm` makes it for a panic and nothing else.
const WARM_BOOT_FLAG: GuestAddress = GuestAddress(0x472);
const WARM_BOOT: u16 = 0x1234;

/// All that the guest can reach by an exit.
#[derive(Debug)]
pub struct Bus {
    memory: GuestMemoryMmap,
    slots: Vec<Slot>,
}

impl Bus {
    /// A bus with `slots` from [`SLOTS_START`].
    pub fn new(memory: GuestMemoryMmap, slots: Vec<Slot>) -> Self {
        Self { memory, slots }
    }

    /// The device slots, by index.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The guest reads `data.len()` bytes at `address`. Where nothing is, all bits are set.
    pub fn read_mmio(&self, address: u64, data: &mut [u8]) {
        match self.slot(address) {
            Some((slot, offset)) => slot.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes `data` at `address`.
    pub fn write_mmio(&self, address: u64, data: &[u8]) {
        if let Some((slot, offset)) = self.slot(address) {
            slot.write(offset, data);
        }
    }

    /// The guest reads `port`. Where nothing is, all bits are set; the keyboard controller is
    /// always ready for a command.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        let value = if port == I8042_COMMAND { 0 } else { 0xff };
        data.fill(value);
    }

    /// The guest writes `data` to `port`; `Some` when that ends the VM.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<ExitReason> {
        (port == I8042_COMMAND && data.first() == Some(&I8042_RESET)).then(|| self.reset_reason())
    }

    /// What a reset of the processor means.
    pub fn reset_reason(&self) -> ExitReason {
        match self.memory.read_obj::<u16>(WARM_BOOT_FLAG) {
            Ok(WARM_BOOT) => ExitReason::Panic,
            _ => ExitReason::Reset,
        }
    }

    fn slot(&self, address: u64) -> Option<(&Slot, u64)> {
        let offset = address.checked_sub(SLOTS_START)?;
        let index = usize::try_from(offset / SLOT_BYTES).ok()?;
        Some((self.slots.get(index)?, offset % SLOT_BYTES))
    }
}
