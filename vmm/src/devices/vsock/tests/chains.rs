//! Headers, descriptor chains cut anywhere, and `CONNECT` lines.

use proptest::prelude::*;
use virtio_queue::QueueOwnedT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::super::{
    packet::{self, ChainError, HEADER_BYTES, Header, RxBuffers, op},
    socket::{GuestSlices, Parsed, parse_line},
};
use super::guest::{Guest, Peer, pattern};
use crate::virtio::mock::{Buffer, MEMORY_BYTES, RINGS_START, Ring};

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap()
}

/// Guest memory whose middle is the seam of two regions.
fn seamed_memory() -> GuestMemoryMmap {
    let half = MEMORY_BYTES as usize / 2;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(half as u64), half)])
        .unwrap()
}

fn any_header() -> impl Strategy<Value = Header> {
    (
        any::<(u64, u64, u32, u32, u32)>(),
        any::<(u16, u16, u32, u32, u32)>(),
    )
        .prop_map(|(first, second)| Header {
            src_cid: first.0,
            dst_cid: first.1,
            src_port: first.2,
            dst_port: first.3,
            len: first.4,
            kind: second.0,
            op: second.1,
            flags: second.2,
            buf_alloc: second.3,
            fwd_cnt: second.4,
        })
}

/// Lengths of parts that together have at least `total` bytes, empty ones included.
fn parts(total: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..total as u32, 1..12).prop_map(move |mut parts| {
        let sum: u32 = parts.iter().sum();
        parts.push((total as u32).saturating_sub(sum));
        parts
    })
}

fn lay_out(parts: &[u32], start: u64, writable: bool) -> Vec<Buffer> {
    let mut at = start;
    parts
        .iter()
        .map(|bytes| {
            let buffer = Buffer {
                address: at,
                bytes: *bytes,
                writable,
            };
            at += u64::from(*bytes);
            buffer
        })
        .collect()
}

