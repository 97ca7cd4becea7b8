//! Configuration space, features and life cycle.

use std::{io, os::fd::OwnedFd, sync::Arc, sync::atomic::Ordering};

use lazaret_protocol::vm::BlockConfig;
use serde::{Deserialize, Serialize};
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
        VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_WRITE_ZEROES,
    },
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ids::VIRTIO_ID_BLOCK,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use super::{
    DISCARD_MAX_SECTORS, QUEUE_SIZE, QUEUES_MAX, RANGES_MAX, SECTOR_BYTES, SEGMENT_MAX_BYTES,
    SEGMENTS_MAX, SERIAL_MAX_BYTES, ZEROES_MAX_SECTORS,
    backend::{Disk, DiskError},
    worker::{Counters, Requests},
};
use crate::{
    devices::serve::{QueueWorker, read_space},
    fds::{FdError, Fds},
    virtio::{
        device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
        interrupt::Interrupt,
        worker::Running,
    },
};

/// Bytes of the configuration space (§5.2.4), up to write-zeroes.
const CONFIG_BYTES: usize = 60;

/// Why a disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The serial number is too long or has a zero byte.
    #[error("disk serial {serial:?} is not at most 20 bytes without NUL")]
    Serial {
        /// The serial number.
        serial: String,
    },
    /// Not 1 to 64 request queues.
    #[error("disk {serial:?} has {queues} queues, not 1 to 64")]
    Queues {
        /// The serial number.
        serial: String,
        /// Number of queues.
        queues: u16,
    },
    /// The descriptor of the file is not to be had.
    #[error("descriptor of disk")]
    Descriptor(#[from] FdError),
    /// The file cannot be a disk.
    #[error("cannot use the file of disk {serial:?}")]
    File {
        /// The serial number.
        serial: String,
        /// Why not.
        #[source]
        source: DiskError,
    },
}

/// What is saved of a disk: enough to refuse another one.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    serial: [u8; SERIAL_MAX_BYTES],
    capacity: u64,
    queues: u16,
    readonly: bool,
}

/// A virtio-blk device.
#[derive(Debug)]
pub struct Block {
    disk: Arc<Disk>,
    serial: [u8; SERIAL_MAX_BYTES],
    readonly: bool,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_BYTES],
    counters: Arc<Counters>,
    workers: Vec<Running<QueueWorker<Requests>>>,
}

impl Block {
    /// A disk in `file`, a regular file or block device opened for reading and, unless
    /// `readonly`, writing. `serial` is at most 20 bytes; there are `queues` request queues.
    ///
    /// # Errors
    /// When an argument is out of range, or the file cannot be a disk.
    pub fn new(
        file: OwnedFd,
        serial: &str,
        readonly: bool,
        queues: u16,
    ) -> Result<Self, BlockError> {
        let owned = || serial.to_owned();
        if serial.len() > SERIAL_MAX_BYTES || serial.contains('\0') {
            return Err(BlockError::Serial { serial: owned() });
        }
        if !(1..=QUEUES_MAX).contains(&queues) {
            let serial = owned();
            return Err(BlockError::Queues { serial, queues });
        }
        let disk = Disk::new(file, readonly).map_err(|source| BlockError::File {
            serial: owned(),
            source,
        })?;
        let mut serial_bytes = [0; SERIAL_MAX_BYTES];
        serial_bytes[..serial.len()].copy_from_slice(serial.as_bytes());
        Ok(Self {
            config: config_space(&disk, readonly, queues),
            disk: Arc::new(disk),
            serial: serial_bytes,
            readonly,
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            counters: Arc::default(),
            workers: Vec::new(),
        })
    }

    /// A device with the descriptor that `config` names.
    ///
    /// # Errors
    /// When it was not sent, and as [`Block::new`].
    pub fn from_config(config: &BlockConfig, fds: &mut Fds) -> Result<Self, BlockError> {
        let file = fds.take("block.file", config.file)?;
        Self::new(file, &config.serial, config.readonly, config.queues)
    }

