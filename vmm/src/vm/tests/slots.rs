//! Devices that are attached to a VM and detached again: wired as those of its configuration.

use std::time::Instant;

use lazaret_protocol::vm::{BlockConfig, ConsoleConfig, DeviceConfig, ExitReason, Fd};
use vm_memory::{Bytes, GuestAddress};

use super::{
    RESULT,
    guest::{self, DEADLINE, INTERRUPTS, Step, script, wait},
    load,
    state::{copy_memory, through_the_wire},
    virtio::{BUFFER, RING, drive, drive_slot, guest_ring},
};
use crate::{
    boot::{self, cmdline},
    fds::Fds,
    virtio::{
        mmio::{SLOT_BYTES, SLOTS_START, TransportRestoreError},
        mock::{Buffer, Ring},
    },
    vm::{StateError, Vm, builder, slots::AttachError},
};

const SLOT: u32 = SLOTS_START as u32;
const DEVICE_ID: u32 = 0x08;
const NOTIFY: u32 = 0x50;
const INTERRUPT_ACK: u32 = 0x64;
const STATUS: u32 = 0x70;
const RNG: u32 = 4;
const BLOCK: u32 = 2;
/// Where guest and test tell each other how far they are.
const MARK: u32 = RESULT + 0x100;
const RELEASE: u32 = RESULT + 0x104;

/// A VM with no devices but `spare` slots.
fn vm(spare: u8, devices: Vec<DeviceConfig>, steps: &[Step]) -> Vm {
    let mut config = guest::config(1, devices);
    config.spare_slots = spare;
    builder::boot(&config, &mut guest::fds(script(steps))).unwrap()
}

fn attach(vm: &mut Vm, config: &DeviceConfig) -> Result<u32, AttachError> {
    vm.attach(config, &mut Fds::default())
}

/// Waits until the guest has set the mark. Panics after a minute.
fn wait_mark(vm: &Vm, value: u32) {
    let end = Instant::now() + DEADLINE;
    while load::<u32>(vm, MARK) != value {
        assert!(Instant::now() < end, "mark {value}: {:?}", vm.counters());
        assert_eq!(vm.end().reason(), None);
        std::thread::yield_now();
    }
}

fn write(vm: &Vm, address: u32, value: u32) {
    let address = GuestAddress(address.into());
    vm.memory.write_obj(value, address).unwrap();
}

#[test]
fn an_attached_device_is_notified_and_interrupts() {
    const ROUNDS: u32 = 3;
    let layout = guest_ring();
    let mut steps = vec![Step::Read(SLOT + DEVICE_ID, RESULT)];
    for round in 1..=ROUNDS {
        steps.push(Step::Write(MARK, 3 * round - 2));
        steps.push(Step::SpinUntil(SLOT + DEVICE_ID, RNG));
        steps.extend(drive(&layout));
        steps.extend([
            Step::HaltUntil(INTERRUPTS as u32, 2 * round - 1),
            Step::Write(MARK, 3 * round - 1),
            Step::SpinUntil(RELEASE, round),
            Step::Write(SLOT + NOTIFY, 0),
            Step::HaltUntil(INTERRUPTS as u32, 2 * round),
            Step::Write(SLOT + INTERRUPT_ACK, 1),
            Step::Write(SLOT + STATUS, 0),
            Step::Write(MARK, 3 * round),
            Step::SpinUntil(SLOT + DEVICE_ID, 0),
        ]);
    }
    let mut vm = vm(1, Vec::new(), &steps);
    vm.resume().unwrap();
    for round in 1..=ROUNDS {
        wait_mark(&vm, 3 * round - 2);
        let mut ring = Ring::new(&vm.memory, RING, layout.size());
        ring.add(&[Buffer::writable(BUFFER, 32)]);
        assert_eq!(attach(&mut vm, &DeviceConfig::Rng).unwrap(), 0);
        wait_mark(&vm, 3 * round - 1);
        // It found the first buffer when it started. Only the notification tells of the second.
        ring.add(&[Buffer::writable(BUFFER, 64)]);
        write(&vm, RELEASE, round);
        wait_mark(&vm, 3 * round);
        assert_eq!(ring.take_used(), [(0, 32), (1, 64)]);
        vm.detach(0).unwrap();
    }
    assert_eq!(wait(&vm), ExitReason::Reset);
    assert_eq!(load::<u32>(&vm, RESULT), 0);
    // No notification took an exit: each round's writes are those of the set-up, the
    // acknowledgement and the reset.
    let counters = vm.counters();
    let writes = counters
        .iter()
        .find(|(name, _)| name == "vcpu.0.exits.mmio_write");
    assert_eq!(writes.unwrap().1, u64::from(ROUNDS) * 14);
}

#[test]
fn a_guest_may_look_while_devices_come_and_go() {
    let steps = [Step::SpinUntil(SLOT + DEVICE_ID, BLOCK)];
    let mut vm = vm(1, Vec::new(), &steps);
    vm.resume().unwrap();
    for _ in 0..200 {
        attach(&mut vm, &DeviceConfig::Rng).unwrap();
        vm.detach(0).unwrap();
    }
    assert_eq!(vm.end().reason(), None);
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(512).unwrap();
    let config = DeviceConfig::Block(BlockConfig {
        file: Fd(0),
        serial: String::new(),
        readonly: true,
        queues: 1,
    });
    vm.attach(&config, &mut Fds::new(vec![disk.into()]))
        .unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
}

