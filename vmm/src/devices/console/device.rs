//! Features, configuration space and life cycle.

use std::{
    fs::File,
    sync::{Arc, atomic::Ordering},
};

use lazaret_protocol::vm::ConsoleConfig;
use serde::{Deserialize, Serialize};
use virtio_bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ids::VIRTIO_ID_CONSOLE};

use super::{
    QUEUE_SIZE, RING_MAX_BYTES, RING_MIN_BYTES, TRANSMIT_QUEUE, backend::Output, worker::Transmit,
};
use crate::{
    devices::serve::QueueWorker,
    fds::{FdError, Fds},
    virtio::{
        device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
        worker::Running,
    },
};

/// Why a console could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The ring's size is out of range.
    #[error("ring_bytes: {bytes} is not between {RING_MIN_BYTES} and {RING_MAX_BYTES}")]
    RingSize {
        /// What was asked for.
        bytes: u32,
    },
    /// The output file was not sent.
    #[error(transparent)]
    Output(#[from] FdError),
}

/// What is saved of a console.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    ring: Vec<u8>,
}

/// A virtio-console device.
#[derive(Debug)]
pub struct Console {
    output: Arc<Output>,
    worker: Option<Running<QueueWorker<Transmit>>>,
    /// Queues that no worker serves.
    idle: Vec<ActiveQueue>,
}

impl Console {
    /// A console as `config` says.
    ///
    /// # Errors
    /// When the ring's size is out of range or the output file was not sent.
    pub fn from_config(config: &ConsoleConfig, fds: &mut Fds) -> Result<Self, ConsoleError> {
        let bytes = config.ring_bytes;
        if !(RING_MIN_BYTES..=RING_MAX_BYTES).contains(&bytes) {
            return Err(ConsoleError::RingSize { bytes });
        }
        let file = config
            .output
            .map(|fd| fds.take("console.output", fd))
            .transpose()?
            .map(File::from);
        let bytes = usize::try_from(bytes).expect("the ring has 1 MiB at most");
        Ok(Self {
            output: Arc::new(Output::new(bytes, file)),
            worker: None,
            idle: Vec::new(),
        })
    }
}

impl VirtioDevice for Console {
    fn kind(&self) -> &'static str {
        "console"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
    }

    /// Columns, rows, ports: none of them means anything without its feature.
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (transmit, idle): (Vec<_>, Vec<_>) = activation
            .queues
            .into_iter()
            .partition(|queue| queue.index == TRANSMIT_QUEUE);
        if transmit.is_empty() {
            let index = TRANSMIT_QUEUE;
            return Err(ActivateError::MissingQueue { index });
        }
        let worker = QueueWorker::new(
            self.kind(),
            transmit,
            activation.memory,
            activation.interrupt,
            Transmit(Arc::clone(&self.output)),
        )
        .map_err(ActivateError::Worker)?;
        self.worker = Some(Running::spawn("console", worker).map_err(ActivateError::Worker)?);
        self.idle = idle;
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        let mut queues = std::mem::take(&mut self.idle);
        if let Some(worker) = self.worker.take() {
            queues.extend(worker.stop().into_queues());
        }
        queues
    }

    fn reset(&mut self) {
        drop(self.pause());
    }

    fn save(&self) -> Vec<u8> {
        let state = State {
            ring: self.output.content(),
        };
        postcard::to_allocvec(&state).expect("bytes can be encoded")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state: State = postcard::from_bytes(state).map_err(RestoreError::Malformed)?;
        self.output.restore(&state.ring);
        Ok(())
    }

    fn output(&self) -> Option<Vec<u8>> {
        Some(self.output.content())
    }

    fn counters(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("bytes", self.output.bytes.load(Ordering::Relaxed));
        report(
            "dropped_bytes",
            self.output.dropped_bytes.load(Ordering::Relaxed),
        );
    }
}
