//! Connections of both kinds: opening, refusing, data, half-closes and ends.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
};

use rustix::process::{Resource, Rlimit};

use super::super::{
    GUEST_CONNECTIONS_MAX, HOST_PORT_FIRST, WINDOW_BYTES,
    connection::{SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND},
    packet::op,
};
use super::guest::{Guest, Peer, QUIET, expect_end, pattern, read_exactly, receive_descriptor};

#[test]
fn host_opens_talks_and_closes() {
    let mut guest = Guest::new(&[]);
    let mut client = guest.client_for(1024);
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 1024);
    assert_eq!(request.src_port, HOST_PORT_FIRST);
    assert_eq!(request.buf_alloc, WINDOW_BYTES);
    assert_eq!(request.kind, 1);
    let peer = Peer::of(&request, 4096);
    guest.send(peer.header(op::RESPONSE), &[]);
    assert_eq!(
        super::guest::read_line(&mut client),
        format!("OK {}\n", 1 << 30)
    );

    client.write_all(b"question").unwrap();
    let (data, payload) = guest.expect(op::RW);
    assert_eq!(
        (data.dst_port, payload.as_slice()),
        (1024, &b"question"[..])
    );
    guest.send(peer.header(op::RW), b"answer");
    assert_eq!(read_exactly(&mut client, 6), b"answer");
    assert_eq!(guest.counter("connections"), 1);

    drop(client);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    guest.send(peer.header(op::RST), &[]);
    guest.wait_counter("connections", 0);
    guest.expect_quiet();
    assert_eq!(guest.counter("bytes_to_guest"), 8);
    assert_eq!(guest.counter("bytes_to_host"), 6);
    assert_eq!(guest.counter("connections_opened"), 1);
    assert_eq!(guest.counter("resets"), 0);
}

#[test]
fn request_right_behind_the_line_reaches_the_guest_at_once() {
    let mut guest = Guest::new(&[]);
    let mut client = guest.client();
    client
        .write_all(b"CONNECT 7\nhello from the very start")
        .unwrap();
    let (request, _) = guest.expect(op::REQUEST);
    guest.expect_quiet();
    let peer = Peer::of(&request, 4096);
    guest.send(peer.header(op::RESPONSE), &[]);
    let (_, payload) = guest.expect(op::RW);
    assert_eq!(payload, b"hello from the very start");
}

#[test]
fn what_comes_with_the_end_of_the_line_is_not_forgotten() {
    let mut guest = Guest::new(&[]);
    let mut client = guest.client();
    client.write_all(b"CONN").unwrap();
    std::thread::sleep(QUIET);
    client.write_all(b"ECT 7\nrequest").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (request, _) = guest.expect(op::REQUEST);
    guest.expect_quiet();
    let peer = Peer::of(&request, 4096);
    guest.send(peer.header(op::RESPONSE), &[]);
    assert_eq!(guest.expect(op::RW).1, b"request");
    assert_eq!(guest.expect(op::SHUTDOWN).0.flags, SHUTDOWN_SEND);
    guest.send(peer.header(op::RW), b"reply");
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    assert_eq!(reply, format!("OK {}\nreply", request.src_port));

    let mut client = guest.client();
    client.write_all(b"CONN").unwrap();
    std::thread::sleep(QUIET);
    client.write_all(b"ECT 8\nanother").unwrap();
    guest.expect(op::RST);
    let (request, _) = guest.expect(op::REQUEST);
    guest.send(Peer::of(&request, 4096).header(op::RESPONSE), &[]);
    assert_eq!(guest.expect(op::RW).1, b"another");
}

#[test]
fn guest_refuses() {
    let mut guest = Guest::new(&[]);
    let mut client = guest.client_for(9);
    let (request, _) = guest.expect(op::REQUEST);
    guest.send(Peer::of(&request, 0).header(op::RST), &[]);
    expect_end(&mut client);
    guest.wait_counter("connections", 0);
    guest.expect_quiet();
}

