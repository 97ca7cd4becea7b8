//! A guest for the tests: a vsock driver on the mock driver's rings, and host processes beside it.

use std::{
    collections::{HashMap, VecDeque},
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use vm_memory::{Bytes, GuestAddress};

use super::super::{
    HOST_CID, Vsock,
    packet::{HEADER_BYTES, Header, TYPE_STREAM, op},
};
use crate::virtio::{
    device::{ActiveQueue, VirtioDevice},
    mock::{Buffer, DEADLINE, MockDriver},
};

pub(super) const GUEST_CID: u32 = 3;
pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

/// Room of a tx buffer for payload, in bytes.
pub(super) const PACKET_BYTES_MAX: usize = 64 << 10;
const TX_BUFFERS: usize = 32;

/// How long nothing must happen to be sure that nothing does.
pub(super) const QUIET: Duration = Duration::from_millis(60);

/// A packet as the guest got it.
pub(super) type Packet = (Header, Vec<u8>);

pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) driver: MockDriver,
    pub(super) acceptors: Vec<OwnedFd>,
    pub(super) arrived: VecDeque<Packet>,
    path: PathBuf,
    directory: Option<tempfile::TempDir>,
    rx: HashMap<u16, Vec<Buffer>>,
    tx_free: Vec<u64>,
    tx_busy: HashMap<u16, u64>,
}

impl Guest {
    /// A guest with an active device, `grants`, and rx buffers like Linux's.
    pub(super) fn new(grants: &[u32]) -> Self {
        let mut guest = Self::reset(grants);
        guest.activate(VERSION_1);
        guest
    }

    /// The same with the device still in reset.
    pub(super) fn reset(grants: &[u32]) -> Self {
        let mut guest = Self::bare(grants);
        guest.offer_rx(64, &[3776]);
        guest
    }

    /// The same without rx buffers.
    pub(super) fn bare(grants: &[u32]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vsock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut guest = Self::made(listener.into(), path, grants);
        guest.directory = Some(directory);
        guest
    }

    /// A guest whose clients come from `listener`, bound to `path`; its device is in reset.
    pub(super) fn with_listener(listener: OwnedFd, path: PathBuf) -> Self {
        let mut guest = Self::made(listener, path, &[]);
        guest.offer_rx(64, &[3776]);
        guest
    }

