//! Slots without a device, and devices that come and go while a guest looks on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use proptest::prelude::*;

use super::{
    Bench, EFD_NONBLOCK, EventFd, Probe, SLOTS_START, Slot, Transport, TransportRestoreError,
};
use crate::virtio::{mmio::SlotError, mock::DEADLINE};

/// What a placeholder is, virtio 1.3 §4.2.2: the rest is zeros.
const PLACEHOLDER: [(u64, u32); 3] = [(0, 0x7472_6976), (4, 2), (8, 0)];

fn read(slot: &Slot, offset: u64) -> u32 {
    let mut data = [0xaa; 4];
    slot.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn assert_placeholder(slot: &Slot) {
    assert!(slot.is_spare());
    for (offset, value) in PLACEHOLDER {
        assert_eq!(read(slot, offset), value, "{offset:#x}");
    }
    for offset in (0xc..0x200).step_by(4) {
        assert_eq!(read(slot, offset), 0, "{offset:#x}");
    }
}

impl Bench {
    /// Puts a new device into the slot, from which the last one was taken.
    fn insert(&mut self) -> Result<(), SlotError> {
        let probe = Probe::default();
        let log = Arc::clone(&probe.log);
        let irq = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let bells = Box::new(self.bells.clone());
        self.slot.insert(
            Box::new(probe),
            self.memory.clone(),
            Arc::clone(&irq),
            bells,
        )?;
        (self.log, self.irq) = (log, irq);
        Ok(())
    }
}

#[test]
fn a_slot_without_a_device_is_a_placeholder() {
    let slot = Slot::spare(SLOTS_START);
    assert_placeholder(&slot);
    for offset in (0..0x200).step_by(4) {
        slot.write(offset, &u32::MAX.to_le_bytes());
    }
    assert_placeholder(&slot);
    assert_eq!(slot.with_transport(|_| ()), None);
    assert!(matches!(slot.remove(), Err(SlotError::Empty)));
}

#[test]
fn a_device_comes_and_goes() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.start();
        bench.write(0x50, 1);
        assert!(bench.notified(1));
        bench.write(0x70, 0);
        let (log, irq) = (Arc::downgrade(&bench.log), Arc::downgrade(&bench.irq));
        bench.slot.remove().unwrap();
        assert_placeholder(&bench.slot);
        assert!(bench.bells.connected.lock().unwrap().is_empty());
        (bench.log, bench.irq) = (Arc::default(), Arc::new(EventFd::new(0).unwrap()));
        // Nothing keeps the device or its events.
        assert!(log.upgrade().is_none());
        assert!(irq.upgrade().is_none());
        bench.insert().unwrap();
        assert_eq!(bench.read(8), 42);
        assert_eq!(bench.read(0x70), 0);
    }
    let kind = "probe";
    assert!(matches!(bench.insert(), Err(SlotError::Occupied { kind: of }) if of == kind));
}

#[test]
fn a_device_stays_while_a_driver_holds_it() {
    let mut bench = Bench::new();
    let held = |bench: &Bench| matches!(bench.slot.remove(), Err(SlotError::Driven { .. }));
    bench.write(0x70, 1 | 2);
    assert!(held(&bench));
    bench.write(0x70, 0);
    bench.start();
    assert!(held(&bench));
    // Neither a pause nor a fault is the guest's word.
    bench.slot.with_transport(Transport::pause);
    assert!(held(&bench));
    bench.slot.with_transport(Transport::resume);
    let interrupt = bench.log.lock().unwrap().interrupt.clone().unwrap();
    interrupt.signal_needs_reset();
    assert!(held(&bench));
    assert_eq!(bench.read(0x70), 15 | 64);
    assert_eq!(bench.activations(), 2);
    // Linux acknowledges the device again when its driver is unbound.
    bench.write(0x70, 0);
    bench.write(0x70, 1);
    bench.slot.remove().unwrap();

    // A driver that gave up holds nothing, however far it came.
    bench.insert().unwrap();
    bench.start();
    bench.write(0x70, 128);
    assert_eq!(bench.bells.connected.lock().unwrap().len(), 2);
    let log = Arc::clone(&bench.log);
    bench.slot.remove().unwrap();
    assert_eq!(log.lock().unwrap().resets, 1);
    assert!(bench.bells.connected.lock().unwrap().is_empty());
    assert_placeholder(&bench.slot);
}

#[test]
fn a_saved_placeholder_fits_a_placeholder_only() {
    let spare = Slot::spare(SLOTS_START);
    let state = spare.save();
    assert_eq!(state, None);
    spare.restore(state.as_ref()).unwrap();
    let bench = Bench::new();
    let misfit = |slot: &Slot, state| match slot.restore(state) {
        Err(TransportRestoreError::Device { saved, present }) => (saved, present),
        other => panic!("{other:?}"),
    };
    assert_eq!(misfit(&bench.slot, None), (0, 42));
    assert_eq!(misfit(&spare, bench.slot.save().as_ref()), (42, 0));
}

/// Drives the device as long as `goes_on`, found or not.
fn drive(bench: &Bench, goes_on: &AtomicBool) {
    while goes_on.load(Ordering::Relaxed) {
        let id = bench.read(8);
        assert!([0, 42].contains(&id), "{id}");
        bench.start();
        bench.write(0x50, 1);
        bench.write(0x64, bench.read(0x60));
        bench.write(0x70, 0);
    }
}

#[test]
fn a_guest_may_access_a_device_that_comes_or_goes() {
    let bench = Bench::new();
    let goes_on = AtomicBool::new(true);
    // How many devices were taken out, and how many of these a driver had reached.
    let (mut removed, mut driven) = (0, 0);
    let mut log = Arc::clone(&bench.log);
    let deadline = Instant::now() + DEADLINE;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| drive(&bench, &goes_on));
        }
        while removed < 200 || driven < 10 {
            if Instant::now() > deadline {
                break;
            }
            match bench.slot.remove() {
                Ok(()) => removed += 1,
                Err(SlotError::Driven { .. }) => continue,
                Err(other) => panic!("{other}"),
            }
            assert_eq!(bench.read(8), 0);
            assert!(bench.bells.connected.lock().unwrap().is_empty());
            driven += usize::from(!log.lock().unwrap().activations.is_empty());
            let probe = Probe::default();
            log = Arc::clone(&probe.log);
            let (memory, irq) = (bench.memory.clone(), Arc::clone(&bench.irq));
            let bells = Box::new(bench.bells.clone());
            let inserted = bench.slot.insert(Box::new(probe), memory, irq, bells);
            inserted.unwrap();
            // On one processor a driver gets its turn here.
            thread::yield_now();
        }
        goes_on.store(false, Ordering::Relaxed);
    });
    assert!(removed >= 200 && driven >= 10, "{removed} {driven}");
}

proptest! {
    /// Whatever a guest does to a placeholder, it stays one, and the next device is as new.
    #[test]
    fn no_access_changes_a_placeholder(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0_u64..0x1000, any::<u32>(), 0_usize..9), 0..100),
    ) {
        let mut bench = Bench::new();
        bench.slot.remove().unwrap();
        for (write, offset, value, width) in accesses {
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            if write {
                bench.slot.write(offset, &data[..width]);
            } else {
                bench.slot.read(offset, &mut data[..width]);
                prop_assert!(offset < 8 || data[..width] == [0; 8][..width]);
            }
        }
        assert_placeholder(&bench.slot);
        bench.insert().unwrap();
        prop_assert_eq!(bench.read(0x60), 0);
        bench.start();
        prop_assert_eq!(bench.activations(), 1);
    }
}
