//! The state of a slot that a driver sets up: status, features and queues, and the device behind
//! them.

use std::{fmt, sync::Arc};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::{
    Doorbells,
    queues::QueueSetup,
    registers::{self, FEATURE_EVENT_IDX, FEATURE_VERSION_1, Status},
};
use crate::virtio::{
    device::{Activation, ActiveQueue, VirtioDevice},
    interrupt::Interrupt,
};

/// Most faults of a guest that one device logs: what comes after says nothing new.
const FAULTS_LOGGED_MAX: u32 = 8;

/// Whether the device works on its queues.
#[derive(Debug)]
pub(super) enum Work {
    /// The driver is not ready.
    Stopped,
    /// The device has the queues.
    Active,
    /// The transport has them.
    Paused(Vec<ActiveQueue>),
}

/// A device and what its driver has set up.
pub struct Transport {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) notifiers: Arc<[Arc<EventFd>]>,
    pub(super) status: Status,
    pub(super) features: u64,
    pub(super) device_features_select: u32,
    pub(super) driver_features_select: u32,
    pub(super) queue_select: u32,
    pub(super) queues: Vec<QueueSetup>,
    pub(super) work: Work,
    notify_address: u64,
    doorbells: Box<dyn Doorbells>,
    /// Queues whose doorbell is connected.
    connected: Vec<u16>,
    faults: u32,
}

impl fmt::Debug for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Transport")
            .field("kind", &self.device.kind())
            .field("status", &self.status)
            .field("work", &self.work)
            .finish_non_exhaustive()
    }
}

