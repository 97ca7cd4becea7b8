//! The protocol of one stream connection (virtio 1.3 §5.10.6): who may send what when, credit in
//! both directions, half-close and reset. Pure: packets and socket events go in, packets to send
//! come out. The backend drives it and does what it says; it must not know sockets or queues.
//!
//! ```text
//!  host opens:   Requesting ─REQUEST► Requested ─◄RESPONSE─┐
//!                                                          ├─► Established ─► Resetting ─RST► Ended
//!  guest opens:  ─◄REQUEST─ Accepting ─RESPONSE►───────────┘         └───◄RST──────────────►┘
//! ```
//!
//! A connection that the host closed stays `Established` until the guest answers with a reset, as
//! virtio 1.3 §5.10.6.6 wants it. One that the guest closed is reset once the host has its bytes.

use super::packet::{Header, op};

/// Flag of a `SHUTDOWN`: the sender receives no more (virtio 1.3 §5.10.6.6).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// Flag of a `SHUTDOWN`: the sender sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both: the sender is done with the connection.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Requesting,
    Requested,
    Accepting,
    Established,
    Resetting,
    Ended,
}

/// What a packet of the guest means for the sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing.
    Nothing,
    /// The guest accepted: the host may be told.
    Accepted,
    /// The packet's payload is to be forwarded, or kept until it is.
    Payload,
    /// The guest broke the protocol. The connection is going to be reset and nothing more of it
    /// is worth forwarding.
    Violation,
    /// The guest ended the connection. What it sent before is to be forwarded still.
    Ended,
}

/// A packet without payload that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Control {
    /// One of [`op`].
    pub(super) op: u16,
    /// Flags of the operation.
    pub(super) flags: u32,
}

impl Control {
    fn plain(op: u16) -> Self {
        Self { op, flags: 0 }
    }
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    phase: Phase,
    /// Bytes of the guest that may wait here: `buf_alloc` of our packets.
    window: u32,
    /// Bytes received from the guest, modulo 2^32.
    received: u32,
    /// Bytes of these the host has taken, or that nobody will take: `fwd_cnt` of our packets.
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    announced: u32,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// The guest's window: `buf_alloc` of its last packet.
    peer_window: u32,
    /// Bytes the guest's program has taken: `fwd_cnt` of its packets.
    peer_forwarded: u32,
    /// Flags of all `SHUTDOWN`s of the guest.
    guest_closed: u32,
    /// What the host has closed, as flags of a `SHUTDOWN`.
    host_closed: u32,
    /// What of that the guest was told.
    host_closed_told: u32,
    credit_asked: bool,
    credit_wanted: CreditWanted,
}

/// Whether the host waits for the guest's credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CreditWanted {
    No,
    ToAsk,
    Asked,
}

impl Connection {
    /// A connection that a host process wants, with `window` bytes for the guest.
    pub(super) fn from_host(window: u32) -> Self {
        Self::new(Phase::Requesting, window)
    }

    /// A connection that the guest asked for with `request` and gets.
    pub(super) fn from_guest(window: u32, request: &Header) -> Self {
        let mut connection = Self::new(Phase::Accepting, window);
        connection.take_credit(request);
        connection
    }

    fn new(phase: Phase, window: u32) -> Self {
        Self {
            phase,
            window,
            received: 0,
            forwarded: 0,
            announced: 0,
            sent: 0,
            peer_window: 0,
            peer_forwarded: 0,
            guest_closed: 0,
            host_closed: 0,
            host_closed_told: 0,
            credit_asked: false,
            credit_wanted: CreditWanted::No,
        }
    }

    /// Takes a packet of the guest in.
    pub(super) fn receive(&mut self, header: &Header) -> Received {
        match (header.op, self.phase) {
            (op::RST, _) => {
                self.phase = Phase::Ended;
                Received::Ended
            }
            (_, Phase::Resetting | Phase::Ended) => Received::Nothing,
            (op::RESPONSE, Phase::Requested) => {
                self.take_credit(header);
                self.phase = Phase::Established;
                Received::Accepted
            }
            (op::RW, Phase::Established) => self.receive_payload(header),
            (op::SHUTDOWN, Phase::Established) => {
                self.take_credit(header);
                self.guest_closed |= header.flags & SHUTDOWN_BOTH;
                self.reset_when_drained();
                Received::Nothing
            }
            (op::CREDIT_UPDATE, Phase::Established) => {
                self.take_credit(header);
                Received::Nothing
            }
            (op::CREDIT_REQUEST, Phase::Established) => {
                self.take_credit(header);
                self.credit_asked = true;
                Received::Nothing
            }
            _ => self.violation(),
        }
    }

    fn receive_payload(&mut self, header: &Header) -> Received {
        let free = self.window - self.buffered();
        if header.len > free || self.guest_closed & SHUTDOWN_SEND != 0 {
            return self.violation();
        }
        self.take_credit(header);
        self.received = self.received.wrapping_add(header.len);
        Received::Payload
    }

    fn violation(&mut self) -> Received {
        self.reset();
        Received::Violation
    }

    /// Takes the guest's credit over. Lies about it only ever cost the guest credit.
    fn take_credit(&mut self, header: &Header) {
        self.peer_window = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
        if self.credit() > 0 {
            self.credit_wanted = CreditWanted::No;
        }
    }

    /// Bytes sent that the guest's program has not taken yet.
    fn in_flight(&self) -> u32 {
        self.sent.wrapping_sub(self.peer_forwarded)
    }

    fn credit(&self) -> u32 {
        self.peer_window.saturating_sub(self.in_flight())
    }

