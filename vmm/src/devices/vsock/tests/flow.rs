//! Credit in both directions, big transfers, interrupts and fairness.

use std::{
    io::{Read, Write},
    time::Duration,
};

use super::super::{
    NARROW_WINDOW_BYTES, RESETS_MAX, WIDE_WINDOWS_MAX, WINDOW_BYTES, connection::SHUTDOWN_BOTH,
    packet::op,
};
use super::guest::{
    EVENT_IDX, Guest, PACKET_BYTES_MAX, Peer, QUIET, VERSION_1, pattern, read_exactly,
};

const BIG: usize = 64 << 20;

#[test]
fn host_stays_within_the_guests_window() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 10_000);
    client.write_all(&pattern(0, 25_000)).unwrap();
    let mut got = Vec::new();
    for round in 1..=3 {
        while got.len() < (10_000 * round).min(25_000) {
            got.extend(guest.expect(op::RW).1);
        }
        if round < 3 {
            assert_eq!(got.len(), 10_000 * round, "not a byte more than the window");
            guest.expect(op::CREDIT_REQUEST);
            guest.expect_quiet();
            peer.taken = got.len() as u32;
            guest.send(peer.header(op::CREDIT_UPDATE), &[]);
        }
    }
    assert_eq!(got, pattern(0, 25_000));
    assert_eq!(guest.counter("credit_stalls"), 2);
}

#[test]
fn guest_that_offers_no_window_gets_nothing() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 0);
    client.write_all(b"bytes").unwrap();
    guest.expect(op::CREDIT_REQUEST);
    guest.expect_quiet();
    // A guest that claims to have read what was never sent gets nothing for it.
    peer.taken = 4_000_000_000;
    guest.send(peer.header(op::CREDIT_UPDATE), &[]);
    guest.expect_quiet();
    peer.taken = 0;
    peer.window = 2;
    guest.send(peer.header(op::CREDIT_UPDATE), &[]);
    assert_eq!(guest.expect(op::RW).1, b"by");
}

#[test]
fn guest_may_fill_the_window_and_no_more() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 1000);
    let mut sent = 0;
    while peer.credit() > 0 {
        let bytes = peer.credit().min(PACKET_BYTES_MAX);
        guest.send(peer.header(op::RW), &pattern(sent, bytes));
        sent += bytes;
        peer.sent += bytes as u32;
        while let Some((header, _)) = guest.receive_within(QUIET) {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            peer.learn(&header);
        }
    }
    assert!(sent >= WINDOW_BYTES as usize);
    assert!(
        sent <= WINDOW_BYTES as usize + (1 << 20),
        "{sent} bytes, unbounded"
    );
    assert_eq!(read_exactly(&mut client, sent), pattern(0, sent));
    let (update, _) = guest.expect(op::CREDIT_UPDATE);
    peer.learn(&update);
    while peer.credit() < WINDOW_BYTES as usize / 2 {
        peer.learn(&guest.expect(op::CREDIT_UPDATE).0);
    }
}

#[test]
fn guest_that_exceeds_its_credit_is_reset() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 1000);
    let (mut other, other_peer) = guest.connected(2, 1000);
    let mut packets = 0;
    let reset = loop {
        guest.send(peer.header(op::RW), &[7; PACKET_BYTES_MAX]);
        peer.sent += PACKET_BYTES_MAX as u32;
        packets += 1;
        assert!(packets < 100, "credit is never at its end");
        match guest.receive_within(QUIET) {
            Some((header, _)) if header.op == op::RST => break header,
            _ => {}
        }
    };
    assert_eq!(reset.dst_port, 1);
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    guest.send(other_peer.header(op::RW), b"unharmed");
    assert_eq!(read_exactly(&mut other, 8), b"unharmed");
    guest.wait_counter("connections", 1);
}

#[test]
fn credit_request_is_answered() {
    let mut guest = Guest::new(&[]);
    let (_client, peer) = guest.connected(1, 1000);
    guest.send(peer.header(op::CREDIT_REQUEST), &[]);
    let (update, _) = guest.expect(op::CREDIT_UPDATE);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (WINDOW_BYTES, 0));
    guest.expect_quiet();
}

#[test]
fn guest_with_a_smaller_window_than_ours_hears_of_credit_in_time() {
    let mut guest = Guest::new(&[]);
    let (mut client, peer) = guest.connected(1, 4096);
    guest.send(peer.header(op::RW), &[1; 1000]);
    assert_eq!(read_exactly(&mut client, 1000), [1; 1000]);
    guest.expect_quiet();
    guest.send(peer.header(op::RW), &[2; 1100]);
    let (update, _) = guest.expect(op::CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt, 2100);
}

#[test]
fn later_connections_have_the_narrow_window() {
    let mut guest = Guest::new(&[]);
    let open: Vec<_> = (0..=WIDE_WINDOWS_MAX as u32)
        .map(|port| guest.connected(port, 100))
        .collect();
    assert_eq!(open[0].1.host_window, WINDOW_BYTES);
    assert_eq!(open[WIDE_WINDOWS_MAX - 1].1.host_window, WINDOW_BYTES);
    assert_eq!(open[WIDE_WINDOWS_MAX].1.host_window, NARROW_WINDOW_BYTES);
}