    fn state(&self) -> State {
        State {
            serial: self.serial,
            capacity: self.disk.capacity(),
            // As many as the constructor was given.
            queues: u16::try_from(self.queue_sizes.len()).unwrap_or(QUEUES_MAX),
            readonly: self.readonly,
        }
    }

    fn start_worker(
        &mut self,
        queue: ActiveQueue,
        memory: &vm_memory::GuestMemoryMmap,
        interrupt: &Arc<Interrupt>,
        write_through: bool,
    ) -> io::Result<()> {
        let name = format!("blk-{}", queue.index);
        let worker = QueueWorker::new(
            "blk",
            vec![queue],
            memory.clone(),
            Arc::clone(interrupt),
            Requests {
                disk: Arc::clone(&self.disk),
                counters: Arc::clone(&self.counters),
                serial: self.serial,
                readonly: self.readonly,
                write_through,
            },
        )?;
        self.workers.push(Running::spawn(&name, worker)?);
        Ok(())
    }
}

fn config_space(disk: &Disk, readonly: bool, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut space = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let (logical, physical) = (disk.logical_block(), disk.physical_block());
    put(0, &(disk.capacity() / SECTOR_BYTES).to_le_bytes());
    put(8, &SEGMENT_MAX_BYTES.to_le_bytes());
    put(12, &(SEGMENTS_MAX as u32).to_le_bytes());
    put(20, &logical.to_le_bytes());
    // Topology: how many logical blocks a physical one has, as a power of two; no offset; the
    // smallest I/O without penalty in logical blocks; no optimal one.
    let exponent = (physical / logical).ilog2();
    put(24, &[exponent as u8, 0]);
    put(26, &(1_u16 << exponent).to_le_bytes());
    put(34, &queues.to_le_bytes());
    if !readonly {
        put(36, &DISCARD_MAX_SECTORS.to_le_bytes());
        put(40, &(RANGES_MAX as u32).to_le_bytes());
        put(44, &(physical / SECTOR_BYTES as u32).to_le_bytes());
        put(48, &ZEROES_MAX_SECTORS.to_le_bytes());
        put(52, &(RANGES_MAX as u32).to_le_bytes());
        put(56, &[1]);
    }
    space
}

impl VirtioDevice for Block {
    fn kind(&self) -> &'static str {
        "blk"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_TOPOLOGY;
        if self.queue_sizes.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.readonly {
            features | 1 << VIRTIO_BLK_F_RO
        } else {
            features | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation
            .queues
            .first()
            .is_none_or(|queue| queue.index != 0)
        {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        let write_through = activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
        let (memory, interrupt) = (activation.memory, activation.interrupt);
        for queue in activation.queues {
            if let Err(error) = self.start_worker(queue, &memory, &interrupt, write_through) {
                self.reset();
                return Err(ActivateError::Worker(error));
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        self.workers
            .drain(..)
            .flat_map(|worker| worker.stop().into_queues())
            .collect()
    }

    fn reset(&mut self) {
        drop(self.pause());
    }

    fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.state()).expect("numbers always serialise")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let saved: State = postcard::from_bytes(state).map_err(RestoreError::Malformed)?;
        let own = self.state();
        for (same, what) in [
            (saved.serial == own.serial, "serial number of the disk"),
            (saved.capacity == own.capacity, "capacity of the disk"),
            (saved.queues == own.queues, "number of queues of the disk"),
            (
                saved.readonly == own.readonly,
                "whether the disk is read-only",
            ),
        ] {
            if !same {
                return Err(RestoreError::Mismatch { what });
            }
        }
        Ok(())
    }

    fn counters(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let counters = &self.counters;
        for (name, counter) in [
            ("reads", &counters.reads),
            ("writes", &counters.writes),
            ("bytes_read", &counters.bytes_read),
            ("bytes_written", &counters.bytes_written),
            ("flushes", &counters.flushes),
            ("failures", &counters.failures),
        ] {
            report(name, counter.load(Ordering::Relaxed));
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
    }
}
