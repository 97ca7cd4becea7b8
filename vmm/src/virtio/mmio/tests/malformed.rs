//! A real device behind the transport, fed with broken rings: it may give up, but the VMM goes on
//! and the next driver finds the device whole.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Bells, MEMORY_BYTES, Malformed, RINGS_START, Ring};
use crate::{
    devices::rng::Rng,
    virtio::mmio::{SLOTS_START, Slot, Transport},
    virtio::mock::{Buffer, DEADLINE},
};

const SCRATCH: u64 = 0x40_0000;
const BUFFER: u64 = 0x60_0000;

fn slot(memory: &GuestMemoryMmap) -> Slot {
    let irq = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let device = Box::new(Rng::default());
    let bells = Box::new(Bells::default());
    let slot = Slot::spare(SLOTS_START);
    slot.insert(device, memory.clone(), irq, bells).unwrap();
    slot
}

fn write(slot: &Slot, offset: u64, value: u32) {
    slot.write(offset, &value.to_le_bytes());
}

fn status(slot: &Slot) -> u32 {
    let mut data = [0; 4];
    slot.read(0x70, &mut data);
    u32::from_le_bytes(data)
}

fn start(slot: &Slot, ring: &Ring) {
    let registers = [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x38, ring.size().into()),
        (0x80, ring.descriptor_table() as u32),
        (0x90, ring.available_ring() as u32),
        (0xa0, ring.used_ring() as u32),
        (0x44, 1),
        (0x70, 15),
    ];
    for (offset, value) in registers {
        write(slot, offset, value);
    }
}

/// Waits until `done`. Panics when the device does not get there.
fn wait(done: impl Fn() -> bool) {
    let end = std::time::Instant::now() + DEADLINE;
    while !done() {
        assert!(std::time::Instant::now() < end, "the device hangs");
        std::thread::yield_now();
    }
}

#[test]
fn broken_rings_harm_nobody_else() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
    let slot = slot(&memory);
    for how in Malformed::ALL {
        let mut ring = Ring::new(&memory, RINGS_START, 16);
        start(&slot, &ring);
        assert_eq!(status(&slot), 15, "{how:?}");
        ring.add_malformed(how, SCRATCH);
        write(&slot, 0x50, 0);
        wait(|| status(&slot) & 64 != 0 || ring.used_index() != 0);
        // It can be paused, and reset, whatever it made of it.
        slot.with_transport(Transport::pause);
        slot.with_transport(Transport::resume);
        write(&slot, 0x70, 0);
        assert_eq!(status(&slot), 0, "{how:?}");

        let mut ring = Ring::new(&memory, RINGS_START, 16);
        start(&slot, &ring);
        ring.add(&[Buffer::writable(BUFFER, 32)]);
        write(&slot, 0x50, 0);
        wait(|| ring.used_index() == 1);
        assert_eq!(ring.take_used()[0].1, 32, "after {how:?}");
        write(&slot, 0x70, 0);
    }
}
