//! The thread of a device: waits for the driver and for all sockets at once, takes packets off the
//! tx queue, puts packets into the rx queue, and raises one interrupt for all that one wake-up did.
//! Started by the device; what packets mean is the backend's.

use std::{io, os::fd::AsRawFd, sync::Arc, time::Duration};

use vm_memory::{Bytes, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::{EpollEvent, EventSet},
    eventfd::EventFd,
};

use super::{
    EVENT_QUEUE, LISTEN_AGAIN_AFTER, RX_BUDGET, RX_QUEUE, TURN_BUFFERS_MAX, TX_BUDGET, TX_QUEUE,
    backend::Backend,
    device::Counters,
    packet::{self, ChainError, HEADER_BYTES, Header, RxBuffers, op},
    poller::Token,
    queue::{ServeError, Served},
    socket::{self, GuestSlices},
};
use crate::virtio::{
    device::{Activation, ActiveQueue},
    interrupt::Interrupt,
    worker::Worker,
};

/// Most events taken per wake-up.
const EVENTS_MAX: usize = 64;

/// `struct virtio_vsock_event` of `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.3 §5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// What a run keeps from one packet to the next, so that the hot path does not allocate.
#[derive(Debug, Default)]
struct Scratch<'m> {
    payload: GuestSlices<'m>,
    buffers: RxBuffers,
}

/// Serves the queues of an active device.
#[derive(Debug)]
pub(super) struct VsockWorker {
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    rx: Served,
    tx: Served,
    event: Option<Served>,
    backend: Box<Backend>,
    counters: Arc<Counters>,
    announce_reset: bool,
}

impl VsockWorker {
    /// A worker on the queues of `activation`, which has rx and tx. With `announce_reset` the
    /// driver is told that its connections are gone.
    pub(super) fn new(
        activation: Activation,
        backend: Box<Backend>,
        counters: Arc<Counters>,
        announce_reset: bool,
    ) -> Self {
        let mut queues = activation.queues.into_iter();
        let mut take = |index: u16, name| {
            queues
                .find(|active| active.index == index)
                .map(|active| Served::new(name, active))
        };
        let rx = take(RX_QUEUE, "rx").expect("the device saw that the rx queue is there");
        let tx = take(TX_QUEUE, "tx").expect("the device saw that the tx queue is there");
        let event = take(EVENT_QUEUE, "event");
        Self {
            memory: activation.memory,
            interrupt: activation.interrupt,
            rx,
            tx,
            event,
            backend,
            counters,
            announce_reset,
        }
    }

    /// The connections, the queues, and whether a reset of the transport is still to be announced.
    pub(super) fn into_parts(self) -> (Box<Backend>, Vec<ActiveQueue>, bool) {
        let queues = [Some(self.rx), Some(self.tx), self.event];
        let queues = queues.into_iter().flatten().map(|served| served.active);
        (self.backend, queues.collect(), self.announce_reset)
    }

    fn watch(&self, stop: &EventFd) -> io::Result<()> {
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        self.backend
            .poller()
            .watch(stop.as_raw_fd(), EventSet::IN, Token::Stop)?;
        // Edge-triggered and never read: each notification is one event, for one system call.
        for served in [Some(&self.rx), Some(&self.tx), self.event.as_ref()]
            .into_iter()
            .flatten()
        {
            let fd = served.active.notified.as_raw_fd();
            self.backend.poller().watch(fd, edge, Token::Queue)?;
        }
        Ok(())
    }

    fn unwatch(&self, stop: &EventFd) {
        self.backend.poller().unwatch(stop.as_raw_fd());
        for served in [Some(&self.rx), Some(&self.tx), self.event.as_ref()]
            .into_iter()
            .flatten()
        {
            self.backend
                .poller()
                .unwatch(served.active.notified.as_raw_fd());
        }
    }

