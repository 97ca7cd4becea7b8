//! A virtio driver for tests: builds rings in guest memory and plays the guest's side, honestly or
//! not. Device tests activate their device with [`MockDriver`]; it must not know any device.

mod ring;

use std::{
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use ring::{Buffer, INDIRECT, Malformed, NEXT, RawDescriptor, Ring, WRITE};

use super::{
    device::{ActivateError, Activation, ActiveQueue, VirtioDevice},
    interrupt::Interrupt,
};

/// Guest memory of a mock, in bytes, from address 0.
pub const MEMORY_BYTES: u64 = 16 << 20;
/// Where the rings of queue 0 lie; 64 KiB further those of queue 1, and so on.
pub const RINGS_START: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x1_0000;
/// Where [`MockDriver::alloc`] starts.
pub const BUFFERS_START: u64 = 0x80_0000;

/// How long a test waits for a device before it fails.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A driver with a memory of its own, rings for all queues of a device, and its interrupt.
#[derive(Debug)]
pub struct MockDriver {
    /// 16 MiB from address 0.
    pub memory: GuestMemoryMmap,
    /// One ring per queue.
    pub rings: Vec<Ring>,
    /// What the device signals on.
    pub interrupt: Arc<Interrupt>,
    /// Written by each interrupt.
    pub irq: Arc<EventFd>,
    notifiers: Vec<Arc<EventFd>>,
    max_sizes: Vec<u16>,
    free: u64,
}

impl MockDriver {
    /// A driver for `device`; each ring has the queue's largest size, at most `ring_size`.
    pub fn new(device: &dyn VirtioDevice, ring_size: u16) -> Self {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
        let max_sizes = device.queue_sizes().to_vec();
        let rings = (0_u64..)
            .zip(&max_sizes)
            .map(|(index, max)| {
                let base = RINGS_START + index * RING_STRIDE;
                Ring::new(&memory, base, ring_size.min(*max))
            })
            .collect();
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let irq = event();
        Self {
            memory,
            rings,
            interrupt: Arc::new(Interrupt::new(Arc::clone(&irq))),
            irq,
            notifiers: max_sizes.iter().map(|_| event()).collect(),
            max_sizes,
            free: BUFFERS_START,
        }
    }

    /// What the transport would hand to the device; all queues ready.
    pub fn activation(&self, features: u64) -> Activation {
        let event_idx = features & (1 << 29) != 0;
        let queues = (0_u16..)
            .zip(&self.rings)
            .map(|(index, ring)| {
                let mut queue = ring.queue(self.max_sizes[usize::from(index)]);
                queue.set_event_idx(event_idx);
                ActiveQueue {
                    index,
                    queue,
                    notified: Arc::clone(&self.notifiers[usize::from(index)]),
                }
            })
            .collect();
        Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features,
        }
    }

    /// Activates `device` with `features`.
    ///
    /// # Errors
    /// The device's.
    pub fn activate(
        &self,
        device: &mut dyn VirtioDevice,
        features: u64,
    ) -> Result<(), ActivateError> {
        device.activate(self.activation(features))
    }

    /// Activates `device` again with queues it handed back when paused.
    ///
    /// # Errors
    /// The device's.
    pub fn resume(
        &self,
        device: &mut dyn VirtioDevice,
        queues: Vec<ActiveQueue>,
        features: u64,
    ) -> Result<(), ActivateError> {
        device.activate(Activation {
            queues,
            ..self.activation(features)
        })
    }

    /// Tells the device that queue `index` has buffers.
    pub fn notify(&self, index: usize) {
        self.notifiers[index].write(1).unwrap();
    }

    /// A fresh zeroed buffer in guest memory, 16-byte aligned.
    pub fn alloc(&mut self, bytes: u32) -> u64 {
        let address = self.free;
        self.free = (address + u64::from(bytes)).next_multiple_of(16);
        assert!(self.free <= MEMORY_BYTES, "mock memory is exhausted");
        address
    }

    /// A fresh buffer with `content`, as a readable part of a chain.
    pub fn readable(&mut self, content: &[u8]) -> Buffer {
        let bytes = u32::try_from(content.len()).unwrap();
        let address = self.alloc(bytes);
        self.memory
            .write_slice(content, GuestAddress(address))
            .unwrap();
        Buffer::readable(address, bytes)
    }

    /// A fresh buffer, as a writable part of a chain.
    pub fn writable(&mut self, bytes: u32) -> Buffer {
        Buffer::writable(self.alloc(bytes), bytes)
    }

    /// What a buffer holds.
    pub fn content(&self, buffer: Buffer) -> Vec<u8> {
        let mut content = vec![0; buffer.bytes as usize];
        self.memory
            .read_slice(&mut content, GuestAddress(buffer.address))
            .unwrap();
        content
    }

    /// Waits for an interrupt. Panics after [`DEADLINE`].
    pub fn wait_interrupt(&self) {
        assert!(self.poll_interrupt(DEADLINE), "no interrupt in time");
    }

    /// Waits until queue `index` has `count` used chains and takes them. Panics after [`DEADLINE`].
    pub fn wait_used(&mut self, index: usize, count: usize) -> Vec<(u16, u32)> {
        let end = Instant::now() + DEADLINE;
        let mut used = self.rings[index].take_used();
        while used.len() < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "queue {index}: {} of {count} chains used in time",
                used.len()
            );
            self.poll_interrupt(left.min(Duration::from_millis(100)));
            used.extend(self.rings[index].take_used());
        }
        used
    }

    /// Waits until the device gave up on the driver. Panics after [`DEADLINE`].
    pub fn wait_needs_reset(&self) {
        let end = Instant::now() + DEADLINE;
        while !self.interrupt.needs_reset() {
            assert!(Instant::now() < end, "device did not ask for a reset");
            self.poll_interrupt(Duration::from_millis(100));
        }
    }

    /// Whether an interrupt arrives within `timeout`; takes it.
    pub fn poll_interrupt(&self, timeout: Duration) -> bool {
        let mut poll = libc::pollfd {
            fd: self.irq.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap();
        // SAFETY: `poll` is one valid pollfd for the duration of the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
        ready == 1 && self.irq.read().is_ok()
    }
}