#[test]
fn header_lies_in_memory_as_the_specification_says() {
    let header = Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: 2,
        src_port: 0x1122_3344,
        dst_port: 0x5566_7788,
        len: 0x99aa_bbcc,
        kind: 1,
        op: op::RW,
        flags: 3,
        buf_alloc: 0x4_0000,
        fwd_cnt: 7,
    };
    let raw = header.encode();
    assert_eq!(raw[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(raw[16..20], [0x44, 0x33, 0x22, 0x11]);
    assert_eq!(raw[24..28], [0xcc, 0xbb, 0xaa, 0x99]);
    assert_eq!(raw[28..32], [1, 0, 5, 0]);
    assert_eq!(raw[36..44], [0, 0, 4, 0, 7, 0, 0, 0]);
}

proptest! {
    #[test]
    fn headers_come_back(header in any_header()) {
        prop_assert_eq!(Header::decode(&header.encode()), header);
    }

    #[test]
    fn packets_are_read_however_they_are_cut(
        header in any_header(),
        len in 0_u32..5000,
        parts in parts(6000),
        seam in 0_u64..7000,
    ) {
        let memory = seamed_memory();
        let start = MEMORY_BYTES / 2 - seam;
        let header = Header { len, ..header };
        let payload = pattern(0, len as usize);
        memory.write_slice(&header.encode(), GuestAddress(start)).unwrap();
        memory.write_slice(&payload, GuestAddress(start + HEADER_BYTES as u64)).unwrap();
        let mut ring = Ring::new(&memory, RINGS_START, 128);
        ring.add(&lay_out(&parts, start, false));
        let mut queue = ring.queue(128);
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        let mut slices = GuestSlices::default();
        let packet = packet::read(&memory, chain, &mut slices).unwrap();
        prop_assert!(packet.complete);
        prop_assert_eq!(packet.header, header);
        let mut got = std::collections::VecDeque::new();
        slices.copy_after(0, &mut got);
        prop_assert_eq!(got, payload);
    }

    #[test]
    fn rx_buffers_are_filled_however_they_are_cut(header in any_header(), parts in parts(300)) {
        let memory = memory();
        let start = 0x80_0000;
        let mut ring = Ring::new(&memory, RINGS_START, 128);
        let head = ring.add(&lay_out(&parts, start, true));
        let mut queue = ring.queue(128);
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        let mut slices = GuestSlices::default();
        let mut buffers = RxBuffers::default();
        buffers.push(&memory, chain, &mut slices).unwrap();
        let buffer = buffers.get(0).unwrap();
        let total: u32 = parts.iter().sum();
        prop_assert_eq!(buffer.head, head);
        prop_assert_eq!(buffer.room, total as usize - HEADER_BYTES);
        prop_assert_eq!(slices.bytes(), buffer.room);
        buffers.write_header(&memory, buffer, &header).unwrap();
        let mut raw = [0; HEADER_BYTES];
        memory.read_slice(&mut raw, GuestAddress(start)).unwrap();
        prop_assert_eq!(Header::decode(&raw), header);
    }

    #[test]
    fn lines_of_any_port_are_read(port in any::<u32>(), rest in any::<Vec<u8>>()) {
        let line = format!("CONNECT {port}\n");
        let seen = [line.as_bytes(), &rest].concat();
        let length = line.len();
        prop_assert_eq!(parse_line(&seen), Parsed::Connect { port, length });
        for cut in 0..line.len() {
            prop_assert_eq!(parse_line(&seen[..cut]), Parsed::Unfinished);
        }
    }

    #[test]
    fn no_line_makes_the_parser_panic(seen in any::<Vec<u8>>(), digits in "[0-9 \n]{0,14}") {
        parse_line(&seen);
        let line = format!("CONNECT {digits}");
        if let Parsed::Connect { port, length } = parse_line(line.as_bytes()) {
            prop_assert!(line[..length].ends_with('\n'));
            prop_assert_eq!(line[8..length - 1].parse::<u32>().unwrap(), port);
        }
    }
}

fn read_chain(buffers: &[Buffer]) -> Result<packet::TxPacket, ChainError> {
    let memory = memory();
    let mut ring = Ring::new(&memory, RINGS_START, 128);
    ring.add(buffers);
    let mut queue = ring.queue(128);
    let chain = queue.iter(&memory).unwrap().next().unwrap();
    packet::read(&memory, chain, &mut GuestSlices::default())
}

#[test]
fn broken_tx_chains_are_named() {
    let short = read_chain(&[Buffer::readable(0x80_0000, 43)]);
    assert!(matches!(short, Err(ChainError::Short)), "{short:?}");
    let direction = read_chain(&[Buffer::writable(0x80_0000, 44)]);
    assert!(
        matches!(direction, Err(ChainError::Direction)),
        "{direction:?}"
    );
    let outside = read_chain(&[Buffer::readable(MEMORY_BYTES - 43, 44)]);
    assert!(matches!(outside, Err(ChainError::Memory(_))), "{outside:?}");
    let wraps = read_chain(&[Buffer::readable(u64::MAX - 3, 44)]);
    assert!(matches!(wraps, Err(ChainError::Memory(_))), "{wraps:?}");
}

#[test]
fn device_takes_packets_cut_anywhere_and_fills_buffers_cut_anywhere() {
    let mut guest = Guest::bare(&[]);
    guest.offer_rx(6, &[1, 20, 22, 3, 100]);
    guest.activate(super::guest::VERSION_1);
    let mut client = guest.client_for(5);
    let (request, _) = guest.expect(op::REQUEST);
    let peer = Peer::of(&request, 100_000);
    guest.send_parts(peer.header(op::RESPONSE), &[], &[1, 2, 3, 40]);
    assert!(super::guest::read_line(&mut client).starts_with("OK"));
    for cuts in [
        &[44][..],
        &[10, 50],
        &[43, 44, 45],
        &[0, 0, 144],
        &[100, 100, 100],
    ] {
        guest.send_parts(peer.header(op::RW), &pattern(3, 200), cuts);
        let got = super::guest::read_exactly(&mut client, 200);
        assert_eq!(got, pattern(3, 200), "{cuts:?}");
    }
    use std::io::Write;
    client.write_all(&pattern(9, 1000)).unwrap();
    let mut got = Vec::new();
    while got.len() < 1000 {
        got.extend(guest.expect(op::RW).1);
    }
    assert_eq!(got, pattern(9, 1000));
}
