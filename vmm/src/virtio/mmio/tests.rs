//! The transport against drivers that follow the specification and drivers that do not.

use std::{
    io,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Doorbells, SLOTS_START, Slot, Transport, TransportRestoreError};
use crate::virtio::{
    device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
    mock::{MEMORY_BYTES, Malformed, RINGS_START, Ring},
};

mod malformed;
mod slots;

const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 28 | 1 << 5;
const QUEUE_SIZES: [u16; 2] = [16, 256];

/// Index, size and use of event indices of a queue.
type SeenQueue = (u16, u16, bool);

/// What happened to a device.
#[derive(Debug, Default)]
struct Log {
    activations: Vec<(u64, Vec<SeenQueue>)>,
    resets: u32,
    config: [u8; 8],
    refuse: bool,
    interrupt: Option<Arc<crate::virtio::interrupt::Interrupt>>,
}

/// A device that keeps its queues and does nothing with them.
#[derive(Debug, Default)]
struct Probe {
    log: Arc<Mutex<Log>>,
    queues: Vec<ActiveQueue>,
}

impl VirtioDevice for Probe {
    fn kind(&self) -> &'static str {
        "probe"
    }

    fn device_type(&self) -> u32 {
        42
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.log.lock().unwrap().config;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(config.iter().skip(from)) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut log = self.log.lock().unwrap();
        for (byte, value) in log.config.iter_mut().skip(from).zip(data) {
            *byte = *value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        use virtio_queue::QueueT;
        let mut log = self.log.lock().unwrap();
        if log.refuse {
            return Err(ActivateError::MissingQueue { index: 1 });
        }
        let queues = activation.queues.iter().map(|active| {
            let queue = &active.queue;
            (active.index, queue.size(), queue.event_idx_enabled())
        });
        log.activations
            .push((activation.features, queues.collect()));
        log.interrupt = Some(activation.interrupt);
        self.queues = activation.queues;
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        std::mem::take(&mut self.queues)
    }

    fn reset(&mut self) {
        self.queues.clear();
        self.log.lock().unwrap().resets += 1;
    }

    fn save(&self) -> Vec<u8> {
        vec![7]
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if state == [7] {
            Ok(())
        } else {
            let what = "probe";
            Err(RestoreError::Mismatch { what })
        }
    }
}

/// Doorbells as a list, or none at all.
#[derive(Debug, Clone, Default)]
struct Bells {
    connected: Arc<Mutex<Vec<(u64, u32)>>>,
    refuse: bool,
}

impl Doorbells for Bells {
    fn connect(&self, address: u64, value: u32, _: &EventFd) -> io::Result<()> {
        if self.refuse {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.connected.lock().unwrap().push((address, value));
        Ok(())
    }

    fn disconnect(&self, address: u64, value: u32, _: &EventFd) {
        let bell = (address, value);
        self.connected
            .lock()
            .unwrap()
            .retain(|known| *known != bell);
    }
}

struct Bench {
    slot: Slot,
    log: Arc<Mutex<Log>>,
    bells: Bells,
    irq: Arc<EventFd>,
    memory: GuestMemoryMmap,
}

impl Bench {
    fn new() -> Self {
        Self::with_bells(Bells::default())
    }

