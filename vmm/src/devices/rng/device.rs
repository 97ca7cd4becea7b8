//! Features and life cycle.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use virtio_bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ids::VIRTIO_ID_RNG};

use super::{QUEUE_SIZE, worker::Fill};
use crate::{
    devices::serve::QueueWorker,
    virtio::{
        device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
        worker::Running,
    },
};

/// A virtio-rng device.
#[derive(Debug, Default)]
pub struct Rng {
    bytes: Arc<AtomicU64>,
    worker: Option<Running<QueueWorker<Fill>>>,
}

impl VirtioDevice for Rng {
    fn kind(&self) -> &'static str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    /// There is no configuration space.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::MissingQueue { index: 0 });
        }
        let worker = QueueWorker::new(
            self.kind(),
            activation.queues,
            activation.memory,
            activation.interrupt,
            Fill(Arc::clone(&self.bytes)),
        )
        .map_err(ActivateError::Worker)?;
        self.worker = Some(Running::spawn("rng", worker).map_err(ActivateError::Worker)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        match self.worker.take() {
            Some(worker) => worker.stop().into_queues().collect(),
            None => Vec::new(),
        }
    }

    fn reset(&mut self) {
        drop(self.pause());
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        if state.is_empty() {
            Ok(())
        } else {
            let what = "an entropy device has no state";
            Err(RestoreError::Mismatch { what })
        }
    }

    fn counters(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("bytes", self.bytes.load(Ordering::Relaxed));
    }
}
