//! A guest that drives a device through its registers: notification by ioeventfd, interrupt by
//! irqfd.

use lazaret_protocol::vm::{DeviceConfig, ExitReason};
use vm_memory::{Bytes, GuestAddress};

use super::guest::{self, INTERRUPTS, Step, boot, enable_interrupt, script, wait};
use crate::{
    virtio::{mmio::SLOTS_START, mock::Ring},
    vm::slots,
};

pub(super) const RING: u64 = 0x30_0000;
pub(super) const BUFFER: u64 = 0x31_0000;
const SLOT: u32 = SLOTS_START as u32;

/// Steps of a driver from power-on to readiness, with one queue of four descriptors at [`RING`].
pub(super) fn drive(ring: &Ring) -> Vec<Step> {
    drive_slot(0, ring)
}

/// As [`drive`], of the device in slot `slot`.
pub(super) fn drive_slot(slot: usize, ring: &Ring) -> Vec<Step> {
    let start = slots::slot_address(slot) as u32;
    let register = |offset: u32, value: u32| Step::Write(start + offset, value);
    let mut steps = enable_interrupt(slots::gsi(slot));
    steps.extend([
        register(0x70, 1),
        register(0x70, 3),
        register(0x24, 1),
        register(0x20, 1), // VIRTIO_F_VERSION_1
        register(0x70, 11),
        register(0x30, 0),
        register(0x38, ring.size().into()),
        register(0x80, ring.descriptor_table() as u32),
        register(0x90, ring.available_ring() as u32),
        register(0xa0, ring.used_ring() as u32),
        register(0x44, 1),
        register(0x70, 15),
    ]);
    steps
}

#[test]
fn a_guest_gets_random_bytes_by_interrupt() {
    // The ring is built in the guest's memory before it runs.
    let layout = guest_ring();
    let mut steps = drive(&layout);
    steps.extend([
        Step::Write(SLOT + 0x50, 0),
        Step::HaltUntil(INTERRUPTS as u32, 1),
        Step::Read(SLOT + 0x60, super::RESULT),
        Step::Write(SLOT + 0x64, 1),
        Step::Read(SLOT + 0x60, super::RESULT + 4),
    ]);
    let mut vm = boot(script(&steps), vec![DeviceConfig::Rng]).unwrap();
    let mut ring = Ring::new(&vm.memory, RING, layout.size());
    ring.add(&[crate::virtio::mock::Buffer::writable(BUFFER, 64)]);
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
    assert_eq!(ring.take_used(), [(0, 64)]);
    let random: [u64; 4] = vm.memory.read_obj(GuestAddress(BUFFER)).unwrap();
    assert_ne!(random, [0; 4]);
    assert_eq!(super::load::<u32>(&vm, super::RESULT), 1);
    assert_eq!(super::load::<u32>(&vm, super::RESULT + 4), 0);
    // The notification took no exit: the writes counted are those of the set-up and the
    // acknowledgement.
    let counters = vm.counters();
    let writes = counters
        .iter()
        .find(|(name, _)| name == "vcpu.0.exits.mmio_write");
    assert_eq!(writes.unwrap().1, 13);
}

#[test]
fn devices_beyond_the_interrupt_lines_share_them() {
    assert_eq!(slots::gsi(0), 5);
    assert_eq!(slots::gsi(18), 23);
    assert_eq!(slots::gsi(19), 5);
    // All can be registered, and the last device is where the command line says.
    let last = slots::slot_address(31) as u32;
    let steps = [Step::Read(last, super::RESULT)];
    let mut vm = boot(script(&steps), vec![DeviceConfig::Rng; 32]).unwrap();
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
    assert_eq!(&super::load::<[u8; 4]>(&vm, super::RESULT), b"virt");
}

/// The addresses of a ring at [`RING`], in memory of its own.
pub(super) fn guest_ring() -> Ring {
    let memory = crate::vm::memory::create(guest::MEMORY_MIB, false).unwrap();
    Ring::new(&memory, RING, 4)
}