    /// Bytes received and not forwarded; never more than the window.
    pub(super) fn buffered(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// The host took `bytes` of those buffered, or nobody ever will.
    pub(super) fn forwarded(&mut self, bytes: u32) {
        self.forwarded = self.forwarded.wrapping_add(bytes.min(self.buffered()));
        self.reset_when_drained();
    }

    fn reset_when_drained(&mut self) {
        if self.guest_closed == SHUTDOWN_BOTH
            && self.buffered() == 0
            && self.phase == Phase::Established
        {
            self.phase = Phase::Resetting;
        }
    }

    /// The host sends no more: its end of file was read.
    pub(super) fn host_sends_no_more(&mut self) {
        self.host_closed |= SHUTDOWN_SEND;
    }

    /// The host takes no more.
    pub(super) fn host_receives_no_more(&mut self) {
        self.host_closed |= SHUTDOWN_RECEIVE;
    }

    /// The host process is gone, and everything it sent is with the guest or has no taker.
    pub(super) fn host_gone(&mut self) {
        match self.phase {
            Phase::Requesting => self.phase = Phase::Ended,
            Phase::Requested => self.phase = Phase::Resetting,
            Phase::Accepting | Phase::Established => self.host_closed = SHUTDOWN_BOTH,
            Phase::Resetting | Phase::Ended => {}
        }
    }

    /// Gives the connection up: the guest gets a reset.
    pub(super) fn reset(&mut self) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Resetting;
        }
    }

    /// Whether data flows, as far as half-closes let it.
    pub(super) fn established(&self) -> bool {
        self.phase == Phase::Established
    }

    /// Whether the guest has not answered the host's request yet.
    pub(super) fn awaits_guest(&self) -> bool {
        matches!(self.phase, Phase::Requesting | Phase::Requested)
    }

    /// Bytes of the guest that may be buffered.
    pub(super) fn window(&self) -> u32 {
        self.window
    }

    /// Whether the connection is over. Only bytes of the guest may still be on their way out.
    pub(super) fn ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Whether nothing that the socket could do matters any more.
    pub(super) fn done_with_host(&self) -> bool {
        self.phase == Phase::Resetting || self.host_closed == SHUTDOWN_BOTH
    }

    /// Whether the host has its end of file to expect after what is buffered.
    pub(super) fn guest_sends_no_more(&self) -> bool {
        self.guest_closed & SHUTDOWN_SEND != 0
    }

    /// Whether the host's bytes have no taker.
    pub(super) fn guest_receives_no_more(&self) -> bool {
        self.guest_closed & SHUTDOWN_RECEIVE != 0
    }

    /// Whether the host's end of file was read.
    pub(super) fn host_sent_all(&self) -> bool {
        self.host_closed & SHUTDOWN_SEND != 0
    }

    /// Whether bytes of the guest have no taker.
    pub(super) fn discards(&self) -> bool {
        self.host_closed & SHUTDOWN_RECEIVE != 0
    }

    /// Whether bytes of the host are welcome, now or when there is credit.
    pub(super) fn reads_host(&self) -> bool {
        self.established() && !self.host_sent_all() && !self.guest_receives_no_more()
    }

    /// How many bytes of the host may be sent now.
    pub(super) fn room(&self) -> u32 {
        if self.reads_host() { self.credit() } else { 0 }
    }

    /// The host has bytes for which there is no [`room`](Self::room): the guest is asked for
    /// credit, once. Whether this is news.
    pub(super) fn stalled(&mut self) -> bool {
        let news = self.credit_wanted == CreditWanted::No;
        if news {
            self.credit_wanted = CreditWanted::ToAsk;
        }
        news
    }

    /// `bytes` go to the guest, no more than there was [`room`](Self::room) for.
    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.wrapping_add(bytes);
    }

    /// The packet that is to be sent before any payload, if there is one.
    pub(super) fn due(&self) -> Option<Control> {
        match self.phase {
            Phase::Requesting => Some(Control::plain(op::REQUEST)),
            Phase::Accepting => Some(Control::plain(op::RESPONSE)),
            Phase::Resetting => Some(Control::plain(op::RST)),
            Phase::Requested | Phase::Ended => None,
            Phase::Established if self.host_closed != self.host_closed_told => Some(Control {
                op: op::SHUTDOWN,
                flags: self.host_closed,
            }),
            Phase::Established if self.credit_wanted == CreditWanted::ToAsk => {
                Some(Control::plain(op::CREDIT_REQUEST))
            }
            Phase::Established if self.credit_asked || self.credit_is_low() => {
                Some(Control::plain(op::CREDIT_UPDATE))
            }
            Phase::Established => None,
        }
    }

    /// Whether the guest sees less than half of the space it has. The guest may use less than our
    /// window: Linux takes the smaller one of ours and its own.
    fn credit_is_low(&self) -> bool {
        let used = self.received.wrapping_sub(self.announced);
        let window = self.window.min(self.peer_window);
        self.forwarded != self.announced
            && used.saturating_mul(2) >= window
            && self.guest_closed & SHUTDOWN_SEND == 0
            && self.host_closed & SHUTDOWN_RECEIVE == 0
    }

    /// The packet of [`due`](Self::due) goes to the guest.
    pub(super) fn tell(&mut self, control: Control) {
        match control.op {
            op::REQUEST => self.phase = Phase::Requested,
            op::RESPONSE => self.phase = Phase::Established,
            op::RST => self.phase = Phase::Ended,
            op::SHUTDOWN => self.host_closed_told = control.flags,
            op::CREDIT_REQUEST => self.credit_wanted = CreditWanted::Asked,
            op::CREDIT_UPDATE => self.credit_asked = false,
            _ => {}
        }
    }

    /// Credit fields of a packet that goes to the guest: `buf_alloc` and `fwd_cnt`.
    pub(super) fn stamp(&mut self) -> (u32, u32) {
        self.announced = self.forwarded;
        (self.window, self.forwarded)
    }
}
