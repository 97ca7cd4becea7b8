//! The device as the transport sees it: configuration space, features, life cycle, saved state and
//! counters. Called by the transport; it must not know packets.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use lazaret_protocol::vm::VsockConfig;
use serde::{Deserialize, Serialize};
use virtio_bindings::{
    virtio_config::VIRTIO_F_VERSION_1, virtio_ids::VIRTIO_ID_VSOCK,
    virtio_ring::VIRTIO_RING_F_EVENT_IDX,
};

use super::{
    HOST_PORT_FIRST, HOST_PORT_LAST, QUEUE_SIZES, RX_QUEUE, TX_QUEUE, backend::Backend,
    worker::VsockWorker,
};
use crate::{
    fds::{FdError, Fds},
    virtio::{
        device::{ActivateError, Activation, ActiveQueue, RestoreError, VirtioDevice},
        worker::Running,
    },
};

/// Where connections come from and go to on the host.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// Clients connect here.
    pub(super) listener: OwnedFd,
    /// Ports the guest may connect to, and who gets these connections.
    pub(super) grants: Vec<(u32, OwnedFd)>,
}

/// What has happened so far. Written by the worker, read by whoever asks.
#[derive(Debug, Default)]
pub(super) struct Counters {
    opened: AtomicU64,
    ended: AtomicU64,
    bytes_to_guest: AtomicU64,
    bytes_to_host: AtomicU64,
    resets: AtomicU64,
    credit_stalls: AtomicU64,
    wake_ups: AtomicU64,
}

impl Counters {
    pub(super) fn connection_opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connection_ended(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn bytes_to_guest(&self, bytes: u64) {
        self.bytes_to_guest.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes_to_host(&self, bytes: u64) {
        self.bytes_to_host.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn reset_sent(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn woken_up(&self) {
        self.wake_ups.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn credit_stalled(&self) {
        self.credit_stalls.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is saved. Connections are not: their peers on the host stay where they are. A device that
/// is restored announces `TRANSPORT_RESET` on the event queue, on which the driver gives up all
/// its connections (virtio 1.3 §5.10.6.7). A connection that the host opens before the driver has
/// seen the event is given up with the others; who restores a VM tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Whether a driver had the device in use, and may have connections.
    in_use: bool,
    /// Port the next connection of the host gets: a driver that has not seen the event yet would
    /// take a connection for one of those it still has if ports started over.
    next_host_port: u32,
}

/// Who has the connections.
#[derive(Debug)]
enum Phase {
    /// There are none.
    Reset,
    Active(Running<VsockWorker>),
    Paused(Box<Backend>),
}

/// A virtio-vsock device (virtio 1.3 §5.10).
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    endpoints: Arc<Endpoints>,
    counters: Arc<Counters>,
    phase: Phase,
    next_host_port: u32,
    announce_reset: bool,
}

impl Vsock {
    /// A device in reset.
    ///
    /// `listener` is a listening Unix stream socket; it becomes non-blocking. Each of `grants` is
    /// a port of the host and the connected Unix `SOCK_SEQPACKET` socket that gets one end of a
    /// stream socket pair for each connection of the guest to that port.
    pub fn new(guest_cid: u32, listener: OwnedFd, grants: Vec<(u32, OwnedFd)>) -> Self {
        Self {
            guest_cid,
            endpoints: Arc::new(Endpoints { listener, grants }),
            counters: Arc::default(),
            phase: Phase::Reset,
            next_host_port: HOST_PORT_FIRST,
            announce_reset: false,
        }
    }

    /// A device in reset, with the descriptors that `config` names.
    ///
    /// # Errors
    /// When a descriptor was not sent, or is used elsewhere.
    pub fn from_config(config: &VsockConfig, fds: &mut Fds) -> Result<Self, FdError> {
        let listener = fds.take("vsock.listener", config.listener)?;
        let grants = config
            .grants
            .iter()
            .map(|grant| {
                Ok((
                    grant.port,
                    fds.take("vsock.grants.acceptor", grant.acceptor)?,
                ))
            })
            .collect::<Result<_, FdError>>()?;
        Ok(Self::new(config.guest_cid, listener, grants))
    }

    /// Stops the worker, if there is one, and takes everything it has.
    fn stop(&mut self) -> Option<(Box<Backend>, Vec<ActiveQueue>)> {
        match std::mem::replace(&mut self.phase, Phase::Reset) {
            Phase::Reset => None,
            Phase::Active(running) => {
                let (backend, queues, announce_reset) = running.stop().into_parts();
                self.announce_reset = announce_reset;
                self.next_host_port = backend.next_host_port();
                Some((backend, queues))
            }
            Phase::Paused(backend) => Some((backend, Vec::new())),
        }
    }
}

impl VirtioDevice for Vsock {
    fn kind(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let space = u64::from(self.guest_cid).to_le_bytes();
        let from = usize::try_from(offset).map_or(space.len(), |from| from.min(space.len()));
        for (position, byte) in data.iter_mut().enumerate() {
            *byte = space[from..].get(position).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        for index in [RX_QUEUE, TX_QUEUE] {
            if !activation.queues.iter().any(|queue| queue.index == index) {
                return Err(ActivateError::MissingQueue { index });
            }
        }
        let backend = match self.stop() {
            Some((backend, _)) => backend,
            None => Box::new(
                Backend::new(
                    self.guest_cid,
                    Arc::clone(&self.endpoints),
                    Arc::clone(&self.counters),
                    self.next_host_port,
                )
                .map_err(ActivateError::Worker)?,
            ),
        };
        let worker = VsockWorker::new(
            activation,
            backend,
            Arc::clone(&self.counters),
            self.announce_reset,
        );
        self.phase =
            Phase::Active(Running::spawn(self.kind(), worker).map_err(ActivateError::Worker)?);
        Ok(())
    }

    fn pause(&mut self) -> Vec<ActiveQueue> {
        let Some((backend, queues)) = self.stop() else {
            return Vec::new();
        };
        self.phase = Phase::Paused(backend);
        queues
    }

    fn reset(&mut self) {
        if let Some((mut backend, _)) = self.stop() {
            backend.drop_all();
        }
        self.announce_reset = false;
    }

    fn save(&self) -> Vec<u8> {
        let state = State {
            in_use: !matches!(self.phase, Phase::Reset) || self.announce_reset,
            next_host_port: self.next_host_port,
        };
        postcard::to_stdvec(&state).expect("a bool and an integer always encode")
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), RestoreError> {
        let state: State = postcard::from_bytes(state).map_err(RestoreError::Malformed)?;
        if !(HOST_PORT_FIRST..=HOST_PORT_LAST).contains(&state.next_host_port) {
            return Err(RestoreError::Mismatch {
                what: "next port of the host",
            });
        }
        self.next_host_port = state.next_host_port;
        self.announce_reset = state.in_use;
        Ok(())
    }

    fn counters(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ended = load(&self.counters.ended);
        let opened = load(&self.counters.opened);
        report("connections", opened.saturating_sub(ended));
        report("connections_opened", opened);
        report("bytes_to_guest", load(&self.counters.bytes_to_guest));
        report("bytes_to_host", load(&self.counters.bytes_to_host));
        report("resets", load(&self.counters.resets));
        report("credit_stalls", load(&self.counters.credit_stalls));
        report("wake_ups", load(&self.counters.wake_ups));
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.reset();
    }
}