#[test]
fn devices_take_the_first_spare_slot() {
    let mut vm = vm(2, vec![DeviceConfig::Rng], &[]);
    let console = DeviceConfig::Console(ConsoleConfig {
        ring_bytes: 4096,
        output: None,
    });
    assert_eq!(vm.console(), None);
    assert_eq!(attach(&mut vm, &console).unwrap(), 1);
    assert_eq!(vm.console(), Some(Vec::new()));
    assert_eq!(attach(&mut vm, &DeviceConfig::Rng).unwrap(), 2);
    let full = attach(&mut vm, &DeviceConfig::Rng).unwrap_err();
    assert!(matches!(full, AttachError::NoSpareSlot { count: 3 }));
    vm.detach(0).unwrap();
    vm.detach(1).unwrap();
    assert_eq!(vm.describe().spare_slots, [0, 1]);
    assert_eq!(attach(&mut vm, &DeviceConfig::Rng).unwrap(), 0);
    let kinds: Vec<_> = vm
        .describe()
        .devices
        .into_iter()
        .map(|(slot, kind, _)| (slot, kind))
        .collect();
    assert_eq!(kinds, [(0, "rng".into()), (2, "rng".into())]);
    let occupied = vm.attach_to(0, &DeviceConfig::Rng, &mut Fds::default());
    assert!(matches!(occupied, Err(AttachError::Plug { slot: 0, .. })));
}

#[test]
fn every_slot_is_announced() {
    let mut config = guest::config(1, vec![DeviceConfig::Rng]);
    config.spare_slots = 31;
    let vm = builder::boot(&config, &mut guest::fds(script(&[]))).unwrap();
    assert_eq!(vm.describe().spare_slots.len(), 31);
    // `cmdline_paddr` of `hvm_start_info`.
    let line_start: u64 = load(&vm, boot::HVM_START_INFO as u32 + 24);
    let mut line = vec![0; cmdline::MAX_BYTES];
    vm.memory
        .read_slice(&mut line, GuestAddress(line_start))
        .unwrap();
    let line = String::from_utf8(line).unwrap();
    let slots: Vec<_> = line.matches("virtio_mmio.device=4K@0xd00").collect();
    assert_eq!(slots.len(), 32);
    assert!(
        line.contains(" virtio_mmio.device=4K@0xd001f000:17"),
        "{line}"
    );

    config.spare_slots = 32;
    let error = builder::boot(&config, &mut guest::fds(script(&[]))).unwrap_err();
    let line = crate::launch::one_line(&error);
    assert!(
        line.starts_with("devices: 1 and spare_slots: 32 are more"),
        "{line}"
    );
}

#[test]
fn a_vm_with_an_attached_device_goes_on_in_another() {
    let layout = guest_ring();
    let second_slot = SLOT + SLOT_BYTES as u32;
    let mut steps = vec![Step::SpinUntil(second_slot + DEVICE_ID, RNG)];
    steps.extend(drive_slot(1, &layout));
    steps.extend([
        Step::Write(MARK, 1),
        Step::SpinUntil(RELEASE, 1),
        Step::Write(second_slot + NOTIFY, 0),
        Step::HaltUntil(INTERRUPTS as u32, 1),
        Step::Read(SLOT + DEVICE_ID, RESULT),
        Step::Read(second_slot + DEVICE_ID, RESULT + 4),
        Step::Write(second_slot + STATUS, 0),
        Step::Write(MARK, 2),
        Step::SpinUntil(second_slot + DEVICE_ID, 0),
    ]);
    // The first slot's device is gone, the second's came later, the third was never used.
    let mut first = vm(2, vec![DeviceConfig::Rng], &steps);
    let _ = Ring::new(&first.memory, RING, layout.size());
    first.detach(0).unwrap();
    first
        .attach_to(1, &DeviceConfig::Rng, &mut Fds::default())
        .unwrap();
    first.resume().unwrap();
    wait_mark(&first, 1);
    first.pause();
    let state = through_the_wire(&first.save().unwrap());

    let mut second = vm(3, Vec::new(), &[]);
    let misfit = second.restore(&state).unwrap_err();
    assert!(matches!(
        misfit,
        StateError::Device {
            slot: 1,
            source: TransportRestoreError::Device {
                saved: RNG,
                present: 0
            }
        }
    ));
    second
        .attach_to(1, &DeviceConfig::Rng, &mut Fds::default())
        .unwrap();
    copy_memory(&first, &second);
    second.restore(&state).unwrap();
    drop(first);
    let mut ring = Ring::new(&second.memory, RING, layout.size());
    ring.add(&[Buffer::writable(BUFFER, 32)]);
    write(&second, RELEASE, 1);
    second.resume().unwrap();
    wait_mark(&second, 2);
    assert_eq!(ring.take_used(), [(0, 32)]);
    assert_eq!(load::<u32>(&second, RESULT), 0);
    assert_eq!(load::<u32>(&second, RESULT + 4), RNG);
    assert_eq!(second.describe().spare_slots, [0, 2]);
    // The slots are what they were for devices that come and go, too.
    assert_eq!(attach(&mut second, &DeviceConfig::Rng).unwrap(), 0);
    second.detach(1).unwrap();
    assert_eq!(wait(&second), ExitReason::Reset);
}
