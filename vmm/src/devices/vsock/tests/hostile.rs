//! Guests that do not keep to the specification.

use std::time::Duration;

use super::super::{
    HOST_CID,
    connection::SHUTDOWN_SEND,
    packet::{Header, op},
};
use super::guest::{GUEST_CID, Guest, Peer, VERSION_1, expect_end, read_exactly};
use crate::virtio::{
    device::VirtioDevice,
    mock::{BUFFERS_START, DEADLINE, Malformed},
};

/// Memory for malformed chains.
const SCRATCH: u64 = BUFFERS_START - 0x2_0000;

fn stray(op: u16) -> Header {
    Peer {
        host_port: 77,
        guest_port: 88,
        ..Peer::default()
    }
    .header(op)
}

#[test]
fn packets_of_unknown_connections_are_reset() {
    let mut guest = Guest::new(&[]);
    for op in [
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        0,
        8,
        u16::MAX,
    ] {
        guest.send(stray(op), b"x");
        let (reset, _) = guest.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (77, 88));
    }
    guest.send(stray(op::RST), &[]);
    guest.expect_quiet();
}

#[test]
fn other_types_than_streams_are_reset() {
    let mut guest = Guest::new(&[1025]);
    for kind in [0, 2, 3, u16::MAX] {
        let request = Header {
            kind,
            dst_port: 1025,
            ..stray(op::REQUEST)
        };
        guest.send(request, &[]);
        assert_eq!(guest.expect(op::RST).0.kind, kind);
    }
}

#[test]
fn packets_from_or_to_others_are_dropped() {
    let mut guest = Guest::new(&[]);
    for (src_cid, dst_cid) in [
        (u64::from(GUEST_CID) + 1, HOST_CID),
        (u64::from(GUEST_CID) | 1 << 32, HOST_CID),
        (u64::from(GUEST_CID), 1),
        (HOST_CID, u64::from(GUEST_CID)),
    ] {
        let header = Header {
            src_cid,
            dst_cid,
            ..stray(op::RW)
        };
        guest.send(header, &[]);
    }
    guest.expect_quiet();
    assert_eq!(guest.tx_pending(), 0);
}

#[test]
fn packets_out_of_place_reset_their_connection() {
    let mut guest = Guest::new(&[1025]);
    type Break = fn(&mut Guest, Peer);
    let breaks: [Break; 6] = [
        |guest, peer| guest.send(peer.header(op::REQUEST), &[]),
        |guest, peer| guest.send(peer.header(op::RESPONSE), &[]),
        |guest, peer| guest.send(peer.header(0), &[]),
        |guest, peer| guest.send(peer.header(99), &[]),
        |guest, peer| {
            guest.send(peer.shutdown(SHUTDOWN_SEND), &[]);
            guest.send(peer.header(op::RW), b"after the end");
        },
        |guest, peer| {
            let cut_short = Header {
                len: 10,
                ..peer.header(op::RW)
            };
            guest.send_raw(&cut_short.encode(), &[]);
        },
    ];
    for (count, step) in (1..).zip(breaks) {
        let (mut host, peer) = guest.dialled(1025, count, 1000);
        step(&mut guest, peer);
        let (reset, _) = guest.expect(op::RST);
        assert_eq!(reset.dst_port, count);
        expect_end(&mut host);
        guest.wait_counter("connections", 0);
    }
    guest.expect_quiet();
}

#[test]
fn answers_before_the_question_reset() {
    let mut guest = Guest::new(&[]);
    for op in [op::RW, op::CREDIT_UPDATE, op::SHUTDOWN, op::REQUEST] {
        let mut client = guest.client_for(1);
        let (request, _) = guest.expect(op::REQUEST);
        guest.send(Peer::of(&request, 1000).header(op), b"");
        guest.expect(op::RST);
        expect_end(&mut client);
    }
}

#[test]
fn malformed_chains_break_the_device_or_nothing() {
    for queue in 0..3 {
        let mut broken = 0;
        for how in Malformed::ALL {
            let mut guest = Guest::bare(&[]);
            guest.activate(VERSION_1);
            guest.driver.rings[queue].add_malformed(how, SCRATCH);
            guest.driver.notify(queue);
            // On rx a chain is looked at when there is something to send, on tx at once; the
            // event queue is left alone.
            let _client = (queue == 0).then(|| guest.client_for(1));
            while queue < 2
                && !guest.driver.interrupt.needs_reset()
                && guest.driver.rings[queue].used_index() == 0
            {
                guest.driver.poll_interrupt(DEADLINE);
            }
            broken += u32::from(guest.driver.interrupt.needs_reset());
            guest.device.reset();
            // A driver that starts over finds a device that works.
            guest.restart();
            let (mut client, peer) = guest.connected(3, 100);
            guest.send(peer.header(op::RW), b"fine");
            assert_eq!(read_exactly(&mut client, 4), b"fine", "{how:?}");
        }
        // A readable buffer that is too long for memory but not used so far is just a buffer.
        let expected = [
            Malformed::ALL.len() as u32,
            Malformed::ALL.len() as u32 - 1,
            0,
        ];
        assert_eq!(broken, expected[queue], "queue {queue}");
    }
}

#[test]
fn malformed_event_chains_break_a_restored_device() {
    for how in Malformed::ALL {
        let mut guest = Guest::bare(&[]);
        guest
            .device
            .restore(&[1, 0x80, 0x80, 0x80, 0x80, 0x04])
            .unwrap();
        guest.activate(VERSION_1);
        guest.driver.rings[2].add_malformed(how, SCRATCH);
        guest.driver.notify(2);
        while !guest.driver.interrupt.needs_reset() && guest.driver.rings[2].used_index() == 0 {
            guest.driver.poll_interrupt(DEADLINE);
        }
        guest.device.reset();
    }
}

#[test]
fn broken_device_ends_its_connections_and_can_be_stopped() {
    let mut guest = Guest::new(&[]);
    let (mut client, _) = guest.connected(1, 1000);
    guest.driver.rings[1].add_malformed(Malformed::Loop, SCRATCH);
    guest.driver.notify(1);
    guest.driver.wait_needs_reset();
    expect_end(&mut client);
    assert_eq!(guest.counter("connections"), 0);
    assert_eq!(guest.device.pause().len(), 3);
    guest.device.reset();
    assert!(guest.device.pause().is_empty());
}

#[test]
fn guest_that_floods_the_tx_queue_does_not_keep_the_device_from_stopping() {
    let mut guest = Guest::new(&[]);
    for _ in 0..200 {
        guest.send(stray(op::RST), &[]);
    }
    guest.device.reset();
    assert!(!guest.driver.poll_interrupt(Duration::ZERO) || !guest.driver.interrupt.needs_reset());
}
