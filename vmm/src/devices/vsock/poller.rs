//! What a device waits on: one epoll instance for the stop signal, the driver's notifications, the
//! listener and all sockets. Used by the backend and the worker; knows no connections.

use std::{io, os::fd::RawFd, time::Duration};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The worker is to stop.
    Stop,
    /// The driver made buffers available.
    Queue,
    /// A client connects.
    Listener,
    /// The socket in this slot.
    Slot(usize),
}

const FIRST_SLOT: u64 = 3;

/// What a connection's socket is watched for. Edge-triggered: what an event told is remembered
/// until it was used up, and a stalled connection takes no system calls.
pub(super) fn socket_events() -> EventSet {
    EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED
}

/// Whether an event says that the peer sends no more.
pub(super) fn is_end(events: u32) -> bool {
    events & (EventSet::READ_HANG_UP | EventSet::HANG_UP).bits() != 0
}

impl Token {
    /// As `epoll_event.data`.
    pub(super) fn data(self) -> u64 {
        match self {
            Self::Stop => 0,
            Self::Queue => 1,
            Self::Listener => 2,
            Self::Slot(index) => FIRST_SLOT + index as u64,
        }
    }

    /// From `epoll_event.data`.
    pub(super) fn from_data(data: u64) -> Self {
        match data {
            0 => Self::Stop,
            1 => Self::Queue,
            2 => Self::Listener,
            // Only `data` makes these numbers, of indices that fit.
            slot => Self::Slot((slot - FIRST_SLOT) as usize),
        }
    }
}

/// The epoll instance. It lives as long as the connections, so that no event is lost while a
/// device is paused.
#[derive(Debug)]
pub(super) struct Poller(Epoll);

impl Poller {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub(super) fn new() -> io::Result<Self> {
        Epoll::new().map(Self)
    }

    /// Watches `fd` for `events`.
    ///
    /// # Errors
    /// When the kernel is out of memory or of watches.
    pub(super) fn watch(&self, fd: RawFd, events: EventSet, token: Token) -> io::Result<()> {
        let event = EpollEvent::new(events, token.data());
        self.0.ctl(ControlOperation::Add, fd, event)
    }

    /// Watches `fd` no longer.
    pub(super) fn unwatch(&self, fd: RawFd) {
        // Fails only for a descriptor that is not watched.
        let _ = self
            .0
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Waits for events, for ever or at most for `time`, which may be nothing. Returns how many
    /// came.
    ///
    /// # Errors
    /// Never, as the epoll instance is ours; passed on all the same.
    pub(super) fn wait(
        &self,
        events: &mut [EpollEvent],
        time: Option<Duration>,
    ) -> io::Result<usize> {
        let timeout_ms = time.map_or(-1, |time| {
            i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
        });
        match self.0.wait(timeout_ms, events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result,
        }
    }

    /// Changes what the watched `fd` is watched for.
    pub(super) fn change(&self, fd: RawFd, events: EventSet, token: Token) {
        let event = EpollEvent::new(events, token.data());
        // Takes no memory: it cannot fail for a descriptor that is watched.
        let _ = self.0.ctl(ControlOperation::Modify, fd, event);
    }
}