    fn serve(&mut self, memory: &GuestMemoryMmap) -> Result<(), ServeError> {
        let mut scratch = Scratch::default();
        let mut events = [EpollEvent::default(); EVENTS_MAX];
        // Whatever came before this run gets its turn without an event.
        let mut more = true;
        loop {
            let time = match more {
                true => Some(Duration::ZERO),
                false => self.backend.listens_later().then_some(LISTEN_AGAIN_AFTER),
            };
            let count = self
                .backend
                .poller()
                .wait(&mut events, time)
                .map_err(ServeError::Wait)?;
            self.counters.woken_up();
            let (mut client, mut stopped) = (false, false);
            for event in &events[..count] {
                match Token::from_data(event.data()) {
                    Token::Stop => stopped = true,
                    Token::Queue => {}
                    Token::Listener => client = true,
                    Token::Slot(index) => self.backend.socket_event(index, event.events()),
                }
            }
            // Only now: what the events told of sockets would not be told again.
            if stopped {
                return Ok(());
            }
            // Slots are taken only after all events: none of them can be for a socket that was in
            // the slot before.
            if client {
                self.backend.accept();
            } else {
                self.backend.listen().map_err(ServeError::Wait)?;
            }
            more = self.round(memory, &mut scratch)?;
            // The guest's packets may have ended connections, which is no event.
            self.backend.use_room().map_err(ServeError::Wait)?;
        }
    }

