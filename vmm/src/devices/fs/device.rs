//! Configuration space, features and life cycle.

use std::{io, os::fd::OwnedFd, sync::Arc};

use lazaret_protocol::vm::FsConfig;
use serde::{Deserialize, Serialize};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1,
    virtio_ids::VIRTIO_ID_FS,
    virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC},
};

use super::{
    PRIORITY_QUEUE_SIZE, QUEUES_MAX, REQUEST_QUEUE_SIZE, TAG_MAX_BYTES, backend::Session,
    worker::Messages,
};
use crate::{
    devices::serve::{QueueWorker, read_space},
    fds::{FdError, Fds},
    virtio::{
        device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
        worker::Running,
    },
};

/// Index of the queue for `FORGET`.
const PRIORITY_QUEUE: u16 = 0;
/// Index of the first request queue, which a driver must have.
const FIRST_REQUEST_QUEUE: u16 = 1;
/// Bytes of the configuration space: tag and number of request queues. The size of the
/// notification buffer follows only with a feature that is not offered.
const CONFIG_BYTES: usize = TAG_MAX_BYTES + 4;

/// Why a share could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The tag is empty, too long or has a zero byte.
    #[error("share tag {tag:?} is not 1 to 36 bytes without NUL")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// Not 1 to 64 request queues.
    #[error("share {tag:?} has {queues} request queues, not 1 to 64")]
    Queues {
        /// The tag.
        tag: String,
        /// Number of request queues.
        queues: u16,
    },
    /// The descriptor of the directory is not to be had.
    #[error("descriptor of share")]
    Descriptor(#[from] FdError),
    /// The directory cannot be served.
    #[error("cannot serve directory of share {tag:?}")]
    Root {
        /// The tag.
        tag: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What is saved of a share.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    tag: String,
    queues: u16,
    /// Whether a guest had it mounted. Its inodes and handles are descriptors of the process
    /// that saved: another process cannot have them back, a copy of the process has them still.
    mounted: bool,
}

/// A virtio-fs device.
pub struct Fs {
    tag: String,
    queue_sizes: Vec<u16>,
    config: [u8; CONFIG_BYTES],
    session: Arc<Session>,
    workers: Vec<Running<QueueWorker<Messages>>>,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Fs")
            .field("tag", &self.tag)
            .field("queues", &self.request_queues())
            .finish_non_exhaustive()
    }
}

impl Fs {
    /// Shares the directory `root`, an `O_PATH` descriptor, under `tag` through `queues` request
    /// queues. Raises `RLIMIT_NOFILE` to its hard limit: each file in the guest's cache holds a
    /// descriptor. Needs `/proc`, here and for extended attributes, which have no other way.
    ///
    /// # Errors
    /// When an argument is out of range, or the directory cannot be served.
    pub fn new(tag: &str, root: OwnedFd, queues: u16) -> Result<Self, FsError> {
        let owned = || tag.to_owned();
        if !(1..=TAG_MAX_BYTES).contains(&tag.len()) || tag.contains('\0') {
            return Err(FsError::Tag { tag: owned() });
        }
        if !(1..=QUEUES_MAX).contains(&queues) {
            let tag = owned();
            return Err(FsError::Queues { tag, queues });
        }
        let session = Session::new(root).map_err(|source| FsError::Root {
            tag: owned(),
            source,
        })?;
        let mut config = [0; CONFIG_BYTES];
        config[..tag.len()].copy_from_slice(tag.as_bytes());
        config[TAG_MAX_BYTES..].copy_from_slice(&u32::from(queues).to_le_bytes());
        let mut queue_sizes = vec![PRIORITY_QUEUE_SIZE];
        queue_sizes.resize(1 + usize::from(queues), REQUEST_QUEUE_SIZE);
        Ok(Self {
            tag: owned(),
            queue_sizes,
            config,
            session: Arc::new(session),
            workers: Vec::new(),
        })
    }

    /// A device with the descriptor that `config` names.
    ///
    /// # Errors
    /// When it was not sent, and as [`Fs::new`].
    pub fn from_config(config: &FsConfig, fds: &mut Fds) -> Result<Self, FsError> {
        let root = fds.take("fs.root", config.root)?;
        Self::new(&config.tag, root, config.queues)
    }

    fn request_queues(&self) -> u16 {
        // As many as the constructor was given.
        u16::try_from(self.queue_sizes.len() - 1).unwrap_or(QUEUES_MAX)
    }

    fn start_worker(&mut self, queues: Vec<ActiveQueue>, activation: &Shared) -> io::Result<()> {
        let name = format!("fs-{}", queues.last().map_or(0, |queue| queue.index));
        let worker = QueueWorker::new(
            "fs",
            queues,
            activation.memory.clone(),
            Arc::clone(&activation.interrupt),
            Messages(Arc::clone(&self.session)),
        )?;
        self.workers.push(Running::spawn(&name, worker)?);
        Ok(())
    }
}

/// What every worker gets of an activation.
struct Shared {
    memory: vm_memory::GuestMemoryMmap,
    interrupt: Arc<crate::virtio::interrupt::Interrupt>,
}

impl VirtioDevice for Fs {
    fn kind(&self) -> &'static str {
        "fs"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (mut first, rest): (Vec<_>, Vec<_>) = activation
            .queues
            .into_iter()
            .partition(|queue| queue.index <= FIRST_REQUEST_QUEUE);
        for index in [PRIORITY_QUEUE, FIRST_REQUEST_QUEUE] {
            if !first.iter().any(|queue| queue.index == index) {
                return Err(ActivateError::MissingQueue { index });
            }
        }
        first.sort_by_key(|queue| queue.index);
        let shared = Shared {
            memory: activation.memory,
            interrupt: activation.interrupt,
        };
        // FORGET is rare and quick: it shares the first request queue's thread.
        let groups = std::iter::once(first).chain(rest.into_iter().map(|queue| vec![queue]));
        for queues in groups {
            if let Err(error) = self.start_worker(queues, &shared) {
                self.reset();
                return Err(ActivateError::Worker(error));
            }
        }
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        let mut queues: Vec<_> = self
            .workers
            .drain(..)
            .flat_map(|worker| worker.stop().into_queues())
            .collect();
        queues.sort_by_key(|queue| queue.index);
        queues
    }

    fn reset(&mut self) {
        drop(self.pause());
        self.session.reset();
    }

    fn save(&self) -> Vec<u8> {
        let state = State {
            tag: self.tag.clone(),
            queues: self.request_queues(),
            mounted: self.session.is_started(),
        };
        postcard::to_stdvec(&state).expect("a string and numbers always serialise")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state: State = postcard::from_bytes(state).map_err(RestoreError::Malformed)?;
        let mismatch = |what| Err(RestoreError::Mismatch { what });
        if state.tag != self.tag {
            return mismatch("tag of the share");
        }
        if state.queues != self.request_queues() {
            return mismatch("number of request queues of the share");
        }
        if state.mounted {
            return mismatch("the guest had the share mounted, and its open files are gone");
        }
        Ok(())
    }

    fn counters(&self, report: &mut dyn FnMut(&'static str, u64)) {
        self.session.counters(report);
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        drop(self.pause());
    }
}
