//! What the guest prints arrives; what cannot be taken does not stop it.

use std::io::{Read, Seek};

use lazaret_protocol::vm::{ConsoleConfig, Fd};
use proptest::prelude::*;

use super::{Console, ConsoleError, TRANSMIT_QUEUE, ring::Ring};
use crate::{
    fds::Fds,
    virtio::{
        device::{ActivateError, VirtioDevice},
        mock::{Malformed, MockDriver},
    },
};

const TRANSMIT: usize = TRANSMIT_QUEUE as usize;
const FEATURES: u64 = 1 << 32;

fn console(ring_bytes: u32, output: Option<std::os::fd::OwnedFd>) -> Result<Console, ConsoleError> {
    let config = ConsoleConfig {
        ring_bytes,
        output: output.is_some().then_some(Fd(0)),
    };
    Console::from_config(&config, &mut Fds::new(output.into_iter().collect()))
}

fn print(driver: &mut MockDriver, text: &[u8]) {
    let buffer = driver.readable(text);
    let head = driver.rings[TRANSMIT].add(&[buffer]);
    driver.notify(TRANSMIT);
    assert_eq!(driver.wait_used(TRANSMIT, 1), [(head, 0)]);
}

#[test]
fn output_goes_to_the_ring_and_the_file() {
    let mut file = tempfile::tempfile().unwrap();
    let mut console = console(4096, Some(file.try_clone().unwrap().into())).unwrap();
    let mut driver = MockDriver::new(&console, 16);
    driver.activate(&mut console, FEATURES).unwrap();
    print(&mut driver, b"hello ");
    let parts = [driver.readable(b"wor"), driver.readable(b"ld")];
    driver.rings[TRANSMIT].add(&parts);
    driver.notify(TRANSMIT);
    driver.wait_used(TRANSMIT, 1);
    assert_eq!(console.output().unwrap(), b"hello world");
    let mut written = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut written).unwrap();
    assert_eq!(written, "hello world");
    // More than the ring and a chunk hold.
    let long: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
    print(&mut driver, &long);
    assert_eq!(console.output().unwrap(), long[10_000 - 4096..]);
}

#[test]
fn a_full_pipe_does_not_stop_the_guest() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut console = console(4096, Some(writer.into())).unwrap();
    let mut driver = MockDriver::new(&console, 16);
    driver.activate(&mut console, FEATURES).unwrap();
    for _ in 0..40 {
        print(&mut driver, &[b'x'; 4096]);
    }
    let mut dropped = 0;
    console.counters(&mut |name, value| {
        if name == "dropped_bytes" {
            dropped = value;
        }
    });
    assert!(dropped > 0);
    drop(reader);
    print(&mut driver, b"nobody reads this");
    assert!(console.output().unwrap().ends_with(b"reads this"));
}

#[test]
fn it_goes_on_after_a_pause_and_in_another_console() {
    let mut first = console(4096, None).unwrap();
    let mut driver = MockDriver::new(&first, 16);
    driver.activate(&mut first, FEATURES).unwrap();
    print(&mut driver, b"one ");
    let queues = first.pause();
    assert_eq!(queues.len(), 2);
    driver.resume(&mut first, queues, FEATURES).unwrap();
    print(&mut driver, b"two ");
    let queues = first.pause();
    let state = first.save();

    let mut second = console(4096, None).unwrap();
    second.restore(&state).unwrap();
    driver.resume(&mut second, queues, FEATURES).unwrap();
    print(&mut driver, b"three");
    assert_eq!(second.output().unwrap(), b"one two three");
    assert!(second.restore(&[1]).is_err());
}

#[test]
fn broken_rings_do_not_hang_it() {
    for how in Malformed::ALL {
        let mut console = console(4096, None).unwrap();
        let mut driver = MockDriver::new(&console, 16);
        driver.activate(&mut console, FEATURES).unwrap();
        driver.rings[TRANSMIT].add_malformed(how, 0x40_0000);
        driver.notify(TRANSMIT);
        while !driver.interrupt.needs_reset() && driver.rings[TRANSMIT].used_index() == 0 {
            driver.wait_interrupt();
        }
        console.reset();
        assert!(console.pause().is_empty());
    }
}

#[test]
fn it_needs_its_queue_and_a_sensible_ring() {
    for bytes in [0, 4095, (1 << 20) + 1, u32::MAX] {
        assert!(matches!(
            console(bytes, None),
            Err(ConsoleError::RingSize { .. })
        ));
    }
    let mut console = console(4096, None).unwrap();
    let driver = MockDriver::new(&console, 16);
    let mut activation = driver.activation(FEATURES);
    activation.queues.truncate(1);
    assert!(matches!(
        console.activate(activation),
        Err(ActivateError::MissingQueue { index: 1 })
    ));
}

proptest! {
    #[test]
    fn the_ring_keeps_the_newest(
        bound in 1_usize..50,
        writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 0..20),
    ) {
        let mut ring = Ring::new(bound);
        let mut all = Vec::new();
        for write in &writes {
            ring.write(write);
            all.extend(write);
        }
        prop_assert_eq!(ring.content(), &all[all.len().saturating_sub(bound)..]);
    }
}