    fn made(listener: OwnedFd, path: PathBuf, grants: &[u32]) -> Self {
        let mut acceptors = Vec::new();
        let mut granted = Vec::new();
        for port in grants {
            let (device, test) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                SocketFlags::CLOEXEC,
                None,
            )
            .unwrap();
            granted.push((*port, device));
            acceptors.push(test);
        }
        let device = Vsock::new(GUEST_CID, listener, granted);
        let mut driver = MockDriver::new(&device, 256);
        let tx_free = (0..TX_BUFFERS)
            .map(|_| driver.alloc((HEADER_BYTES + PACKET_BYTES_MAX) as u32))
            .collect();
        Self {
            device,
            driver,
            acceptors,
            arrived: VecDeque::new(),
            path,
            directory: None,
            rx: HashMap::new(),
            tx_free,
            tx_busy: HashMap::new(),
        }
    }

    pub(super) fn activate(&mut self, features: u64) {
        self.driver.activate(&mut self.device, features).unwrap();
    }

    pub(super) fn resume(&mut self, queues: Vec<ActiveQueue>) {
        self.driver
            .resume(&mut self.device, queues, VERSION_1)
            .unwrap();
    }

    /// Offers `count` rx buffers of parts with these lengths.
    pub(super) fn offer_rx(&mut self, count: usize, parts: &[u32]) {
        for _ in 0..count {
            let buffers: Vec<Buffer> = parts
                .iter()
                .map(|bytes| self.driver.writable(*bytes))
                .collect();
            let head = self.driver.rings[RX].add(&buffers);
            self.rx.insert(head, buffers);
        }
        self.driver.notify(RX);
    }

    /// Starts over with a new driver, as after a reset, and active.
    pub(super) fn restart(&mut self) {
        self.driver = MockDriver::new(&self.device, 256);
        self.arrived.clear();
        self.rx.clear();
        self.tx_busy.clear();
        self.tx_free = (0..TX_BUFFERS)
            .map(|_| self.driver.alloc((HEADER_BYTES + PACKET_BYTES_MAX) as u32))
            .collect();
        self.offer_rx(64, &[3776]);
        self.activate(VERSION_1);
    }

    /// Sends a packet as one descriptor.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        self.send_parts(header, payload, &[]);
    }

    /// Sends a packet that is cut into descriptors at `cuts`, ascending.
    pub(super) fn send_parts(&mut self, header: Header, payload: &[u8], cuts: &[usize]) {
        let header = Header {
            len: payload.len() as u32,
            ..header
        };
        self.send_raw(&[&header.encode()[..], payload].concat(), cuts);
    }

    /// Sends bytes that may be a packet.
    pub(super) fn send_raw(&mut self, bytes: &[u8], cuts: &[usize]) {
        let address = self.tx_buffer();
        self.driver
            .memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
        let edges = [&[0], cuts, &[bytes.len()]].concat();
        let parts: Vec<Buffer> = edges
            .windows(2)
            .map(|edge| Buffer::readable(address + edge[0] as u64, (edge[1] - edge[0]) as u32))
            .collect();
        let head = self.driver.rings[TX].add(&parts);
        self.tx_busy.insert(head, address);
        self.driver.notify(TX);
    }

    fn tx_buffer(&mut self) -> u64 {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(address) = self.tx_free.pop() {
                return address;
            }
            assert!(Instant::now() < end, "the device takes no packets");
            self.poll();
            if self.tx_free.is_empty() {
                self.driver.poll_interrupt(Duration::from_millis(100));
            }
        }
    }

    /// How many packets the device has not taken yet.
    pub(super) fn tx_pending(&mut self) -> usize {
        self.poll();
        self.tx_busy.len()
    }

    /// Takes what the device used in, and offers the rx buffers again.
    pub(super) fn poll(&mut self) {
        for (head, _) in self.driver.rings[TX].take_used() {
            let address = self.tx_busy.remove(&head).unwrap();
            self.tx_free.push(address);
        }
        // All of these heads are free again, and may be those of the next chains.
        let used: Vec<(Vec<Buffer>, u32)> = self.driver.rings[RX]
            .take_used()
            .into_iter()
            .map(|(head, bytes)| (self.rx.remove(&head).unwrap(), bytes))
            .collect();
        let any = !used.is_empty();
        for (parts, bytes) in used {
            let content: Vec<u8> = parts
                .iter()
                .flat_map(|part| self.driver.content(*part))
                .take(bytes as usize)
                .collect();
            let (header, payload) = content.split_at(HEADER_BYTES);
            let header = Header::decode(header.try_into().unwrap());
            assert_eq!(header.len as usize, payload.len(), "{header:?}");
            self.arrived.push_back((header, payload.to_vec()));
            let head = self.driver.rings[RX].add(&parts);
            self.rx.insert(head, parts);
        }
        if any {
            self.driver.notify(RX);
        }
    }

    /// Waits until the device has filled `count` rx buffers since the start, whatever it tells.
    pub(super) fn wait_rx_used(&self, count: u16) {
        let end = Instant::now() + DEADLINE;
        while self.driver.rings[RX].used_index() < count {
            assert!(Instant::now() < end, "rx buffers are not used");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The next packet, if one comes within `time`.
    pub(super) fn receive_within(&mut self, time: Duration) -> Option<Packet> {
        let end = Instant::now() + time;
        loop {
            self.poll();
            if let Some(packet) = self.arrived.pop_front() {
                return Some(packet);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.driver.poll_interrupt(left);
        }
    }

    /// The next packet.
    pub(super) fn receive(&mut self) -> Packet {
        self.receive_within(DEADLINE).expect("a packet in time")
    }

    /// The next packet, which must be this operation.
    pub(super) fn expect(&mut self, op: u16) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.0.op, op, "{:?}", packet.0);
        assert_eq!(packet.0.src_cid, HOST_CID);
        assert_eq!(packet.0.dst_cid, u64::from(GUEST_CID));
        packet
    }

    /// Asserts that no packet comes.
    pub(super) fn expect_quiet(&mut self) {
        let packet = self.receive_within(QUIET);
        assert!(packet.is_none(), "{packet:?}");
    }

    /// A process of the host, just connected.
    pub(super) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_write_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// A process of the host that wants `port`.
    pub(super) fn client_for(&self, port: u32) -> UnixStream {
        use std::io::Write;
        let mut client = self.client();
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        client
    }

    /// A connection to `port` that the guest accepted with a window of `window` bytes.
    pub(super) fn connected(&mut self, port: u32, window: u32) -> (UnixStream, Peer) {
        let mut client = self.client_for(port);
        let (request, _) = self.expect(op::REQUEST);
        assert_eq!(request.dst_port, port);
        let peer = Peer::of(&request, window);
        self.send(peer.header(op::RESPONSE), &[]);
        let line = read_line(&mut client);
        assert_eq!(line, format!("OK {}\n", request.src_port));
        (client, peer)
    }

    /// A connection to granted `port` that the guest opens with a window of `window` bytes.
    pub(super) fn dialled(&mut self, port: u32, from: u32, window: u32) -> (UnixStream, Peer) {
        let mut peer = Peer {
            host_port: port,
            guest_port: from,
            window,
            ..Peer::default()
        };
        self.send(peer.header(op::REQUEST), &[]);
        let (response, _) = self.expect(op::RESPONSE);
        peer.learn(&response);
        let socket = receive_descriptor(&self.acceptors[0]).unwrap();
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        (stream, peer)
    }

    /// Offers `count` event buffers.
    pub(super) fn offer_events(&mut self, count: usize) -> Vec<Buffer> {
        let buffers: Vec<Buffer> = (0..count)
            .map(|_| {
                let buffer = self.driver.writable(4);
                self.driver
                    .memory
                    .write_slice(&[0xff; 4], GuestAddress(buffer.address))
                    .unwrap();
                self.driver.rings[EVENT].add(&[buffer]);
                buffer
            })
            .collect();
        self.driver.notify(EVENT);
        buffers
    }

    pub(super) fn counter(&self, wanted: &str) -> u64 {
        let mut value = None;
        self.device.counters(&mut |name, count| {
            if name == wanted {
                value = Some(count);
            }
        });
        value.expect("there is such a counter")
    }

    /// Waits until a counter has a value.
    pub(super) fn wait_counter(&self, name: &str, value: u64) {
        let end = Instant::now() + DEADLINE;
        while self.counter(name) != value {
            assert!(Instant::now() < end, "{name}: {}", self.counter(name));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The guest's side of a connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peer {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
    pub(super) window: u32,
    pub(super) taken: u32,
    pub(super) sent: u32,
    pub(super) host_window: u32,
    pub(super) host_taken: u32,
}

impl Peer {
    pub(super) fn of(packet: &Header, window: u32) -> Self {
        let mut peer = Self {
            host_port: packet.src_port,
            guest_port: packet.dst_port,
            window,
            ..Self::default()
        };
        peer.learn(packet);
        peer
    }

    pub(super) fn learn(&mut self, packet: &Header) {
        self.host_window = packet.buf_alloc;
        self.host_taken = packet.fwd_cnt;
    }

    pub(super) fn credit(&self) -> usize {
        (self.host_window - self.sent.wrapping_sub(self.host_taken)) as usize
    }

    pub(super) fn header(&self, op: u16) -> Header {
        Header {
            src_cid: u64::from(GUEST_CID),
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: TYPE_STREAM,
            op,
            buf_alloc: self.window,
            fwd_cnt: self.taken,
            ..Header::default()
        }
    }

    pub(super) fn shutdown(&self, flags: u32) -> Header {
        Header {
            flags,
            ..self.header(op::SHUTDOWN)
        }
    }
}

/// Reads up to a newline.
pub(super) fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    String::from_utf8(line).unwrap()
}

/// Reads `count` bytes.
pub(super) fn read_exactly(stream: &mut UnixStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Asserts that the end of file is next.
pub(super) fn expect_end(stream: &mut UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => assert!(rest.is_empty(), "{} bytes before the end", rest.len()),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// Takes a descriptor off an acceptor, as the runtime does.
pub(super) fn receive_descriptor(acceptor: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0xff; 2];
    let received = rustix::net::recvmsg(
        acceptor,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )
    .ok()?;
    assert_eq!(received.bytes, 1, "one byte comes with each descriptor");
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
        _ => Vec::new(),
    });
    let first = descriptors.next();
    assert!(descriptors.next().is_none());
    first
}

/// Bytes that show where they belong.
pub(super) fn pattern(from: usize, count: usize) -> Vec<u8> {
    (from..from + count)
        .map(|position| (position ^ (position >> 8) ^ (position >> 16)) as u8)
        .collect()
}