    fn with_bells(bells: Bells) -> Self {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
        let irq = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let probe = Probe::default();
        let log = Arc::clone(&probe.log);
        let slot = Slot::spare(SLOTS_START);
        slot.insert(
            Box::new(probe),
            memory.clone(),
            Arc::clone(&irq),
            Box::new(bells.clone()),
        )
        .unwrap();
        Self {
            slot,
            log,
            bells,
            irq,
            memory,
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.slot.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.slot.write(offset, &value.to_le_bytes());
    }

    /// From power-on to agreed features.
    fn negotiate(&self, features: u64) {
        self.write(0x70, 1);
        self.write(0x70, 3);
        self.write(0x24, 0);
        self.write(0x20, features as u32);
        self.write(0x24, 1);
        self.write(0x20, (features >> 32) as u32);
        self.write(0x70, 11);
    }

    fn set_up_queue(&self, index: u32, ring: &Ring) {
        self.write(0x30, index);
        self.write(0x38, ring.size().into());
        let areas = [
            (0x80, ring.descriptor_table()),
            (0x90, ring.available_ring()),
            (0xa0, ring.used_ring()),
        ];
        for (offset, address) in areas {
            self.write(offset, address as u32);
            self.write(offset + 4, (address >> 32) as u32);
        }
        self.write(0x44, 1);
    }

    fn ring(&self, index: u64, size: u16) -> Ring {
        Ring::new(&self.memory, RINGS_START + index * 0x1_0000, size)
    }

    /// A driver that does all it should.
    fn start(&self) {
        self.negotiate(FEATURES);
        self.set_up_queue(0, &self.ring(0, 16));
        self.set_up_queue(1, &self.ring(1, 128));
        self.write(0x70, 15);
    }

    /// Whether queue `index` was notified; takes it.
    fn notified(&self, index: usize) -> bool {
        let lines = self.slot.lines.load_full().unwrap();
        lines.notifiers[index].read().is_ok()
    }

    fn state_name(&self) -> &'static str {
        self.slot
            .with_transport(|transport| transport.state_name())
            .unwrap()
    }

    fn activations(&self) -> usize {
        self.log.lock().unwrap().activations.len()
    }
}

#[test]
fn registers_identify_the_device() {
    let bench = Bench::new();
    assert_eq!(bench.read(0), u32::from_le_bytes(*b"virt"));
    assert_eq!(bench.read(4), 2);
    assert_eq!(bench.read(8), 42);
    assert_eq!(bench.read(0x10), FEATURES as u32);
    bench.write(0x14, 1);
    assert_eq!(bench.read(0x10), 1);
    bench.write(0x14, 2);
    assert_eq!(bench.read(0x10), 0);
    assert_eq!(bench.read(0x34), 16);
    bench.write(0x30, 1);
    assert_eq!(bench.read(0x34), 256);
    bench.write(0x30, 2);
    assert_eq!(bench.read(0x34), 0);
    // No shared memory: length and base are all ones.
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        assert_eq!(bench.read(offset), u32::MAX);
    }
    assert_eq!(bench.read(0xfc), 0);
}

#[test]
fn a_driver_that_follows_the_rules_gets_its_device() {
    let bench = Bench::new();
    bench.start();
    assert_eq!(bench.read(0x70), 15);
    let log = bench.log.lock().unwrap();
    assert_eq!(
        log.activations,
        [(FEATURES, vec![(0, 16, true), (1, 128, true)])]
    );
    let notify = SLOTS_START + 0x50;
    assert_eq!(
        *bench.bells.connected.lock().unwrap(),
        [(notify, 0), (notify, 1)]
    );
}

#[test]
fn unused_queues_are_left_out() {
    let bench = Bench::new();
    bench.negotiate(1 << 32);
    bench.set_up_queue(1, &bench.ring(1, 8));
    bench.write(0x70, 15);
    let log = bench.log.lock().unwrap();
    assert_eq!(log.activations, [(1 << 32, vec![(1, 8, false)])]);
}

#[test]
fn features_must_be_offered_and_modern() {
    for features in [0, 1 << 29, 1 << 32 | 1 << 40, 1 << 32 | 1] {
        let bench = Bench::new();
        bench.negotiate(features);
        assert_eq!(bench.read(0x70), 3, "{features:#x}");
        bench.write(0x70, 15);
        assert_eq!(bench.activations(), 0);
    }
}

#[test]
fn features_are_fixed_once_agreed_upon() {
    let bench = Bench::new();
    bench.negotiate(1 << 32);
    bench.write(0x24, 0);
    bench.write(0x20, u32::MAX);
    bench.set_up_queue(0, &bench.ring(0, 16));
    bench.write(0x70, 15);
    assert_eq!(bench.log.lock().unwrap().activations[0].0, 1 << 32);
}

