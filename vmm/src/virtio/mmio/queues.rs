//! A queue while the driver sets it up: registers as they were written, checked when the device
//! is activated.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

/// Alignment of the descriptor table, the driver area and the device area (virtio 1.3 §2.7).
const ALIGNMENTS: [u64; 3] = [16, 2, 4];

/// Registers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct QueueSetup {
    pub(super) size: u32,
    pub(super) ready: bool,
    /// Descriptor table, driver area (available ring), device area (used ring).
    pub(super) areas: [u64; 3],
    /// How far the device has read the available ring; 0 until it ran.
    pub(super) next_available: u16,
    /// How far the device has written the used ring.
    pub(super) next_used: u16,
}

/// What is wrong with a queue that the driver made ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum QueueError {
    #[error("size {size} is no power of two up to {max}")]
    Size { size: u32, max: u16 },
    #[error("area at {address:#x} of {bytes} bytes is misaligned or not in guest memory")]
    Area { address: u64, bytes: u64 },
}

impl QueueSetup {
    /// A write to the low (0) or high (1) half of an area's address.
    pub(super) fn set_half(&mut self, area: usize, half: usize, value: u32) {
        let shift = 32 * half;
        let mask = 0xffff_ffff_u64 << shift;
        self.areas[area] = self.areas[area] & !mask | u64::from(value) << shift;
    }

    /// The rings, if they are sound.
    pub(super) fn build(
        &self,
        max: u16,
        event_idx: bool,
        memory: &GuestMemoryMmap,
    ) -> Result<Queue, QueueError> {
        let size = self.size;
        let bad_size = QueueError::Size { size, max };
        let size = u16::try_from(size).map_err(|_| bad_size)?;
        if !size.is_power_of_two() || size > max {
            return Err(bad_size);
        }
        let entries = u64::from(size);
        // §2.7: 16 bytes a descriptor; 2 and 8 bytes a ring entry, 6 bytes of flags, index, event.
        let lengths = [16 * entries, 6 + 2 * entries, 6 + 8 * entries];
        for ((address, bytes), alignment) in self.areas.into_iter().zip(lengths).zip(ALIGNMENTS) {
            let length = usize::try_from(bytes).expect("32768 entries take less than 1 MiB");
            // Address 0 is what virtio-queue takes for "not set".
            let sound = address != 0
                && address.is_multiple_of(alignment)
                && address.checked_add(bytes).is_some()
                && memory.check_range(GuestAddress(address), length);
            if !sound {
                return Err(QueueError::Area { address, bytes });
            }
        }
        let [desc_table, avail_ring, used_ring] = self.areas;
        let state = QueueState {
            max_size: max,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size,
            ready: true,
            desc_table,
            avail_ring,
            used_ring,
        };
        Queue::try_from(state).map_err(|_| bad_size)
    }

    /// Notes how far the device came, when it hands the queue back.
    pub(super) fn note_progress(&mut self, queue: &Queue) {
        self.next_available = queue.next_avail();
        self.next_used = queue.next_used();
    }
}
