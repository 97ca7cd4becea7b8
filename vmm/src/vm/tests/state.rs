//! A VM is saved, rebuilt in another one, and goes on there.

use lazaret_protocol::vm::{DeviceConfig, ExitReason};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::{
    RESULT,
    guest::{self, INTERRUPTS, Step, boot, script, wait},
    virtio::{BUFFER, RING, drive, guest_ring},
};
use crate::{
    virtio::{
        mmio::SLOTS_START,
        mock::{Buffer, Ring},
    },
    vm::{StateError, Vm, VmState, builder},
};

const MARK: u32 = RESULT + 0x100;
const RELEASE: u32 = RESULT + 0x104;

pub(super) fn copy_memory(from: &Vm, to: &Vm) {
    let region = from.memory.iter().next().unwrap();
    let mut content = vec![0; region.len() as usize];
    from.memory
        .read_slice(&mut content, GuestAddress(0))
        .unwrap();
    to.memory.write_slice(&content, GuestAddress(0)).unwrap();
}

fn fresh(devices: Vec<DeviceConfig>) -> Vm {
    let mut fds = guest::fds(tempfile::tempfile().unwrap());
    builder::assemble(&guest::config(1, devices), &mut fds).unwrap()
}

/// Runs until the guest has set the mark, and pauses.
fn run_to_mark(vm: &mut Vm) {
    vm.resume().unwrap();
    while super::load::<u32>(vm, MARK) != 1 {
        assert_eq!(vm.end().reason(), None);
        std::thread::yield_now();
    }
    vm.pause();
}

pub(super) fn through_the_wire(state: &VmState) -> VmState {
    postcard::from_bytes(&postcard::to_allocvec(state).unwrap()).unwrap()
}

/// The encoded state without what goes on while a VM is paused: its clocks.
fn timeless(mut state: VmState) -> Vec<u8> {
    const TSC: u32 = 0x10;
    state.clock = Default::default();
    for vcpu in &mut state.vcpus {
        vcpu.msrs.retain(|msr| msr.index != TSC);
    }
    postcard::to_allocvec(&state).unwrap()
}

#[test]
fn a_vm_with_an_active_device_goes_on_in_another() {
    let layout = guest_ring();
    let mut steps = drive(&layout);
    steps.extend([
        Step::Write(MARK, 1),
        Step::SpinUntil(RELEASE, 1),
        Step::Write(SLOTS_START as u32 + 0x50, 0),
        Step::HaltUntil(INTERRUPTS as u32, 1),
    ]);
    let mut first = boot(script(&steps), vec![DeviceConfig::Rng]).unwrap();
    let _ = Ring::new(&first.memory, RING, layout.size());
    run_to_mark(&mut first);
    let state = through_the_wire(&first.save().unwrap());

    let mut second = fresh(vec![DeviceConfig::Rng]);
    copy_memory(&first, &second);
    second.restore(&state).unwrap();
    drop(first);
    let mut ring = Ring::new(&second.memory, RING, layout.size());
    ring.add(&[Buffer::writable(BUFFER, 32)]);
    second
        .memory
        .write_obj(1_u32, GuestAddress(RELEASE.into()))
        .unwrap();
    second.resume().unwrap();
    assert_eq!(wait(&second), ExitReason::Reset);
    assert_eq!(ring.take_used(), [(0, 32)]);
    assert_eq!(super::load::<u32>(&second, INTERRUPTS as u32), 1);
}

#[test]
fn what_is_restored_is_what_was_saved() {
    let steps = [Step::Write(MARK, 1), Step::SpinUntil(RELEASE, 1)];
    let mut first = boot(script(&steps), vec![DeviceConfig::Rng]).unwrap();
    run_to_mark(&mut first);
    let state = first.save().unwrap();
    let mut second = fresh(vec![DeviceConfig::Rng]);
    copy_memory(&first, &second);
    second.restore(&state).unwrap();
    let again = second.save().unwrap();
    assert_eq!(timeless(state), timeless(again));
}

#[test]
fn a_running_vm_is_not_saved_and_a_misfit_not_restored() {
    let steps = [Step::Write(MARK, 1), Step::SpinUntil(RELEASE, 1)];
    let mut vm = boot(script(&steps), Vec::new()).unwrap();
    vm.resume().unwrap();
    assert!(matches!(vm.save(), Err(StateError::Running)));
    vm.pause();
    let state = vm.save().unwrap();
    let error = fresh(vec![DeviceConfig::Rng]).restore(&state).unwrap_err();
    assert!(matches!(
        error,
        StateError::Shape {
            what: "slots",
            saved: 0,
            present: 1
        }
    ));
}