#[test]
fn queues_are_fixed_once_the_driver_is_ready() {
    let bench = Bench::new();
    bench.start();
    bench.write(0x30, 0);
    bench.write(0x44, 0);
    assert_eq!(bench.read(0x44), 1);
    // And before features are agreed upon there are none to set up.
    let bench = Bench::new();
    bench.write(0x70, 3);
    bench.write(0x44, 1);
    assert_eq!(bench.read(0x44), 0);
}

#[test]
fn a_driver_cannot_take_status_back_but_by_reset() {
    let bench = Bench::new();
    bench.start();
    bench.write(0x70, 1);
    assert_eq!(bench.read(0x70), 15);
    // Writing it again starts nothing again; the device's own bit is not the driver's to set.
    bench.write(0x70, 15 | 64);
    assert_eq!(bench.read(0x70), 15);
    assert_eq!(bench.activations(), 1);
    bench.write(0x70, 0);
    assert_eq!(bench.read(0x70), 0);
    assert_eq!(bench.log.lock().unwrap().resets, 1);
    assert!(bench.bells.connected.lock().unwrap().is_empty());
    bench.start();
    assert_eq!(bench.activations(), 2);
}

#[test]
fn a_device_that_gives_up_says_so_until_it_is_reset() {
    let bench = Bench::new();
    bench.start();
    let interrupt = bench.log.lock().unwrap().interrupt.clone().unwrap();
    interrupt.signal_needs_reset();
    assert_eq!(bench.read(0x70), 15 | 64);
    assert_eq!(bench.read(0x60), 2);
    assert_eq!(bench.irq.read().unwrap(), 1);
    bench.write(0x64, 2);
    assert_eq!(bench.read(0x60), 0);
    assert_eq!(bench.state_name(), "needs-reset");
    bench.write(0x70, 0);
    assert_eq!(bench.read(0x70), 0);
    assert_eq!(bench.state_name(), "reset");
}

#[test]
fn a_device_that_refuses_needs_a_reset() {
    let bench = Bench::new();
    bench.log.lock().unwrap().refuse = true;
    bench.start();
    assert_eq!(bench.read(0x70), 15 | 64);
    bench.log.lock().unwrap().refuse = false;
    bench.write(0x70, 0);
    bench.start();
    assert_eq!(bench.read(0x70), 15);
}

#[test]
fn notifications_work_without_ioeventfds() {
    let bench = Bench::with_bells(Bells {
        refuse: true,
        ..Bells::default()
    });
    bench.start();
    assert_eq!(bench.read(0x70), 15);
    bench.write(0x50, 1);
    bench.write(0x50, 7);
    bench.write(0x50, u32::MAX);
    let notified = |index| bench.notified(index);
    assert!(!notified(0));
    assert!(notified(1));
}

#[test]
fn the_generation_changes_with_the_configuration() {
    let bench = Bench::new();
    bench.start();
    let before = bench.read(0xfc);
    let interrupt = bench.log.lock().unwrap().interrupt.clone().unwrap();
    interrupt.signal_config();
    assert_ne!(bench.read(0xfc), before);
}

#[test]
fn configuration_space_takes_any_width() {
    let bench = Bench::new();
    bench.slot.write(0x100, &[1]);
    bench.negotiate(1 << 32);
    bench.slot.write(0x101, &[9, 8]);
    let mut data = [0xff; 16];
    bench.slot.read(0x100, &mut data);
    assert_eq!(data[..4], [0, 9, 8, 0]);
    assert_eq!(data[8..], [0; 8]);
}

