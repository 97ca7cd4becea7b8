//! A device that does nothing but count, driven by the mock driver.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use vm_memory::{Bytes, GuestAddress};

use super::{BrokenQueue, Handler, QueueWorker, Request, Segment, read_space, read_start};
use crate::virtio::{
    device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
    mock::{Malformed, MockDriver},
    worker::Running,
};

const EVENT_IDX: u64 = 1 << 29;

/// What the handler saw, and what it is to do.
#[derive(Debug, Default)]
struct Seen {
    calls: AtomicUsize,
    segments: Mutex<Vec<Segment>>,
    start: Mutex<Vec<u8>>,
    /// Address of an available index to advance with each request.
    endless: Option<u64>,
}

#[derive(Debug)]
struct Count(Arc<Seen>);

impl Handler for Count {
    fn handle(&mut self, request: &Request<'_>) -> Result<u32, BrokenQueue> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        *self.0.segments.lock().unwrap() = request.segments.to_vec();
        let mut start = vec![0; 8];
        let bytes = read_start(request, &mut start);
        start.truncate(bytes);
        *self.0.start.lock().unwrap() = start;
        if let Some(index) = self.0.endless {
            let old: u16 = request.memory.read_obj(GuestAddress(index)).unwrap();
            let new = old.wrapping_add(1);
            request.memory.write_obj(new, GuestAddress(index)).unwrap();
        }
        Ok(7)
    }
}

#[derive(Debug, Default)]
struct Probe {
    seen: Arc<Seen>,
    worker: Option<Running<QueueWorker<Count>>>,
}

impl VirtioDevice for Probe {
    fn kind(&self) -> &'static str {
        "probe"
    }

    fn device_type(&self) -> u32 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn features(&self) -> u64 {
        EVENT_IDX
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = QueueWorker::new(
            "probe",
            activation.queues,
            activation.memory,
            activation.interrupt,
            Count(Arc::clone(&self.seen)),
        )
        .map_err(ActivateError::Worker)?;
        self.worker = Some(Running::spawn("probe", worker).map_err(ActivateError::Worker)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        let worker = self.worker.take();
        worker.map_or_else(Vec::new, |worker| worker.stop().into_queues().collect())
    }

    fn reset(&mut self) {
        drop(self.pause());
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), RestoreError> {
        Ok(())
    }
}

#[test]
fn chains_no_driver_may_make_reach_no_handler() {
    // Odd, but chains as far as the ring goes (of the table past memory, the chain takes only
    // what lies in it).
    let proper = [
        Malformed::OneByteReadable,
        Malformed::OneByteWritable,
        Malformed::Empty,
        Malformed::IndirectWithNext,
        Malformed::IndirectPastMemory,
    ];
    for how in Malformed::ALL {
        let mut device = Probe::default();
        let mut driver = MockDriver::new(&device, 64);
        driver.activate(&mut device, 0).unwrap();
        let scratch = driver.alloc(64 << 10);
        driver.rings[0].add_malformed(how, scratch);
        driver.notify(0);
        if proper.contains(&how) {
            driver.wait_interrupt();
        } else {
            driver.wait_needs_reset();
        }
        assert_eq!(device.pause().len(), 2, "{how:?}");
        let calls = device.seen.calls.load(Ordering::SeqCst);
        assert_eq!(calls, usize::from(proper.contains(&how)), "{how:?}");
        assert_eq!(driver.interrupt.needs_reset(), calls == 0, "{how:?}");
    }
}

#[test]
fn a_broken_queue_is_left_alone_but_not_the_others() {
    let mut device = Probe::default();
    let mut driver = MockDriver::new(&device, 64);
    driver.activate(&mut device, 0).unwrap();
    let scratch = driver.alloc(64 << 10);
    let buffer = driver.writable(16);
    driver.rings[0].add(&[buffer]);
    driver.rings[0].add_malformed(Malformed::Loop, scratch);
    driver.notify(0);
    driver.wait_needs_reset();
    // What came before the broken chain was served and is told.
    assert_eq!(driver.rings[0].take_used(), [(0, 7)]);
    driver.rings[0].add(&[buffer]);
    driver.notify(0);
    driver.rings[1].add(&[buffer]);
    driver.notify(1);
    driver.wait_used(1, 1);
    device.reset();
    assert_eq!(device.seen.calls.load(Ordering::SeqCst), 2);
    assert!(driver.rings[0].take_used().is_empty());
}

#[test]
fn a_driver_that_never_stops_cannot_hold_a_worker() {
    let template = Probe::default();
    let mut driver = MockDriver::new(&template, 64);
    let seen = Seen {
        endless: Some(driver.rings[0].available_ring() + 2),
        ..Seen::default()
    };
    let mut device = Probe {
        seen: Arc::new(seen),
        worker: None,
    };
    let buffer = driver.writable(16);
    driver.rings[0].add(&[buffer]);
    driver.rings[1].add(&[buffer]);
    driver.activate(&mut device, 0).unwrap();
    // The other queue gets its turn, and the worker stops.
    driver.wait_used(1, 1);
    assert_eq!(device.pause().len(), 2);
    assert!(device.seen.calls.load(Ordering::SeqCst) > 64);
}

#[test]
fn segments_are_what_the_driver_made() {
    let mut device = Probe::default();
    let mut driver = MockDriver::new(&device, 64);
    driver.activate(&mut device, 0).unwrap();
    let parts = [
        driver.readable(b"abc"),
        driver.readable(b"defghij"),
        driver.writable(5),
    ];
    driver.rings[0].add(&parts);
    driver.notify(0);
    assert_eq!(driver.wait_used(0, 1)[0].1, 7);
    let segments = device.seen.segments.lock().unwrap().clone();
    for (segment, part) in segments.iter().zip(parts) {
        let same = (segment.address.0, segment.bytes, segment.writable);
        assert_eq!(same, (part.address, part.bytes, part.writable));
    }
    assert_eq!(segments.len(), 3);
    assert_eq!(*device.seen.start.lock().unwrap(), b"abcdefgh");
}

#[test]
fn the_driver_is_told_when_it_wants_to_be() {
    let mut device = Probe::default();
    let mut driver = MockDriver::new(&device, 64);
    let buffer = driver.writable(16);
    // Not before 40 are used.
    driver.rings[0].set_used_event(39);
    for _ in 0..20 {
        driver.rings[0].add(&[buffer]);
    }
    driver.activate(&mut device, EVENT_IDX).unwrap();
    driver.wait_used(0, 20);
    assert!(!driver.poll_interrupt(Duration::from_millis(50)));
    for _ in 0..20 {
        driver.rings[0].add(&[buffer]);
    }
    driver.notify(0);
    driver.wait_interrupt();
    assert_eq!(driver.rings[0].take_used().len(), 20);
    // The device asks to be told of the next one.
    assert_eq!(driver.rings[0].available_event(), 40);
}

#[test]
fn configuration_past_the_end_is_zero() {
    let mut data = [0xff; 4];
    read_space(&[1, 2, 3], 1, &mut data);
    assert_eq!(data, [2, 3, 0, 0]);
    for offset in [3, 4, u64::MAX] {
        read_space(&[1, 2, 3], offset, &mut data);
        assert_eq!(data, [0; 4]);
        data = [0xff; 4];
    }
}