impl Transport {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        address: u64,
        interrupt: Arc<Interrupt>,
        notifiers: Arc<[Arc<EventFd>]>,
        doorbells: Box<dyn Doorbells>,
    ) -> Self {
        let queues = device.queue_sizes().iter().map(initial_queue).collect();
        Self {
            device,
            memory,
            interrupt,
            notifiers,
            status: Status::empty(),
            features: 0,
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            queues,
            work: Work::Stopped,
            notify_address: address + registers::QUEUE_NOTIFY,
            doorbells,
            connected: Vec::new(),
            faults: 0,
        }
    }

    /// The device.
    pub fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// `reset`, `active` or `needs-reset`.
    pub fn state_name(&self) -> &'static str {
        if self.interrupt.needs_reset() {
            "needs-reset"
        } else if self.status.contains(Status::DRIVER_OK) {
            "active"
        } else {
            "reset"
        }
    }

    /// Whether a driver of the guest has the device. One that let go of it leaves `ACKNOWLEDGE` at
    /// most (which Linux sets again after the reset), one that gave up has set `FAILED`.
    pub(super) fn is_driven(&self) -> bool {
        self.status.intersects(Status::DRIVER | Status::DRIVER_OK)
            && !self.status.contains(Status::FAILED)
    }

    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            registers::MAGIC => registers::MAGIC_VALUE,
            registers::VERSION => registers::VERSION_VALUE,
            registers::DEVICE_ID => self.device.device_type(),
            registers::VENDOR_ID => registers::VENDOR_VALUE,
            registers::DEVICE_FEATURES => half(self.device.features(), self.device_features_select),
            registers::QUEUE_SIZE_MAX => self.queue_max().into(),
            registers::QUEUE_READY => self.queue().is_some_and(|queue| queue.ready).into(),
            registers::STATUS => self.status_register().bits(),
            // §4.2.2: a length of all ones says that there is no such region.
            registers::SHARED_MEMORY_LENGTH_LOW..=registers::SHARED_MEMORY_BASE_HIGH => u32::MAX,
            registers::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            registers::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            registers::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            registers::DRIVER_FEATURES => self.set_features(value),
            registers::QUEUE_SELECT => self.queue_select = value,
            registers::STATUS => self.set_status(value),
            _ => self.write_queue(offset, value),
        }
    }

    pub(super) fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        self.device.read_config(offset, data);
    }

    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status.contains(Status::DRIVER) {
            self.device.write_config(offset, data);
        }
    }

    /// Stops the device, which keeps its host state; its queues stay here until
    /// [`resume`](Self::resume).
    pub fn pause(&mut self) {
        if let Work::Active = self.work {
            let queues = self.device.pause();
            for active in &queues {
                if let Some(setup) = self.queues.get_mut(usize::from(active.index)) {
                    setup.note_progress(&active.queue);
                }
            }
            self.work = Work::Paused(queues);
        }
    }

    /// Lets a paused device go on.
    pub fn resume(&mut self) {
        match std::mem::replace(&mut self.work, Work::Stopped) {
            Work::Paused(queues) => self.start(queues),
            other => self.work = other,
        }
    }

    fn status_register(&self) -> Status {
        let mut status = self.status;
        status.set(Status::NEEDS_RESET, self.interrupt.needs_reset());
        status
    }

    fn set_status(&mut self, value: u32) {
        let wanted = Status::from_bits_truncate(value) - Status::NEEDS_RESET;
        if value == 0 {
            return self.reset();
        }
        // §2.1.1: a driver must not clear bits; what it left out stays.
        let mut status = self.status | wanted;
        let set = |bit: Status| status.contains(bit) && !self.status.contains(bit);
        let (agreeing, starting) = (set(Status::FEATURES_OK), set(Status::DRIVER_OK));
        // §2.2.2, §6.1: features beyond the offer, or a driver older than virtio 1.0.
        let acceptable =
            self.features & !self.device.features() == 0 && self.features & FEATURE_VERSION_1 != 0;
        if agreeing && !acceptable {
            self.fault(&"driver accepted features it cannot have");
            status -= Status::FEATURES_OK;
        }
        if starting && !status.contains(Status::FEATURES_OK) {
            self.fault(&"driver is ready before features are agreed upon");
            status -= Status::DRIVER_OK;
        }
        self.status = status;
        if starting && status.contains(Status::DRIVER_OK) {
            self.activate();
        }
    }

    pub(super) fn reset(&mut self) {
        self.device.reset();
        self.work = Work::Stopped;
        for index in std::mem::take(&mut self.connected) {
            let event = &self.notifiers[usize::from(index)];
            self.doorbells
                .disconnect(self.notify_address, index.into(), event);
        }
        for notifier in self.notifiers.iter() {
            // Empty already, or emptied.
            let _ = notifier.read();
        }
        self.interrupt.clear();
        self.status = Status::empty();
        self.features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.queues = self
            .device
            .queue_sizes()
            .iter()
            .map(initial_queue)
            .collect();
    }

    fn activate(&mut self) {
        match self.build_queues() {
            Some(queues) => self.start(queues),
            None => self.interrupt.signal_needs_reset(),
        }
    }

    /// The queues that the driver made ready; `None` if one of them is unsound.
    pub(super) fn build_queues(&mut self) -> Option<Vec<ActiveQueue>> {
        let event_idx = self.features & FEATURE_EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, setup) in (0_u16..).zip(&self.queues) {
            if !setup.ready {
                continue;
            }
            let max = self.device.queue_sizes()[usize::from(index)];
            match setup.build(max, event_idx, &self.memory) {
                Ok(queue) => queues.push(ActiveQueue {
                    index,
                    queue,
                    notified: Arc::clone(&self.notifiers[usize::from(index)]),
                }),
                Err(error) => {
                    self.fault(&format_args!("queue {index}: {error}"));
                    return None;
                }
            }
        }
        Some(queues)
    }

    fn start(&mut self, queues: Vec<ActiveQueue>) {
        self.connect(&queues);
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: Arc::clone(&self.interrupt),
            features: self.features,
        };
        match self.device.activate(activation) {
            Ok(()) => self.work = Work::Active,
            Err(error) => {
                self.fault(&error);
                self.interrupt.signal_needs_reset();
            }
        }
    }

    fn connect(&mut self, queues: &[ActiveQueue]) {
        for active in queues {
            let index = active.index;
            if self.connected.contains(&index) {
                continue;
            }
            match self
                .doorbells
                .connect(self.notify_address, index.into(), &active.notified)
            {
                Ok(()) => self.connected.push(index),
                Err(error) => {
                    self.fault(&format_args!("no ioeventfd for queue {index}: {error}"));
                }
            }
        }
    }

    fn set_features(&mut self, value: u32) {
        let open =
            self.status.contains(Status::DRIVER) && !self.status.contains(Status::FEATURES_OK);
        if open && self.driver_features_select < 2 {
            let shift = 32 * self.driver_features_select;
            let mask = 0xffff_ffff_u64 << shift;
            self.features = self.features & !mask | u64::from(value) << shift;
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        // §3.1.1: queues are set up between the agreement on features and the driver's readiness.
        let open =
            self.status.contains(Status::FEATURES_OK) && !self.status.contains(Status::DRIVER_OK);
        let selected = usize::try_from(self.queue_select).ok();
        let Some(queue) = selected.and_then(|index| self.queues.get_mut(index)) else {
            return;
        };
        if !open {
            return;
        }
        match offset {
            registers::QUEUE_SIZE => queue.size = value,
            registers::QUEUE_READY => queue.ready = value & 1 == 1,
            registers::QUEUE_DESCRIPTORS_LOW => queue.set_half(0, 0, value),
            registers::QUEUE_DESCRIPTORS_HIGH => queue.set_half(0, 1, value),
            registers::QUEUE_DRIVER_LOW => queue.set_half(1, 0, value),
            registers::QUEUE_DRIVER_HIGH => queue.set_half(1, 1, value),
            registers::QUEUE_DEVICE_LOW => queue.set_half(2, 0, value),
            registers::QUEUE_DEVICE_HIGH => queue.set_half(2, 1, value),
            _ => {}
        }
    }

    fn queue(&self) -> Option<&QueueSetup> {
        let index = usize::try_from(self.queue_select).ok()?;
        self.queues.get(index)
    }

    fn queue_max(&self) -> u16 {
        let index = usize::try_from(self.queue_select).ok();
        let sizes = self.device.queue_sizes();
        index
            .and_then(|index| sizes.get(index))
            .copied()
            .unwrap_or(0)
    }

    fn fault(&mut self, what: &dyn fmt::Display) {
        if self.faults < FAULTS_LOGGED_MAX {
            self.faults += 1;
            tracing::debug!(device = self.device.kind(), %what, "guest fault");
        }
    }
}

fn initial_queue(max: &u16) -> QueueSetup {
    QueueSetup {
        size: u32::from(*max),
        ..QueueSetup::default()
    }
}

/// The low (0) or high (1) half of `value`; there are no others.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => (value & 0xffff_ffff) as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}
