//! virtio-vsock (virtio 1.3 §5.10): stream connections between the guest and Unix sockets of the
//! host, with no vsock of the host's kernel involved.
//!
//! ```text
//!  host process ── Unix stream ──┐                                    ┌── tx queue ◄─┐
//!  host process ── Unix stream ──┤ backend ── connection (per stream) ┤              │ guest
//!  acceptor of a granted port ───┘            credit, half-close      └── rx queue ──►┘
//! ```
//!
//! `packet` reads and writes packets in descriptor chains, `connection` is the protocol of one
//! connection without any I/O, `link` joins it to its socket, `backend` has all of these and the
//! listener, and `worker` serves the queues and waits for everything at once, on one thread.
//!
//! Host to guest: a process connects to the listener and writes `CONNECT <port>\n`. When the guest
//! accepts, it reads `OK <host port>\n` and then the stream; when the guest refuses, its socket is
//! closed. Clients that connect while the driver is not active wait in the listener's backlog.
//!
//! Guest to host: only to granted ports. The device makes a socket pair and sends one end over the
//! grant's acceptor; every other request is reset.
//!
//! Payload moves between guest memory and sockets without a copy. The one exception is bounded:
//! bytes a host process does not take at once wait in a ring of at most the window promised to
//! the guest, which exists only while it holds something.
//!
//! Threats and what meets them:
//!
//! | a hostile guest … | … meets |
//! |---|---|
//! | sends more than its credit | the window: that connection is reset |
//! | opens connections without end | `GUEST_CONNECTIONS_MAX` |
//! | sends packets that call for resets but offers no rx buffers | `RESETS_MAX`: tx waits |
//! | floods the tx queue | `TX_BUDGET`: everything else gets its turn |
//! | breaks a ring or a chain | `DEVICE_NEEDS_RESET`, once, with all connections dropped |
//! | never ends a connection the host has closed | its own count of connections, nothing else |

mod backend;
mod connection;
mod device;
mod link;
mod packet;
mod poller;
mod queue;
mod socket;
mod worker;

#[cfg(test)]
mod tests;

use std::time::Duration;

pub use device::Vsock;

/// Context id of the host (virtio 1.3 §5.10.4).
const HOST_CID: u64 = 2;

/// Index of the queue with packets for the guest (virtio 1.3 §5.10.2).
const RX_QUEUE: u16 = 0;
/// Index of the queue with packets of the guest.
const TX_QUEUE: u16 = 1;
/// Index of the queue with events for the guest.
const EVENT_QUEUE: u16 = 2;

/// Sizes of the queues. Linux fills the whole rx queue with 4 KiB buffers at boot, so that its
/// size is start-up time and guest memory: 64 are enough to keep a stream busy. A packet of the
/// guest takes two descriptors. Linux offers eight event buffers.
const QUEUE_SIZES: [u16; 3] = [64, 128, 8];

/// Most connections at a time, clients without a finished `CONNECT` line included. Further clients
/// wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 4096;

/// Most connections that the guest opened at a time, so that it cannot use up all of
/// [`CONNECTIONS_MAX`] and shut the host out.
const GUEST_CONNECTIONS_MAX: usize = 1024;

/// Bytes of a connection that the device is ready to hold for the host (`buf_alloc`): what Linux
/// gives its own sockets.
const WINDOW_BYTES: u32 = 256 << 10;

/// The same for a connection that is made while there are [`WIDE_WINDOWS_MAX`] already: one packet
/// of Linux's largest size.
const NARROW_WINDOW_BYTES: u32 = 64 << 10;

/// How many connections have the wide window. A window is a promise of memory: with all
/// [`CONNECTIONS_MAX`] stalled by their host processes the device holds at most
/// 64 × 256 KiB + 4,032 × 64 KiB = 268 MiB.
const WIDE_WINDOWS_MAX: usize = 64;

/// First port the host uses for connections it opens; the others follow up to
/// [`HOST_PORT_LAST`], and around.
const HOST_PORT_FIRST: u32 = 1 << 30;
/// Last port the host uses for connections it opens.
const HOST_PORT_LAST: u32 = (1 << 31) - 1;

/// Most resets for unknown connections that wait for rx buffers. The device then leaves the tx
/// queue alone until the driver offers buffers (virtio 1.3 §5.10.6.1.2 asks for such a limit).
const RESETS_MAX: usize = 128;

/// Most packets taken from the tx queue before everything else gets its turn.
const TX_BUDGET: usize = 256;

/// How long clients wait in the listener's backlog after the kernel had no descriptor or memory for
/// one, if nothing else happens: no event tells that it has.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Most turns of connections on the rx queue before everything else gets its turn.
const RX_BUDGET: usize = 64;

/// Most rx buffers one turn of a connection fills: with Linux's 4 KiB buffers about what a Unix
/// socket hands over at once. A connection's turn grows to this while it fills all it gets.
const TURN_BUFFERS_MAX: usize = 16;
