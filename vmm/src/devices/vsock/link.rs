//! A connection with its socket: payload in and out of guest memory, the ring of bytes that the
//! socket did not take, and what half-closes and ends mean for the socket. Called by the backend;
//! it must not know other connections or queues.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use rustix::net::Shutdown;
use vmm_sys_util::epoll::EventSet;

use super::{
    HOST_CID,
    connection::Connection,
    packet::{Header, TYPE_STREAM},
    poller::is_end,
    socket::{self, GuestSlices},
};

/// Names a connection: there is one per pair, since both context ids are fixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    /// The host's.
    pub(super) host: u32,
    /// The guest's.
    pub(super) guest: u32,
}

/// A connection and its socket.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) ports: Ports,
    /// Whether the guest opened it.
    pub(super) by_guest: bool,
    /// Its protocol.
    pub(super) connection: Connection,
    /// Gone when nothing more is to be had of it, which is what its peer then sees.
    socket: Option<OwnedFd>,
    /// Bytes of the guest that the socket did not take yet. As many as the connection has
    /// buffered, or empty when the socket is gone.
    ring: VecDeque<u8>,
    /// Whether the socket may have bytes, or an end of file, that were not read yet.
    readable: bool,
    /// Whether the host process is gone; what it sent may still be in the socket.
    hung_up: bool,
    /// Whether an end of file waits behind the socket's bytes.
    ends: bool,
    /// Whether the socket reports when it takes bytes again.
    watches_room: bool,
    write_closed: bool,
    read_closed: bool,
    /// Whether it is in the list of connections with something to send.
    pub(super) queued: bool,
    /// How many rx buffers its next turn may fill.
    pub(super) turn_buffers: usize,
}

impl Link {
    /// A connection whose data goes to and comes from `socket`.
    pub(super) fn new(
        ports: Ports,
        by_guest: bool,
        connection: Connection,
        socket: OwnedFd,
    ) -> Self {
        Self {
            ports,
            by_guest,
            connection,
            socket: Some(socket),
            ring: VecDeque::new(),
            readable: false,
            hung_up: false,
            ends: false,
            watches_room: false,
            write_closed: false,
            read_closed: false,
            queued: false,
            turn_buffers: 1,
        }
    }

    /// The socket's descriptor, while there is one.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.socket.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Takes in what epoll says of the socket.
    pub(super) fn socket_event(&mut self, events: u32) {
        let has = |set: EventSet| events & set.bits() != 0;
        self.ends |= is_end(events);
        self.hung_up |= has(EventSet::HANG_UP);
        self.readable |=
            has(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR);
        if has(EventSet::OUT) {
            self.flush();
        }
    }

    /// Takes in what epoll said before the socket was a connection's; `more` tells whether there
    /// are bytes left of which it spoke.
    pub(super) fn inherit_event(&mut self, events: u32, more: bool) {
        self.socket_event(events & !EventSet::IN.bits());
        self.readable |= more;
    }

    /// Tells the host process that the guest accepted its connection.
    pub(super) fn tell_accepted(&mut self) {
        let told = self
            .socket
            .as_ref()
            .is_some_and(|socket| socket::send_ok(socket.as_fd(), self.ports.host));
        if !told {
            self.connection.reset();
        }
    }

    /// Whether the events to watch the socket for have changed, and whether they include that it
    /// takes bytes again.
    pub(super) fn watch_changes(&mut self) -> Option<bool> {
        let wanted = !self.ring.is_empty();
        let changed = wanted != self.watches_room && self.socket.is_some();
        if changed {
            self.watches_room = wanted;
        }
        changed.then_some(wanted)
    }

    /// Whether the host's bytes have to wait for credit, which they did not before.
    pub(super) fn stalls(&mut self) -> bool {
        self.readable
            && self.connection.reads_host()
            && self.connection.room() == 0
            && self.connection.stalled()
    }

    /// Whether payload for the guest may be read off the socket now.
    pub(super) fn has_payload(&self) -> bool {
        self.readable && self.socket.is_some() && self.connection.room() > 0
    }

