//! The state of a slot as a plain struct, and back.

use serde::{Deserialize, Serialize};

use super::{
    Slot, lock,
    queues::QueueSetup,
    registers::Status,
    transport::{Transport, Work},
};
use crate::virtio::device::RestoreError;

/// Everything a driver has set up, and the device's own state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub(super) device_type: u32,
    status: u32,
    pub(super) features: u64,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    pub(super) queues: Vec<QueueSetup>,
    active: bool,
    interrupt_status: u32,
    config_generation: u32,
    needs_reset: bool,
    /// What [`VirtioDevice::save`](crate::virtio::device::VirtioDevice::save) returned.
    pub(super) device: Vec<u8>,
}

/// Why a slot could not be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum TransportRestoreError {
    /// The state belongs to another kind of device.
    #[error("state is of device type {saved}, the slot has type {present}")]
    Device {
        /// Type in the state; 0 for a spare slot.
        saved: u32,
        /// Type in the slot; 0 for a spare slot.
        present: u32,
    },
    /// The number of queues differs.
    #[error("state has {saved} queues, the device {present}")]
    Queues {
        /// Number in the state.
        saved: usize,
        /// Number of the device.
        present: usize,
    },
    /// A queue is not within guest memory, or features were not offered.
    #[error("state has unsound queues or features")]
    Unsound,
    /// The device refused its state.
    #[error("device")]
    State(#[source] RestoreError),
}

impl Slot {
    /// The state of its device, which must be paused, or never have been active; `None` when the
    /// slot is spare.
    pub fn save(&self) -> Option<TransportState> {
        self.with_transport(|transport| transport.save())
    }

    /// Takes over what [`save`](Self::save) returned, into a fresh slot with the same device, or
    /// none.
    ///
    /// # Errors
    /// As [`Transport::restore`], and when one is spare and the other is not.
    pub fn restore(&self, state: Option<&TransportState>) -> Result<(), TransportRestoreError> {
        match (lock(&self.transport).as_mut(), state) {
            (Some(transport), Some(state)) => transport.restore(state),
            (None, None) => Ok(()),
            (transport, state) => Err(TransportRestoreError::Device {
                saved: state.map_or(0, |state| state.device_type),
                present: transport.map_or(0, |transport| transport.device.device_type()),
            }),
        }
    }
}

impl Transport {
    /// The state. The device must be paused, or never have been active.
    pub fn save(&self) -> TransportState {
        TransportState {
            device_type: self.device.device_type(),
            status: self.status.bits(),
            features: self.features,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            active: matches!(self.work, Work::Paused(_) | Work::Active),
            interrupt_status: self.interrupt.status(),
            config_generation: self.interrupt.generation(),
            needs_reset: self.interrupt.needs_reset(),
            device: self.device.save(),
        }
    }

    /// Takes over `state` in a fresh slot. An active device is paused afterwards:
    /// [`resume`](Self::resume) starts it.
    ///
    /// # Errors
    /// When the state is malformed or of another device; the slot is then unusable.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), TransportRestoreError> {
        let present = self.device.device_type();
        if state.device_type != present {
            let saved = state.device_type;
            return Err(TransportRestoreError::Device { saved, present });
        }
        if state.queues.len() != self.queues.len() {
            return Err(TransportRestoreError::Queues {
                saved: state.queues.len(),
                present: self.queues.len(),
            });
        }
        if state.features & !self.device.features() != 0 && state.active {
            return Err(TransportRestoreError::Unsound);
        }
        self.device
            .restore(&state.device)
            .map_err(TransportRestoreError::State)?;
        self.status = Status::from_bits_truncate(state.status) - Status::NEEDS_RESET;
        self.features = state.features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.queues.clone_from(&state.queues);
        if state.active {
            let queues = self.build_queues().ok_or(TransportRestoreError::Unsound)?;
            for active in &queues {
                // A notification of before may not have been served: one too many does no harm.
                let _ = active.notified.write(1);
            }
            self.work = Work::Paused(queues);
        }
        self.interrupt.restore(
            state.interrupt_status,
            state.config_generation,
            state.needs_reset,
        );
        Ok(())
    }
}
