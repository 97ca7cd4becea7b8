//! A device's interrupt: the status bits of virtio 1.3 §4.2.2 and the irqfd behind them.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use vmm_sys_util::eventfd::EventFd;

/// `InterruptStatus` bit: a queue has used buffers.
const USED_BUFFER: u32 = 1;
/// `InterruptStatus` bit: the configuration changed, or `DEVICE_NEEDS_RESET` was set.
const CONFIGURATION_CHANGE: u32 = 2;

/// Shared by a device's workers and its transport.
#[derive(Debug)]
pub struct Interrupt {
    status: AtomicU32,
    generation: AtomicU32,
    needs_reset: AtomicBool,
    irq: Arc<EventFd>,
}

impl Interrupt {
    /// An interrupt that is raised by writing to `irq`.
    pub fn new(irq: Arc<EventFd>) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            irq,
        }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn signal_used(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the configuration space changed.
    pub fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIGURATION_CHANGE);
    }

    /// Tells the driver that the device gave up on it (virtio 1.3 §2.1.2). What a worker does
    /// when the guest broke a ring: report here, stop serving, stay stoppable.
    pub fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIGURATION_CHANGE);
    }

    /// Whether the device gave up since the last [`clear`](Self::clear).
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The `InterruptStatus` register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The `ConfigGeneration` register: differs after each [`signal_config`](Self::signal_config).
    pub fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// A write to the `InterruptACK` register.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Back to the state after power-on.
    pub fn clear(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }

    /// Takes over a saved state. An interrupt that was pending is raised again: the driver
    /// tolerates one too many, but not one too few.
    pub fn restore(&self, status: u32, generation: u32, needs_reset: bool) {
        self.generation.store(generation, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
        if status != 0 {
            self.raise(status);
        }
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::AcqRel);
        // An eventfd write fails only when the counter is about to overflow: then the interrupt
        // is pending already.
        let _ = self.irq.write(1);
    }
}
