//! The host side: the listener, the acceptors, one Unix socket per connection, and the table that
//! finds a connection by its ports. The worker calls it with packets and socket events and asks it
//! what is to be sent; it must not know queues.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use rustix::net::SocketFlags;
use vmm_sys_util::epoll::EventSet;

use super::{
    CONNECTIONS_MAX, GUEST_CONNECTIONS_MAX, HOST_CID, HOST_PORT_FIRST, HOST_PORT_LAST,
    NARROW_WINDOW_BYTES, RESETS_MAX, WIDE_WINDOWS_MAX, WINDOW_BYTES,
    connection::{Connection, Received},
    device::{Counters, Endpoints},
    link::{Link, Ports},
    packet::{Header, TYPE_STREAM, TxPacket, op},
    poller::{Poller, Token, is_end, socket_events},
    socket::{self, GuestSlices, Line},
};

/// A socket and what it is for.
#[derive(Debug)]
enum Slot {
    /// It has not finished its `CONNECT` line.
    Client(OwnedFd),
    /// It belongs to a connection.
    Link(Link),
}

/// Whether the listener is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listening {
    /// It is.
    Yes,
    /// Not while there is no room for a client.
    Full,
    /// Not for a while: the kernel could not hand over a client, or is not asked to yet.
    Later,
}

/// All sockets and connections of a device.
#[derive(Debug)]
pub(super) struct Backend {
    guest_cid: u32,
    endpoints: Arc<Endpoints>,
    counters: Arc<Counters>,
    poller: Poller,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    by_ports: HashMap<Ports, usize>,
    by_guest: usize,
    next_host_port: u32,
    /// Connections with something to send, the one whose turn is next in front.
    ready: VecDeque<usize>,
    /// Resets for packets that belong to no connection.
    resets: VecDeque<Header>,
    listening: Listening,
}

