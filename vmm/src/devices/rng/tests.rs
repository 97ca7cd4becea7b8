//! Requests are filled, within their bound.

use super::{REQUEST_MAX_BYTES, Rng};
use crate::virtio::{
    device::{ActivateError, VirtioDevice},
    mock::{Malformed, MockDriver},
};

const FEATURES: u64 = 1 << 32;

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut rng = Rng::default();
    let mut driver = MockDriver::new(&rng, 16);
    driver.activate(&mut rng, FEATURES).unwrap();
    let buffers = [driver.writable(64), driver.writable(1000)];
    driver.rings[0].add(&buffers);
    driver.notify(0);
    assert_eq!(driver.wait_used(0, 1)[0].1, 1064);
    assert_ne!(driver.content(buffers[0]), driver.content(buffers[1])[..64]);
    assert!(
        driver.content(buffers[1])[990..]
            .iter()
            .any(|byte| *byte != 0)
    );
    let mut bytes = 0;
    rng.counters(&mut |_, value| bytes = value);
    assert_eq!(bytes, 1064);
}

#[test]
fn a_request_gets_so_much_and_no_more() {
    let mut rng = Rng::default();
    let mut driver = MockDriver::new(&rng, 16);
    driver.activate(&mut rng, FEATURES).unwrap();
    let buffers = [driver.writable(3000), driver.writable(3000)];
    driver.rings[0].add(&buffers);
    driver.notify(0);
    assert_eq!(driver.wait_used(0, 1)[0].1, REQUEST_MAX_BYTES);
    let rest = &driver.content(buffers[1])[1096..];
    assert!(rest.iter().all(|byte| *byte == 0));
}

#[test]
fn it_goes_on_after_a_pause() {
    let mut rng = Rng::default();
    let mut driver = MockDriver::new(&rng, 16);
    driver.activate(&mut rng, FEATURES).unwrap();
    let queues = rng.pause();
    let buffer = driver.writable(8);
    driver.rings[0].add(&[buffer]);
    let state = rng.save();
    let mut other = Rng::default();
    other.restore(&state).unwrap();
    driver.resume(&mut other, queues, FEATURES).unwrap();
    assert_eq!(driver.wait_used(0, 1)[0].1, 8);
    assert!(other.restore(&[0]).is_err());
}

#[test]
fn broken_rings_do_not_hang_it() {
    for how in Malformed::ALL {
        let mut rng = Rng::default();
        let mut driver = MockDriver::new(&rng, 16);
        driver.activate(&mut rng, FEATURES).unwrap();
        driver.rings[0].add_malformed(how, 0x40_0000);
        driver.notify(0);
        while !driver.interrupt.needs_reset() && driver.rings[0].used_index() == 0 {
            driver.wait_interrupt();
        }
        rng.reset();
    }
}

#[test]
fn it_needs_its_queue() {
    let mut rng = Rng::default();
    let mut activation = MockDriver::new(&rng, 16).activation(FEATURES);
    activation.queues.clear();
    assert!(matches!(
        rng.activate(activation),
        Err(ActivateError::MissingQueue { index: 0 })
    ));
}