#[test]
fn client_leaves_before_the_guest_answers() {
    let mut guest = Guest::new(&[]);
    let client = guest.client_for(9);
    guest.expect(op::REQUEST);
    drop(client);
    guest.expect(op::RST);
    guest.wait_counter("connections", 0);
}

#[test]
fn malformed_lines_are_closed_and_nobody_else_notices() {
    let guest = Guest::new(&[]);
    for line in [
        "connect 1\n",
        "CONNECT\n",
        "CONNECT \n",
        "CONNECT x\n",
        "CONNECT -1\n",
        "CONNECT 1 \n",
        "CONNECT  1\n",
        "CONNECT 4294967296\n",
        "CONNECT 1\r\n",
        "CONNECT 00000000000000000000000000000001\n",
        "\n",
        "GET / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        expect_end(&mut client);
    }
    assert_eq!(guest.counter("connections_opened"), 0);
}

#[test]
fn clients_that_never_finish_their_line_block_nobody() {
    let mut guest = Guest::new(&[]);
    let mut slow: Vec<UnixStream> = (0..50).map(|_| guest.client()).collect();
    for client in &mut slow {
        client.write_all(b"CONN").unwrap();
    }
    let (mut client, peer) = guest.connected(5, 4096);
    guest.send(peer.header(op::RW), b"still here");
    assert_eq!(read_exactly(&mut client, 10), b"still here");
    let mut last = slow.pop().unwrap();
    drop(slow);
    for byte in b"ECT 77\n" {
        last.write_all(&[*byte]).unwrap();
    }
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 77);
}

#[test]
fn clients_wait_until_the_driver_is_active() {
    let mut guest = Guest::reset(&[]);
    let mut early = guest.client_for(3);
    let gone = guest.client_for(4);
    drop(gone);
    guest.activate(super::guest::VERSION_1);
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 3);
    guest.send(Peer::of(&request, 4096).header(op::RESPONSE), &[]);
    assert!(super::guest::read_line(&mut early).starts_with("OK "));
    let mut rest = Vec::new();
    while let Some((header, _)) = guest.receive_within(QUIET) {
        rest.push(header.op);
    }
    assert!(
        rest.is_empty() || rest == [op::REQUEST, op::RST],
        "{rest:?}"
    );
}

#[test]
fn guest_opens_a_granted_port() {
    let mut guest = Guest::new(&[1025]);
    let (mut host, peer) = guest.dialled(1025, 40_000, 4096);
    assert_eq!(peer.host_window, WINDOW_BYTES);
    guest.send(peer.header(op::RW), b"ready");
    assert_eq!(read_exactly(&mut host, 5), b"ready");
    host.write_all(b"welcome").unwrap();
    let (_, payload) = guest.expect(op::RW);
    assert_eq!(payload, b"welcome");
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(op::RST);
    expect_end(&mut host);
    guest.wait_counter("connections", 0);
}

#[test]
fn guest_gets_no_other_port() {
    let mut guest = Guest::new(&[1025]);
    for port in [0, 1, 1024, 1026, u32::MAX] {
        let peer = Peer {
            host_port: port,
            guest_port: 50,
            ..Peer::default()
        };
        guest.send(peer.header(op::REQUEST), &[]);
        let (reset, _) = guest.expect(op::RST);
        assert_eq!((reset.src_port, reset.dst_port), (port, 50));
    }
    assert!(receive_descriptor(&guest.acceptors[0]).is_none());
    assert_eq!(guest.counter("resets"), 5);
}

