//! virtio-rng (virtio 1.3 §5.4): one queue whose buffers are filled from `getrandom(2)`.
//! `device.rs` is the life cycle, `worker.rs` the queue. It has no state and no host side.

mod device;
#[cfg(test)]
mod tests;
mod worker;

pub use device::Rng;

/// Size of the queue. Linux keeps one request at a time.
const QUEUE_SIZE: u16 = 16;
/// Most bytes one request gets. Linux asks for 64; a guest that asks for gigabytes at a time must
/// not keep the worker from being stopped. The driver is told how many it got.
const REQUEST_MAX_BYTES: u32 = 4096;