#[test]
fn sixty_four_mebibytes_to_the_guest_through_a_small_window() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 16 << 10);
    let writer = std::thread::spawn(move || {
        for from in (0..BIG).step_by(1 << 20) {
            client.write_all(&pattern(from, 1 << 20)).unwrap();
        }
    });
    let mut got = 0;
    loop {
        let (header, payload) = guest.receive();
        match header.op {
            op::RW => {
                assert!(
                    payload == pattern(got, payload.len()),
                    "wrong bytes at {got}"
                );
                got += payload.len();
                peer.taken = got as u32;
                guest.send(peer.header(op::CREDIT_UPDATE), &[]);
            }
            op::CREDIT_REQUEST => guest.send(peer.header(op::CREDIT_UPDATE), &[]),
            _ => break,
        }
    }
    assert_eq!(got, BIG);
    writer.join().unwrap();
}

#[test]
fn sixty_four_mebibytes_to_a_slow_host() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 16 << 10);
    let reader = std::thread::spawn(move || {
        let mut got = 0;
        let mut bytes = vec![0; 333_333];
        loop {
            let count = client.read(&mut bytes).unwrap();
            if count == 0 {
                return got;
            }
            assert!(
                bytes[..count] == pattern(got, count),
                "wrong bytes at {got}"
            );
            got += count;
            if got % 7 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut sent = 0;
    while sent < BIG {
        while peer.credit() == 0 {
            let (header, _) = guest.receive();
            peer.learn(&header);
        }
        let bytes = peer.credit().min(PACKET_BYTES_MAX).min(BIG - sent);
        guest.send(peer.header(op::RW), &pattern(sent, bytes));
        sent += bytes;
        peer.sent = sent as u32;
        while let Some((header, _)) = guest.arrived.pop_front() {
            peer.learn(&header);
        }
    }
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    while guest.receive().0.op != op::RST {}
    assert_eq!(reader.join().unwrap(), BIG);
    assert_eq!(guest.counter("bytes_to_host"), BIG as u64);
}

#[test]
fn busy_connection_leaves_turns_to_others() {
    let mut guest = Guest::new(&[]);
    let (mut busy, mut busy_peer) = guest.connected(1, 1 << 20);
    let writer = std::thread::spawn(move || while busy.write_all(&[0; 1 << 16]).is_ok() {});
    let (mut quiet, _) = {
        let mut client = guest.client_for(2);
        let peer = loop {
            let (header, payload) = guest.receive();
            if header.op == op::REQUEST {
                break Peer::of(&header, 1000);
            }
            busy_peer.taken = busy_peer.taken.wrapping_add(payload.len() as u32);
            guest.send(busy_peer.header(op::CREDIT_UPDATE), &[]);
        };
        guest.send(peer.header(op::RESPONSE), &[]);
        assert!(super::guest::read_line(&mut client).starts_with("OK"));
        (client, peer)
    };
    quiet.write_all(b"me too").unwrap();
    loop {
        let (header, payload) = guest.receive();
        if header.dst_port == 2 {
            assert_eq!(payload, b"me too");
            break;
        }
        busy_peer.taken = busy_peer.taken.wrapping_add(payload.len() as u32);
        guest.send(busy_peer.header(op::CREDIT_UPDATE), &[]);
    }
    guest.send(busy_peer.header(op::RST), &[]);
    writer.join().unwrap();
}

#[test]
fn resets_without_rx_buffers_hold_the_tx_queue_up_and_nothing_is_lost() {
    let mut guest = Guest::bare(&[]);
    guest.activate(VERSION_1);
    let strays = RESETS_MAX + 16;
    let stray = |port| Peer {
        host_port: 9,
        guest_port: port,
        ..Peer::default()
    };
    for port in 0..strays as u32 {
        guest.send(stray(port).header(op::RW), b"x");
        if port < RESETS_MAX as u32 {
            while guest.tx_pending() > 0 {
                guest.driver.poll_interrupt(Duration::from_millis(10));
            }
        }
    }
    std::thread::sleep(QUIET);
    assert_eq!(guest.tx_pending(), 16);
    guest.offer_rx(64, &[100]);
    for port in 0..strays as u32 {
        let (reset, _) = guest.expect(op::RST);
        assert_eq!(reset.dst_port, port);
    }
    assert_eq!(guest.tx_pending(), 0);
}

#[test]
fn driver_that_wants_no_interrupts_gets_none() {
    let guest = Guest::new(&[]);
    guest.driver.rings[0].set_available_flags(1);
    guest.driver.rings[1].set_available_flags(1);
    let _client = guest.client_for(1);
    guest.wait_rx_used(1);
    assert!(!guest.driver.poll_interrupt(QUIET));
}

#[test]
fn interrupts_follow_used_event() {
    let mut guest = Guest::reset(&[]);
    guest.activate(VERSION_1 | EVENT_IDX);
    guest.driver.rings[0].set_used_event(1);
    let _first = guest.client_for(1);
    guest.wait_rx_used(1);
    assert!(!guest.driver.poll_interrupt(QUIET), "1 is not past 1");
    let _second = guest.client_for(2);
    guest.driver.wait_interrupt();
    let _third = guest.client_for(3);
    guest.wait_rx_used(3);
    assert!(!guest.driver.poll_interrupt(QUIET), "2 was past 1 already");
}

#[test]
fn one_wake_up_raises_one_interrupt() {
    let mut guest = Guest::reset(&[]);
    for port in 0..20 {
        let stray = Peer {
            host_port: 9,
            guest_port: port,
            ..Peer::default()
        };
        guest.send(stray.header(op::RW), b"x");
    }
    guest.activate(VERSION_1);
    guest.wait_rx_used(20);
    std::thread::sleep(QUIET);
    assert_eq!(
        guest.driver.irq.read().unwrap(),
        1,
        "for 20 packets each way"
    );
}