#[test]
fn acceptor_that_is_full_or_closed_refuses() {
    let mut guest = Guest::new(&[1025]);
    let mut accepted = 0_u32;
    let refused = loop {
        let peer = Peer {
            host_port: 1025,
            guest_port: 1000 + accepted,
            window: 64,
            ..Peer::default()
        };
        guest.send(peer.header(op::REQUEST), &[]);
        let (answer, _) = guest.receive();
        if answer.op == op::RST {
            break peer;
        }
        assert_eq!(answer.op, op::RESPONSE);
        accepted += 1;
        assert!(accepted <= 2000, "the acceptor is never full");
    };
    assert!(accepted > 1);
    let _taken = receive_descriptor(&guest.acceptors[0]).unwrap();
    guest.send(refused.header(op::REQUEST), &[]);
    guest.expect(op::RESPONSE);
    let mut closed = Guest::new(&[1025]);
    // Another test may fork just now: as long as its child has not executed anything it holds a
    // copy of every descriptor, so that closing one closes nothing.
    rustix::net::shutdown(&closed.acceptors[0], rustix::net::Shutdown::Both).unwrap();
    closed.send(refused.header(op::REQUEST), &[]);
    closed.expect(op::RST);
}

#[test]
fn host_half_closes() {
    let mut guest = Guest::new(&[]);
    let (mut client, peer) = guest.connected(1, 1 << 20);
    client.write_all(&pattern(0, 10_000)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    let flags = loop {
        let (header, payload) = guest.receive();
        match header.op {
            op::RW => got.extend(payload),
            _ => break (header.op, header.flags),
        }
    };
    assert_eq!(flags, (op::SHUTDOWN, SHUTDOWN_SEND));
    assert_eq!(got, pattern(0, 10_000));
    guest.send(peer.header(op::RW), b"and back");
    assert_eq!(read_exactly(&mut client, 8), b"and back");
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(op::RST);
    expect_end(&mut client);
}

#[test]
fn guest_half_closes() {
    let mut guest = Guest::new(&[]);
    let (mut client, peer) = guest.connected(1, 1 << 20);
    guest.send(peer.header(op::RW), b"all of it");
    guest.send(peer.shutdown(SHUTDOWN_SEND), &[]);
    let mut all = String::new();
    client.read_to_string(&mut all).unwrap();
    assert_eq!(all, "all of it");
    client.write_all(b"thanks").unwrap();
    let (_, payload) = guest.expect(op::RW);
    assert_eq!(payload, b"thanks");
    drop(client);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
}

#[test]
fn guest_stops_reading() {
    let mut guest = Guest::new(&[]);
    let (mut client, peer) = guest.connected(1, 1 << 20);
    guest.send(peer.shutdown(SHUTDOWN_RECEIVE), &[]);
    guest.send(peer.header(op::RW), b"x");
    assert_eq!(read_exactly(&mut client, 1), b"x");
    let error = client.write_all(b"nobody reads this").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    guest.send(peer.header(op::RW), b"y");
    assert_eq!(read_exactly(&mut client, 1), b"y");
    drop(client);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
}

#[test]
fn bytes_written_before_the_client_left_arrive() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 1000);
    let writer = std::thread::spawn(move || client.write_all(&pattern(0, 50_000)).unwrap());
    let mut got = Vec::new();
    writer.join().unwrap();
    loop {
        let (header, payload) = guest.receive();
        match header.op {
            op::RW => {
                peer.taken += header.len;
                got.extend(payload);
                guest.send(peer.header(op::CREDIT_UPDATE), &[]);
            }
            op::CREDIT_REQUEST => {}
            other => {
                assert_eq!((other, header.flags), (op::SHUTDOWN, SHUTDOWN_BOTH));
                break;
            }
        }
    }
    assert_eq!(got, pattern(0, 50_000));
}

#[test]
fn bytes_the_guest_sent_before_its_reset_arrive() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 1000);
    let mut sent = 0;
    // More than the socket takes while nobody reads: some is left in the device's ring.
    while peer.credit() > 0 {
        let bytes = peer.credit().min(50_000);
        guest.send(peer.header(op::RW), &pattern(sent, bytes));
        sent += bytes;
        peer.sent += bytes as u32;
        while let Some((header, _)) = guest.receive_within(QUIET) {
            peer.learn(&header);
        }
    }
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect_quiet();
    guest.send(peer.header(op::RST), &[]);
    guest.wait_counter("connections", 0);
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent);
    assert_eq!(got, pattern(0, sent));
    guest.expect_quiet();
}