    /// Whether there is anything to send to the guest.
    pub(super) fn has_output(&self) -> bool {
        self.connection.due().is_some() || self.has_payload()
    }

    /// A header of a packet to the guest, with the credit of the moment.
    pub(super) fn header(&mut self, guest_cid: u32, op: u16) -> Header {
        let (buf_alloc, fwd_cnt) = self.connection.stamp();
        Header {
            src_cid: HOST_CID,
            dst_cid: u64::from(guest_cid),
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            kind: TYPE_STREAM,
            op,
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    /// Reads what the host sent into `slices`, as far as there is credit. Returns how many bytes
    /// came; none when the end of file or nothing did.
    pub(super) fn read(&mut self, slices: &mut GuestSlices<'_>) -> usize {
        let Some(socket) = &self.socket else {
            return 0;
        };
        let limit = self.connection.room() as usize;
        match slices.receive(socket.as_fd(), limit) {
            Ok((0, _)) => {
                self.readable = false;
                self.connection.host_sends_no_more();
                0
            }
            Ok((bytes, asked)) => {
                // A short read emptied the socket; new bytes come with a new event. Only the end
                // of file announces itself before it is reached.
                self.readable = bytes == asked || self.ends;
                // No more than `limit`, which is a `u32`.
                self.connection.sent(bytes as u32);
                bytes
            }
            Err(error) => {
                self.readable = false;
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.hung_up = true;
                    self.connection.host_sends_no_more();
                }
                0
            }
        }
    }

    /// Forwards the payload of a packet that the connection has taken in.
    pub(super) fn write(&mut self, payload: &mut GuestSlices<'_>) {
        let bytes = payload.bytes();
        let Some(socket) = self.socket.as_ref().filter(|_| !self.connection.discards()) else {
            // No more than the window, which is a `u32`.
            self.connection.forwarded(bytes as u32);
            return;
        };
        let mut sent = 0;
        if self.ring.is_empty() {
            match payload.send(socket.as_fd()) {
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.stop_writing(),
            }
            self.connection.forwarded(sent as u32);
        }
        if sent < bytes {
            let window = self.connection.window() as usize;
            if self.ring.capacity() == 0 && self.ring.try_reserve_exact(window).is_err() {
                return self.connection.reset();
            }
            payload.copy_after(sent, &mut self.ring);
        }
    }

    /// Sends what waits in the ring.
    fn flush(&mut self) {
        let Some(socket) = &self.socket else {
            return;
        };
        match socket::send_ring(socket.as_fd(), &mut self.ring) {
            // No more than the ring held, which is no more than the window.
            Ok(sent) => self.connection.forwarded(sent as u32),
            Err(_) => self.stop_writing(),
        }
        if self.ring.is_empty() {
            self.ring = VecDeque::new();
        }
    }

    /// The host process takes no more: what waits for it has no taker.
    fn stop_writing(&mut self) {
        self.ring = VecDeque::new();
        self.connection.host_receives_no_more();
        self.connection.forwarded(self.connection.buffered());
    }

    /// Closes the socket; its peer sees the end of file.
    pub(super) fn close(&mut self) {
        self.socket = None;
        self.ring = VecDeque::new();
        self.readable = false;
        self.connection.forwarded(self.connection.buffered());
    }

    /// Draws the conclusions of a change on either side for the socket.
    pub(super) fn settle(&mut self) {
        if self.hung_up
            && (self.connection.awaits_guest()
                || self.connection.host_sent_all()
                || self.connection.guest_receives_no_more())
        {
            self.connection.host_gone();
        }
        if self.connection.done_with_host() {
            self.close();
        }
        let drained = self.ring.is_empty();
        if self.connection.ended() && (drained || self.hung_up) {
            self.close();
        }
        let Some(socket) = &self.socket else {
            return;
        };
        // A shutdown fails only when the peer is gone already, which an event tells as well.
        if self.connection.guest_sends_no_more() && drained && !self.write_closed {
            self.write_closed = true;
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
        if self.connection.guest_receives_no_more() && !self.read_closed {
            self.read_closed = true;
            let _ = rustix::net::shutdown(socket, Shutdown::Read);
        }
    }
}
