//! virtio-console (virtio 1.3 §5.3): one port, output only. What the guest prints goes to a
//! bounded ring that the control socket reads, and to a file if there is one. `device.rs` is the
//! life cycle, `worker.rs` the queue, `ring.rs` and `backend.rs` the host side.
//!
//! No input: the receive queue is there because the specification has it, and is never served.

mod backend;
mod device;
mod ring;
#[cfg(test)]
mod tests;
mod worker;

pub use device::{Console, ConsoleError};

/// Size of both queues. Linux prints a chunk and waits until it is used.
const QUEUE_SIZE: u16 = 64;
/// Index of the transmit queue of port 0.
const TRANSMIT_QUEUE: u16 = 1;
/// Least and most bytes of the ring.
const RING_MIN_BYTES: u32 = 4 << 10;
const RING_MAX_BYTES: u32 = 1 << 20;