#[test]
fn guests_close_waits_for_the_host_to_read() {
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 1000);
    let mut sent = 0;
    while peer.credit() > 0 {
        let bytes = peer.credit().min(50_000);
        guest.send(peer.header(op::RW), &pattern(sent, bytes));
        sent += bytes;
        peer.sent += bytes as u32;
        while let Some((header, _)) = guest.receive_within(QUIET) {
            peer.learn(&header);
        }
    }
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect_quiet();
    assert_eq!(read_exactly(&mut client, sent), pattern(0, sent));
    guest.expect(op::RST);
    expect_end(&mut client);
}

#[test]
fn client_that_closes_with_unread_bytes_ends_the_connection() {
    let mut guest = Guest::new(&[]);
    let (client, peer) = guest.connected(1, 1000);
    guest.send(peer.header(op::RW), b"never read");
    guest.wait_counter("bytes_to_host", 10);
    while guest.tx_pending() > 0 {}
    drop(client);
    let (shutdown, _) = guest.expect(op::SHUTDOWN);
    assert_eq!(shutdown.flags, SHUTDOWN_BOTH);
    guest.send(peer.header(op::RW), b"too late");
    guest.expect_quiet();
    guest.send(peer.header(op::RST), &[]);
    guest.wait_counter("connections", 0);
}

#[test]
fn guest_opens_no_more_than_its_share() {
    raise_descriptor_limit();
    let mut guest = Guest::new(&[1025]);
    let open: Vec<_> = (0..GUEST_CONNECTIONS_MAX as u32)
        .map(|from| guest.dialled(1025, from, 100))
        .collect();
    let one_more = Peer {
        guest_port: 9999,
        ..open[0].1
    };
    guest.send(one_more.header(op::REQUEST), &[]);
    guest.expect(op::RST);
    let (_client, _) = guest.connected(1, 100);
    guest.send(open[7].1.header(op::RST), &[]);
    guest.send(one_more.header(op::REQUEST), &[]);
    guest.expect(op::RESPONSE);
}

/// Lifts the limit of open files, which is 1,024 in many a shell, to the most that is allowed.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(Resource::Nofile, raised).unwrap();
}

#[test]
fn two_thousand_connections_at_once() {
    const COUNT: usize = 2000;
    raise_descriptor_limit();
    let mut guest = Guest::new(&[]);
    let mut open = Vec::new();
    for port in 0..COUNT as u32 {
        open.push(guest.connected(port, 4096));
    }
    assert_eq!(guest.counter("connections"), COUNT as u64);
    for (client, peer) in &mut open {
        let name = format!("I am {}", peer.guest_port);
        client.write_all(name.as_bytes()).unwrap();
    }
    let mut heard = 0;
    while heard < COUNT {
        let (header, payload) = guest.expect(op::RW);
        assert_eq!(payload, format!("I am {}", header.dst_port).as_bytes());
        let peer = open[header.dst_port as usize].1;
        guest.send(peer.header(op::RW), &payload);
        heard += 1;
    }
    for (client, peer) in &mut open {
        let answer = format!("I am {}", peer.guest_port);
        assert_eq!(read_exactly(client, answer.len()), answer.as_bytes());
    }
    let peers: Vec<Peer> = open.into_iter().map(|(_, peer)| peer).collect();
    for _ in 0..COUNT {
        let (header, _) = guest.expect(op::SHUTDOWN);
        let peer = peers[header.dst_port as usize];
        guest.send(peer.header(op::RST), &[]);
    }
    guest.wait_counter("connections", 0);
}