impl Backend {
    /// A backend without connections, whose next port is `next_host_port`.
    ///
    /// # Errors
    /// When the process is out of descriptors or the listener is no socket.
    pub(super) fn new(
        guest_cid: u32,
        endpoints: Arc<Endpoints>,
        counters: Arc<Counters>,
        next_host_port: u32,
    ) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&endpoints.listener, true)?;
        let mut backend = Self {
            guest_cid,
            endpoints,
            counters,
            poller: Poller::new()?,
            slots: Vec::new(),
            free: Vec::new(),
            by_ports: HashMap::new(),
            by_guest: 0,
            next_host_port,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            listening: Listening::Later,
        };
        backend.listen()?;
        Ok(backend)
    }

    /// What the worker waits on.
    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }

    /// The port the next connection of the host gets, if it is free.
    pub(super) fn next_host_port(&self) -> u32 {
        self.next_host_port
    }

    /// Takes clients in again, if it had stopped and there is room.
    ///
    /// # Errors
    /// When the kernel is out of memory or of watches.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if self.listening != Listening::Yes && self.has_room() {
            let fd = self.endpoints.listener.as_raw_fd();
            self.poller.watch(fd, EventSet::IN, Token::Listener)?;
            self.listening = Listening::Yes;
        }
        Ok(())
    }

    /// Takes clients in again, if it had stopped for want of room.
    ///
    /// # Errors
    /// As [`listen`](Self::listen).
    pub(super) fn use_room(&mut self) -> io::Result<()> {
        match self.listening {
            Listening::Full => self.listen(),
            Listening::Yes | Listening::Later => Ok(()),
        }
    }

    /// Whether [`listen`](Self::listen) is to be called after a while, as no event will ask for it.
    pub(super) fn listens_later(&self) -> bool {
        self.listening == Listening::Later
    }

    fn stop_listening(&mut self, until: Listening) {
        self.poller.unwatch(self.endpoints.listener.as_raw_fd());
        self.listening = until;
    }

    fn has_room(&self) -> bool {
        self.slots.len() - self.free.len() < CONNECTIONS_MAX
    }

    /// Takes one client in: the listener reports the next one by itself.
    pub(super) fn accept(&mut self) {
        if !self.has_room() {
            return self.stop_listening(Listening::Full);
        }
        match rustix::net::accept_with(&self.endpoints.listener, SocketFlags::CLOEXEC) {
            Ok(client) => self.admit(client),
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED,
            ) => {}
            // Out of descriptors or memory, of which nobody tells when there are some again.
            Err(_) => self.stop_listening(Listening::Later),
        }
    }

    fn admit(&mut self, client: OwnedFd) {
        let line = socket::read_line(client.as_fd());
        if line == Line::Refused {
            return;
        }
        let Some(index) = self.insert(Slot::Client(client)) else {
            return;
        };
        if let Line::Connect { port, .. } = line {
            // Bytes behind the line are the first event of the socket, which is watched now.
            self.connect(index, port);
        }
    }

    /// Puts a socket into a slot and watches it; `None` when the kernel refuses.
    fn insert(&mut self, slot: Slot) -> Option<usize> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let fd = match &slot {
            Slot::Client(client) => Some(client.as_raw_fd()),
            Slot::Link(link) => link.descriptor(),
        };
        let watched = fd.map(|fd| self.poller.watch(fd, socket_events(), Token::Slot(index)));
        if let Some(Ok(())) = watched {
            self.slots[index] = Some(slot);
            Some(index)
        } else {
            self.free.push(index);
            None
        }
    }

    /// An event of the socket in slot `index`.
    pub(super) fn socket_event(&mut self, index: usize, events: u32) {
        match self.slots.get_mut(index) {
            Some(Some(Slot::Client(client))) => match socket::read_line(client.as_fd()) {
                Line::Connect { port, more } => {
                    self.connect(index, port);
                    if let Some(link) = self.link(index) {
                        // The event was for all that is there, not only for the line.
                        link.inherit_event(events, more);
                        self.settle(index);
                    }
                }
                Line::Refused => self.release(index),
                Line::Unfinished if is_end(events) => self.release(index),
                Line::Unfinished => {}
            },
            Some(Some(Slot::Link(link))) => {
                link.socket_event(events);
                self.settle(index);
            }
            _ => {}
        }
    }

    /// Opens a connection to `guest_port` for the client in slot `index`.
    fn connect(&mut self, index: usize, guest_port: u32) {
        let Some(host) = self.take_host_port(guest_port) else {
            return self.release(index);
        };
        let ports = Ports {
            host,
            guest: guest_port,
        };
        let window = self.window();
        if let Some(Some(Slot::Client(client))) = self.slots.get_mut(index).map(Option::take) {
            let connection = Connection::from_host(window);
            self.slots[index] = Some(Slot::Link(Link::new(ports, false, connection, client)));
            self.enter(index, ports);
        }
    }

    /// A port of the host that has no connection to `guest_port`. With fewer connections than
    /// ports there always is one.
    fn take_host_port(&mut self, guest_port: u32) -> Option<u32> {
        for _ in 0..=self.by_ports.len() {
            let host = self.next_host_port;
            self.next_host_port = if host >= HOST_PORT_LAST {
                HOST_PORT_FIRST
            } else {
                host + 1
            };
            let ports = Ports {
                host,
                guest: guest_port,
            };
            if !self.by_ports.contains_key(&ports) {
                return Some(host);
            }
        }
        None
    }

    fn window(&self) -> u32 {
        if self.by_ports.len() < WIDE_WINDOWS_MAX {
            WINDOW_BYTES
        } else {
            NARROW_WINDOW_BYTES
        }
    }

    fn enter(&mut self, index: usize, ports: Ports) {
        self.by_ports.insert(ports, index);
        self.counters.connection_opened();
        self.settle(index);
    }

    /// Takes a packet of the guest in.
    pub(super) fn receive(&mut self, packet: &TxPacket, payload: &mut GuestSlices<'_>) {
        let header = &packet.header;
        if header.src_cid != u64::from(self.guest_cid) || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        match self.by_ports.get(&ports) {
            Some(index) if header.kind == TYPE_STREAM => {
                self.receive_for(*index, packet, payload);
            }
            None if header.kind == TYPE_STREAM && header.op == op::REQUEST => {
                self.request(header, ports);
            }
            _ => self.refuse(header),
        }
    }

    fn receive_for(&mut self, index: usize, packet: &TxPacket, payload: &mut GuestSlices<'_>) {
        let Some(Some(Slot::Link(link))) = self.slots.get_mut(index) else {
            return;
        };
        let received = if packet.complete {
            link.connection.receive(&packet.header)
        } else {
            link.connection.reset();
            Received::Violation
        };
        match received {
            Received::Nothing | Received::Ended => {}
            Received::Accepted => link.tell_accepted(),
            Received::Payload => {
                self.counters.bytes_to_host(payload.bytes() as u64);
                link.write(payload);
            }
            Received::Violation => link.close(),
        }
        self.settle(index);
    }

    /// The guest wants a connection to a port of the host.
    fn request(&mut self, header: &Header, ports: Ports) {
        let grant = self
            .endpoints
            .grants
            .iter()
            .find(|(port, _)| *port == ports.host);
        let Some((_, acceptor)) = grant else {
            return self.refuse(header);
        };
        if self.by_guest >= GUEST_CONNECTIONS_MAX || !self.has_room() {
            return self.refuse(header);
        }
        let Ok(socket) = socket::offer(acceptor) else {
            return self.refuse(header);
        };
        let connection = Connection::from_guest(self.window(), header);
        match self.insert(Slot::Link(Link::new(ports, true, connection, socket))) {
            Some(index) => {
                self.by_guest += 1;
                self.enter(index, ports);
            }
            None => self.refuse(header),
        }
    }

    /// Answers a packet that belongs to no connection; a reset is never answered.
    fn refuse(&mut self, header: &Header) {
        if header.op != op::RST {
            self.counters.reset_sent();
            self.resets.push_back(header.reset_reply());
        }
    }

    /// Whether so many resets wait that no further packet of the guest may be taken in.
    pub(super) fn resets_full(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// A reset that is to be sent before anything else.
    pub(super) fn take_reset(&mut self) -> Option<Header> {
        self.resets.pop_front()
    }

    /// Whether there is anything to send.
    pub(super) fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Whether resets wait.
    pub(super) fn has_resets(&self) -> bool {
        !self.resets.is_empty()
    }

    /// The connection whose turn it is. [`end_turn`](Self::end_turn) must follow.
    pub(super) fn begin_turn(&mut self) -> Option<usize> {
        let index = self.ready.pop_front()?;
        if let Some(link) = self.link(index) {
            link.queued = false;
        }
        Some(index)
    }

    /// Ends the turn of the connection in slot `index`. It queues up again, behind the others, if
    /// it still has something to send.
    pub(super) fn end_turn(&mut self, index: usize) {
        self.settle(index);
    }

    /// The connection in slot `index`.
    pub(super) fn link(&mut self, index: usize) -> Option<&mut Link> {
        match self.slots.get_mut(index) {
            Some(Some(Slot::Link(link))) => Some(link),
            _ => None,
        }
    }

    /// The guest's context id.
    pub(super) fn guest_cid(&self) -> u32 {
        self.guest_cid
    }

    /// Draws the conclusions of any change of the connection in slot `index`.
    fn settle(&mut self, index: usize) {
        let Some(Some(Slot::Link(link))) = self.slots.get_mut(index) else {
            return;
        };
        link.settle();
        if link.connection.ended() {
            let ports = link.ports;
            let over = link.descriptor().is_none();
            if self.by_ports.get(&ports) == Some(&index) {
                self.by_ports.remove(&ports);
                self.counters.connection_ended();
            }
            if over {
                return self.release(index);
            }
        }
        self.watch_room(index);
        let Some(link) = self.link(index) else {
            return;
        };
        if link.stalls() {
            self.counters.credit_stalled();
        }
        self.queue_up(index);
    }

    /// Puts the connection in slot `index` into the list of those with something to send.
    fn queue_up(&mut self, index: usize) {
        if let Some(Some(Slot::Link(link))) = self.slots.get_mut(index)
            && !link.queued
            && link.has_output()
        {
            link.queued = true;
            self.ready.push_back(index);
        }
    }

    /// Has the socket in slot `index` report when it takes bytes again, as long as some wait.
    fn watch_room(&mut self, index: usize) {
        let Some(Some(Slot::Link(link))) = self.slots.get_mut(index) else {
            return;
        };
        let (Some(takes_bytes), Some(fd)) = (link.watch_changes(), link.descriptor()) else {
            return;
        };
        let room = if takes_bytes {
            EventSet::OUT
        } else {
            EventSet::empty()
        };
        self.poller
            .change(fd, socket_events() | room, Token::Slot(index));
    }

    /// Empties slot `index`.
    fn release(&mut self, index: usize) {
        let Some(Some(slot)) = self.slots.get_mut(index).map(Option::take) else {
            return;
        };
        if let Slot::Link(link) = slot {
            if link.by_guest {
                self.by_guest -= 1;
            }
            if link.queued {
                self.ready.retain(|ready| *ready != index);
            }
        }
        self.free.push(index);
    }

    /// Drops all connections and everything that was to be sent.
    pub(super) fn drop_all(&mut self) {
        for _ in 0..self.by_ports.len() {
            self.counters.connection_ended();
        }
        self.slots.clear();
        self.free.clear();
        self.by_ports.clear();
        self.by_guest = 0;
        self.ready.clear();
        self.resets.clear();
    }
}