    /// Does what there is to do on the queues. Whether there is more.
    fn round<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        scratch: &mut Scratch<'m>,
    ) -> Result<bool, ServeError> {
        self.rx.stop_waiting(memory)?;
        self.tx.stop_waiting(memory)?;
        let mut more = self.serve_tx(memory, scratch)?;
        let held_up = self.backend.resets_full();
        more |= self.serve_rx(memory, scratch)?;
        more |= held_up && !self.backend.resets_full();
        self.announce(memory)?;
        let mut interrupt = self.rx.wants_interrupt(memory)?;
        interrupt |= self.tx.wants_interrupt(memory)?;
        if let Some(event) = &mut self.event {
            interrupt |= event.wants_interrupt(memory)?;
        }
        if interrupt {
            self.interrupt.signal_used();
        }
        if more {
            return Ok(true);
        }
        if !self.backend.resets_full() {
            more |= self.tx.wait(memory)?;
        }
        if self.backend.has_output() {
            more |= self.rx.wait(memory)?;
        }
        Ok(more)
    }

    /// Takes packets off the tx queue. Whether some may be left that could be taken.
    fn serve_tx<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        scratch: &mut Scratch<'m>,
    ) -> Result<bool, ServeError> {
        for _ in 0..TX_BUDGET {
            if self.backend.resets_full() {
                return Ok(false);
            }
            let Some(chain) = self.tx.pop(memory)? else {
                return Ok(false);
            };
            let head = chain.head_index();
            let packet = packet::read(memory, chain, &mut scratch.payload)
                .map_err(|source| ServeError::Chain { name: "tx", source })?;
            self.backend.receive(&packet, &mut scratch.payload);
            self.tx.use_chain(memory, head, 0)?;
        }
        Ok(true)
    }

    /// Puts packets into the rx queue. Whether there is more to send and room for it.
    fn serve_rx<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        scratch: &mut Scratch<'m>,
    ) -> Result<bool, ServeError> {
        while self.backend.has_resets() {
            if !self.take_buffers(1, 1, memory, scratch)? {
                return Ok(false);
            }
            if let Some(reset) = self.backend.take_reset() {
                self.send(0, reset, memory, scratch)?;
            }
        }
        for _ in 0..RX_BUDGET {
            if self.rx.is_empty(memory)? {
                return Ok(false);
            }
            let Some(index) = self.backend.begin_turn() else {
                return Ok(false);
            };
            self.turn(index, memory, scratch)?;
            self.backend.end_turn(index);
        }
        Ok(true)
    }

    /// The turn of the connection in slot `index`: all its packets without payload, then payload.
    fn turn<'m>(
        &mut self,
        index: usize,
        memory: &'m GuestMemoryMmap,
        scratch: &mut Scratch<'m>,
    ) -> Result<(), ServeError> {
        let guest_cid = self.backend.guest_cid();
        while let Some(link) = self.backend.link(index)
            && let Some(control) = link.connection.due()
        {
            if !self.take_buffers(1, 1, memory, scratch)? {
                return Ok(());
            }
            let Some(link) = self.backend.link(index) else {
                break;
            };
            link.connection.tell(control);
            let header = Header {
                flags: control.flags,
                ..link.header(guest_cid, control.op)
            };
            if control.op == op::RST {
                self.counters.reset_sent();
            }
            self.send(0, header, memory, scratch)?;
        }
        self.turn_payload(index, memory, scratch)
    }

    /// Reads what the host sent straight into rx buffers: several of them with one system call.
    fn turn_payload<'m>(
        &mut self,
        index: usize,
        memory: &'m GuestMemoryMmap,
        scratch: &mut Scratch<'m>,
    ) -> Result<(), ServeError> {
        let Some(link) = self.backend.link(index) else {
            return Ok(());
        };
        if !link.has_payload() {
            return Ok(());
        }
        let (count, room) = (link.turn_buffers, link.connection.room() as usize);
        if !self.take_buffers(count, room, memory, scratch)? {
            return Ok(());
        }
        let guest_cid = self.backend.guest_cid();
        let Some(link) = self.backend.link(index) else {
            return Ok(());
        };
        let bytes = link.read(&mut scratch.payload);
        let full = bytes == scratch.payload.bytes();
        link.turn_buffers = if full {
            (link.turn_buffers * 2).min(TURN_BUFFERS_MAX)
        } else {
            1
        };
        let header = link.header(guest_cid, op::RW);
        self.counters.bytes_to_guest(bytes as u64);
        let (mut left, mut filled) = (bytes, 0);
        while left > 0
            && let Some(buffer) = scratch.buffers.get(filled)
        {
            let part = left.min(buffer.room);
            let header = Header {
                // No more than `room`, which is a `u32`.
                len: part as u32,
                ..header
            };
            self.send(filled, header, memory, scratch)?;
            left -= part;
            filled += 1;
        }
        self.rx.unpop(scratch.buffers.len() - filled);
        Ok(())
    }

    /// Takes rx buffers, up to `count` of them or as many as have room for `bytes`. Whether there
    /// is at least one.
    fn take_buffers<'m>(
        &mut self,
        count: usize,
        bytes: usize,
        memory: &'m GuestMemoryMmap,
        scratch: &mut Scratch<'m>,
    ) -> Result<bool, ServeError> {
        scratch.payload.clear();
        scratch.buffers.clear();
        while scratch.buffers.len() < count && scratch.payload.bytes() < bytes {
            let Some(chain) = self.rx.pop(memory)? else {
                break;
            };
            scratch
                .buffers
                .push(memory, chain, &mut scratch.payload)
                .map_err(|source| ServeError::Chain { name: "rx", source })?;
        }
        Ok(scratch.buffers.len() > 0)
    }

    /// Hands the taken buffer `position` to the driver, with `header` and its payload in it.
    fn send(
        &mut self,
        position: usize,
        header: Header,
        memory: &GuestMemoryMmap,
        scratch: &Scratch<'_>,
    ) -> Result<(), ServeError> {
        let Some(buffer) = scratch.buffers.get(position) else {
            return Ok(());
        };
        scratch
            .buffers
            .write_header(memory, buffer, &header)
            .map_err(|source| ServeError::Chain { name: "rx", source })?;
        self.rx
            .use_chain(memory, buffer.head, HEADER_BYTES + header.len as usize)
    }

    /// Announces the reset of the transport, as soon as the driver has a buffer for it.
    fn announce(&mut self, memory: &GuestMemoryMmap) -> Result<(), ServeError> {
        let Some(event) = self.event.as_mut().filter(|_| self.announce_reset) else {
            return Ok(());
        };
        let Some(mut chain) = event.pop(memory)? else {
            return event.wait(memory).map(|_| ());
        };
        let broken = |source| ServeError::Chain {
            name: "event",
            source,
        };
        let head = chain.head_index();
        let buffer = chain.next().ok_or(broken(ChainError::Endless))?;
        if !buffer.is_write_only() {
            return Err(broken(ChainError::Direction));
        }
        if (buffer.len() as usize) < TRANSPORT_RESET.len() {
            return Err(broken(ChainError::Short));
        }
        memory
            .write_slice(&TRANSPORT_RESET, buffer.addr())
            .map_err(|source| broken(ChainError::Memory(source)))?;
        event.use_chain(memory, head, TRANSPORT_RESET.len())?;
        self.announce_reset = false;
        Ok(())
    }
}

impl Worker for VsockWorker {
    fn run(&mut self, stop: &EventFd) {
        let memory = self.memory.clone();
        let served = self
            .watch(stop)
            .map_err(ServeError::Wait)
            .and_then(|()| self.serve(&memory));
        if let Err(error) = served {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "vsock gives up on the driver"
            );
            self.backend.drop_all();
            self.interrupt.signal_needs_reset();
            socket::wait_readable(stop);
        }
        self.unwatch(stop);
    }
}
