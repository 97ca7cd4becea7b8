//! virtio-blk (virtio 1.3 §5.2): a raw file or a block device of the host as a disk.
//! `device.rs` is configuration space and life cycle, `worker.rs` takes requests apart,
//! `backend.rs` does the I/O, directly between guest memory and the file.
//!
//! The host's page cache is the disk's write cache: with `VIRTIO_BLK_F_FLUSH` the driver says
//! when it has to be written out; a driver that does not accept it gets every write written out
//! before it is told (§5.2.6.2).

mod backend;
mod device;
mod worker;

pub use device::{Block, BlockError};

/// The unit of capacity and request positions (§5.2.4).
const SECTOR_BYTES: u64 = 512;
/// Size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Most request queues; a thread each.
const QUEUES_MAX: u16 = 64;
/// Most data segments of a request: a queue's length less header and status.
const SEGMENTS_MAX: usize = QUEUE_SIZE as usize - 2;
/// Largest data segment. With [`SEGMENTS_MAX`] it bounds what one request moves to 32 MiB, so
/// that a worker can stop soon.
const SEGMENT_MAX_BYTES: u32 = 128 << 10;
/// Longest serial number (§5.2.6).
const SERIAL_MAX_BYTES: usize = 20;
/// Most ranges of a discard or write-zeroes request.
const RANGES_MAX: usize = 32;
/// Most sectors of a range to discard: 1 GiB.
const DISCARD_MAX_SECTORS: u32 = (1 << 30) / SECTOR_BYTES as u32;
/// Most sectors of a range to fill with zeros, which may mean to write them: 16 MiB.
const ZEROES_MAX_SECTORS: u32 = (16 << 20) / SECTOR_BYTES as u32;

#[cfg(test)]
mod tests;
