//! A virtqueue at work: virtio-queue's, with errors that name it and the driver's interrupt
//! suppression (virtio 1.3 §2.7.7). Used by the worker; knows no packets.

use std::{io, sync::atomic::Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::packet::ChainError;
use crate::virtio::device::ActiveQueue;

/// Flag of the available ring: the driver wants no interrupt (virtio 1.3 §2.7.7).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// Why the device gives up on the driver.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    /// The driver broke the rings.
    #[error("broken {name} queue")]
    Queue {
        /// Which queue.
        name: &'static str,
        /// How.
        #[source]
        source: virtio_queue::Error,
    },
    /// The driver made a chain that cannot be used.
    #[error("broken descriptor chain in the {name} queue")]
    Chain {
        /// Which queue.
        name: &'static str,
        /// How.
        #[source]
        source: ChainError,
    },
    /// The kernel refused to watch a descriptor.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// A queue at work.
#[derive(Debug)]
pub(super) struct Served {
    name: &'static str,
    /// What the transport handed over.
    pub(super) active: ActiveQueue,
    /// Whether chains were used that the driver was not told of yet.
    used: bool,
}

impl Served {
    /// Puts `active` to work under the name that errors have for it.
    pub(super) fn new(name: &'static str, active: ActiveQueue) -> Self {
        Self {
            name,
            active,
            used: false,
        }
    }

    fn queue(&mut self) -> &mut Queue {
        &mut self.active.queue
    }

    /// The next chain the driver made available.
    pub(super) fn pop<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, ServeError> {
        let name = self.name;
        let mut chains = self
            .queue()
            .iter(memory)
            .map_err(|source| ServeError::Queue { name, source })?;
        Ok(chains.next())
    }

    /// Whether the driver has made no chain available.
    pub(super) fn is_empty(&mut self, memory: &GuestMemoryMmap) -> Result<bool, ServeError> {
        let name = self.name;
        let available = self
            .queue()
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|source| ServeError::Queue { name, source })?;
        Ok(available.0 == self.queue().next_avail())
    }

    /// Gives the last `count` chains back, as if they had not been taken.
    pub(super) fn unpop(&mut self, count: usize) {
        // At most TURN_BUFFERS_MAX.
        let next = self.queue().next_avail().wrapping_sub(count as u16);
        self.queue().set_next_avail(next);
    }

    /// Hands the chain at `head` back to the driver, with `bytes` written to it.
    pub(super) fn use_chain(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        bytes: usize,
    ) -> Result<(), ServeError> {
        let name = self.name;
        // A chain has less than 2^32 bytes (virtio 1.3 §2.7.5.2, and virtio-queue sees to it).
        self.queue()
            .add_used(memory, head, bytes as u32)
            .map_err(|source| ServeError::Queue { name, source })?;
        self.used = true;
        Ok(())
    }

    /// Asks for notifications; whether there are chains already.
    pub(super) fn wait(&mut self, memory: &GuestMemoryMmap) -> Result<bool, ServeError> {
        let name = self.name;
        self.queue()
            .enable_notification(memory)
            .map_err(|source| ServeError::Queue { name, source })
    }

    /// Asks for no notifications.
    pub(super) fn stop_waiting(&mut self, memory: &GuestMemoryMmap) -> Result<(), ServeError> {
        let name = self.name;
        self.queue()
            .disable_notification(memory)
            .map_err(|source| ServeError::Queue { name, source })
    }

    /// Whether the driver wants an interrupt for what was used since the last call.
    pub(super) fn wants_interrupt(&mut self, memory: &GuestMemoryMmap) -> Result<bool, ServeError> {
        if !std::mem::take(&mut self.used) {
            return Ok(false);
        }
        let name = self.name;
        let wanted = self
            .queue()
            .needs_notification(memory)
            .map_err(|source| ServeError::Queue { name, source })?;
        if !wanted || self.queue().event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = memory
            .read_obj(GuestAddress(self.queue().avail_ring()))
            .map_err(|source| ServeError::Chain {
                name,
                source: ChainError::Memory(source),
            })?;
        Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
    }
}