#[test]
fn a_saved_slot_goes_on_in_another() {
    let first = Bench::new();
    first.start();
    first
        .log
        .lock()
        .unwrap()
        .interrupt
        .clone()
        .unwrap()
        .signal_used();
    first.slot.with_transport(Transport::pause);
    let state = first.slot.save();

    let second = Bench::new();
    second.slot.restore(state.as_ref()).unwrap();
    assert_eq!(second.slot.save(), state);
    assert_eq!(second.activations(), 0);
    second.slot.with_transport(Transport::resume);
    assert_eq!(second.read(0x70), 15);
    assert_eq!(second.read(0x60), 1);
    assert!(second.irq.read().is_ok());
    // What was made available before the pause is looked at.
    assert!(second.notified(0));
    let activations = second.log.lock().unwrap().activations.clone();
    assert_eq!(activations, first.log.lock().unwrap().activations);
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let first = Bench::new();
    first.start();
    first.slot.with_transport(Transport::pause);
    let state = first.slot.save();
    let encoded = postcard::to_allocvec(&state.unwrap()).unwrap();
    let refused = |change: &dyn Fn(&mut super::TransportState)| {
        let mut state = postcard::from_bytes(&encoded).unwrap();
        change(&mut state);
        Bench::new().slot.restore(Some(&state)).unwrap_err()
    };
    use TransportRestoreError as Error;
    assert!(matches!(
        refused(&|state| state.device_type = 1),
        Error::Device { saved: 1, .. }
    ));
    assert!(matches!(
        refused(&|state| state.queues.clear()),
        Error::Queues { saved: 0, .. }
    ));
    assert!(matches!(
        refused(&|state| state.features = u64::MAX),
        Error::Unsound
    ));
    assert!(matches!(
        refused(&|state| state.queues[0].areas[0] = MEMORY_BYTES),
        Error::Unsound
    ));
    assert!(matches!(
        refused(&|state| state.device.clear()),
        Error::State(_)
    ));
}

proptest! {
    /// Whatever a guest does to the registers: no panic, and an active device has sound queues.
    #[test]
    fn no_sequence_of_accesses_panics(
        accesses in proptest::collection::vec(
            (any::<bool>(), 0_u64..0x120, any::<u32>(), 0_usize..9), 0..200),
        start: bool,
    ) {
        let bench = Bench::new();
        if start {
            bench.start();
        }
        for (write, offset, value, width) in accesses {
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            if write {
                bench.slot.write(offset, &data[..width]);
            } else {
                bench.slot.read(offset, &mut data[..width]);
            }
        }
    }

    /// Small values reach deeper states than random ones.
    #[test]
    fn no_plausible_driver_panics(
        accesses in proptest::collection::vec(
            (prop::sample::select(vec![0x14_u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70,
                0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4]),
             prop::sample::select(vec![0_u32, 1, 2, 3, 11, 15, 16, 64, 128, 0x1000, 0x10000,
                0xff_fff0, u32::MAX])), 0..300),
    ) {
        let bench = Bench::new();
        for (offset, value) in accesses {
            bench.write(offset, value);
            bench.read(offset);
        }
    }

    /// A queue that does not lie in guest memory as a whole is never handed to a device.
    #[test]
    fn unsound_queues_never_reach_a_device(
        size in 0_u32..70_000,
        areas in proptest::array::uniform3(prop_oneof![
            any::<u64>(), 0..2 * MEMORY_BYTES, MEMORY_BYTES - 4096..MEMORY_BYTES]),
        max in (0_u32..16).prop_map(|shift| 1_u16 << shift),
    ) {
        let bench = Bench::new();
        let setup = super::queues::QueueSetup { size, ready: true, areas, ..Default::default() };
        let built = setup.build(max, false, &bench.memory);
        let entries = u128::from(size);
        let lengths = [16 * entries, 6 + 2 * entries, 6 + 8 * entries];
        let inside = areas.iter().zip(lengths).zip([16, 2, 4]).all(|((address, bytes), align)| {
            *address != 0 && address % align == 0
                && u128::from(*address) + bytes <= u128::from(MEMORY_BYTES)
        });
        let sound = inside && size.is_power_of_two() && size <= max.into();
        prop_assert_eq!(built.is_ok(), sound);
    }
}
