//! The contract between a virtio device and its transport.
//!
//! ```text
//!            activate            pause
//!   ┌───────┐ ─────► ┌────────┐ ─────► ┌────────┐
//!   │ reset │        │ active │        │ paused │   save: from `reset` and `paused` only
//!   └───────┘ ◄───── └────────┘ ◄───── └────────┘
//!       ▲     reset            activate    │ reset
//!       └──────────────────────────────────┘
//! ```
//!
//! The transport owns the queues while the driver sets them up and while the device is paused;
//! an active device's workers own them, and hand them back when they stop.

use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;

/// A queue in the hands of a device: the rings, and the event the driver's notifications arrive
/// on (an ioeventfd on `QueueNotify`, virtio 1.3 §4.2.2).
#[derive(Debug)]
pub struct ActiveQueue {
    /// Index of the queue in the device, from 0.
    pub index: u16,
    /// The rings. Validated by the transport: ready, and within guest memory.
    pub queue: Queue,
    /// Readable when the driver made buffers available.
    pub notified: Arc<EventFd>,
}

/// What a device gets to work with.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// The queues the driver made ready, ascending by index; a driver may leave some unused.
    pub queues: Vec<ActiveQueue>,
    /// The device's interrupt.
    pub interrupt: Arc<Interrupt>,
    /// Feature bits the driver accepted, a subset of [`VirtioDevice::features`].
    pub features: u64,
}

/// Why a device could not be activated; the transport sets `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not make a queue ready that the device cannot do without.
    #[error("queue {index} is not ready")]
    MissingQueue {
        /// Index of the queue.
        index: u16,
    },
    /// A worker thread could not be started.
    #[error("cannot start worker thread")]
    Worker(#[source] std::io::Error),
}

/// Why a device could not be rebuilt from a saved state.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are not a state of this device.
    #[error("malformed device state")]
    Malformed(#[source] postcard::Error),
    /// The state does not fit the device's configuration.
    #[error("device state does not fit the configuration: {what}")]
    Mismatch {
        /// What differs.
        what: &'static str,
    },
}

/// A virtio device behind a transport.
pub trait VirtioDevice: Send {
    /// Short name for logs, counters and thread names: `vsock`, `fs`, `blk`, …
    fn kind(&self) -> &'static str;

    /// Device type of virtio 1.3 §5.
    fn device_type(&self) -> u32;

    /// Largest size of each queue, each a power of two up to 32,768.
    fn queue_sizes(&self) -> &[u16];

    /// Feature bits offered to the driver, `VIRTIO_F_VERSION_1` included.
    fn features(&self) -> u64;

    /// Reads configuration space. Bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes configuration space. Writes to read-only fields or past its end are ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts work on the queues, also after [`pause`](Self::pause).
    ///
    /// # Errors
    /// When a queue is missing or a thread cannot be started. The device is then in reset.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops all work and hands the queues back, none lost and no descriptor half done. Empty if
    /// the device was not active. Connections, open files and other host state are kept.
    fn pause(&mut self) -> Vec<ActiveQueue>;

    /// Stops all work and returns to the state after power-on; host state that belongs to the
    /// driver's session (connections, open files) is dropped.
    fn reset(&mut self);

    /// The state beyond queues, features and status (which the transport saves): the postcard
    /// encoding of a struct of the device. Called in reset or paused only.
    fn save(&self) -> Vec<u8>;

    /// Takes over a saved state, before the device is first activated.
    ///
    /// # Errors
    /// When the bytes are malformed or do not fit.
    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError>;

    /// The newest of what the guest printed, for a device that keeps it.
    fn output(&self) -> Option<Vec<u8>> {
        None
    }

    /// Calls `report` with each counter's name and value.
    fn counters(&self, _report: &mut dyn FnMut(&'static str, u64)) {}
}
