//! Activation, pause, reset, saved state, configuration space and descriptors of a configuration.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixListener},
};

use lazaret_protocol::vm::{Fd, PortGrant, VsockConfig};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::super::{HOST_PORT_FIRST, Vsock, connection::SHUTDOWN_BOTH, packet::op};
use super::guest::{
    EVENT_IDX, GUEST_CID, Guest, Peer, QUIET, VERSION_1, expect_end, pattern, read_exactly,
};
use crate::{
    fds::{FdError, Fds},
    virtio::device::{ActivateError, RestoreError, VirtioDevice},
};

#[test]
fn configuration_space_is_the_context_id() {
    let guest = Guest::reset(&[]);
    let mut whole = [0xff; 12];
    guest.device.read_config(0, &mut whole);
    assert_eq!(whole, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut part = [0xff; 4];
    guest.device.read_config(4, &mut part);
    assert_eq!(part, [0; 4]);
    guest.device.read_config(u64::MAX, &mut part);
    assert_eq!(part, [0; 4]);
    assert_eq!(guest.device.device_type(), 19);
    assert_eq!(guest.device.features(), VERSION_1 | EVENT_IDX);
}

#[test]
fn missing_queues_are_refused() {
    let mut guest = Guest::reset(&[]);
    for missing in [0, 1] {
        let mut activation = guest.driver.activation(VERSION_1);
        activation.queues.remove(missing);
        let error = guest.device.activate(activation).unwrap_err();
        assert!(
            matches!(error, ActivateError::MissingQueue { index } if usize::from(index) == missing)
        );
    }
    let mut activation = guest.driver.activation(VERSION_1);
    activation.queues.pop();
    guest.device.activate(activation).unwrap();
    assert_eq!(guest.device.pause().len(), 2);
}

/// The kernel may have no descriptor or memory for a client, and no event says when it has again.
#[test]
fn a_listener_that_fails_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let mut guest = Guest::with_listener(socket.try_clone().unwrap(), path);
    guest.activate(VERSION_1);
    // Until now it does not listen, so accepting from it fails.
    std::thread::sleep(QUIET);
    rustix::net::listen(&socket, 1).unwrap();
    guest.connected(1, 1000);
}

#[test]
fn reset_drops_connections_and_the_next_driver_starts_afresh() {
    let mut guest = Guest::new(&[1025]);
    let (mut client, _) = guest.connected(1, 1000);
    let (mut host, _) = guest.dialled(1025, 5, 1000);
    let mut asking = guest.client();
    asking.write_all(b"CONN").unwrap();
    guest.device.reset();
    expect_end(&mut client);
    expect_end(&mut host);
    assert_eq!(guest.counter("connections"), 0);
    let waiting = guest.client_for(4);
    guest.restart();
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.dst_port, 4);
    drop(waiting);
}

#[test]
fn pause_in_the_middle_of_a_transfer_loses_nothing() {
    const TOTAL: usize = 4 << 20;
    let mut guest = Guest::new(&[]);
    let (mut client, mut peer) = guest.connected(1, 64 << 10);
    let mut echo = client.try_clone().unwrap();
    let writer = std::thread::spawn(move || client.write_all(&pattern(0, TOTAL)).unwrap());
    let mut got = 0;
    let mut packets = 0;
    while got < TOTAL {
        let (header, payload) = guest.receive();
        if header.op == op::RW {
            assert_eq!(payload, pattern(got, payload.len()));
            got += payload.len();
            peer.taken = got as u32;
        }
        guest.send(peer.header(op::CREDIT_UPDATE), &[]);
        packets += 1;
        if packets % 100 == 0 {
            let queues = guest.device.pause();
            assert_eq!(queues.len(), 3);
            assert!(guest.device.pause().is_empty());
            guest.poll();
            guest.resume(queues);
        }
    }
    writer.join().unwrap();
    let queues = guest.device.pause();
    guest.send(peer.header(op::RW), b"while paused");
    guest.resume(queues);
    assert_eq!(read_exactly(&mut echo, 12), b"while paused");
}

#[test]
fn events_that_come_with_the_stop_are_not_forgotten() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 200;
    let mut guest = Guest::new(&[]);
    let open: Vec<_> = (0..CLIENTS as u32)
        .map(|port| guest.connected(port, 1 << 20))
        .collect();
    let (clients, peers): (Vec<_>, Vec<_>) = open.into_iter().unzip();
    // Whoever is not heard once stays silent for good.
    let threads = clients.into_iter().map(|mut client| {
        std::thread::spawn(move || {
            for _ in 0..ROUNDS {
                client.write_all(b"x").unwrap();
                assert_eq!(read_exactly(&mut client, 1), b"x");
            }
            client
        })
    });
    let threads: Vec<_> = threads.collect();
    for _ in 0..CLIENTS * ROUNDS {
        let (header, payload) = guest.expect(op::RW);
        let peer = peers[header.dst_port as usize];
        guest.send(peer.header(op::RW), &payload);
        let queues = guest.device.pause();
        guest.resume(queues);
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn client_that_leaves_during_a_pause_is_noticed() {
    let mut guest = Guest::new(&[]);
    let (client, _) = guest.connected(1, 1000);
    let queues = guest.device.pause();
    drop(client);
    guest.resume(queues);
    guest.expect(op::SHUTDOWN);
}

#[test]
fn restored_device_announces_the_reset_of_the_transport() {
    let mut source = Guest::new(&[]);
    let _connected = source.connected(1, 1000);
    source.device.pause();
    let state = source.device.save();

    let mut guest = Guest::reset(&[]);
    guest.device.restore(&state).unwrap();
    let events = guest.offer_events(2);
    guest.activate(VERSION_1);
    assert_eq!(guest.driver.wait_used(2, 1)[0].1, 4);
    assert_eq!(guest.driver.content(events[0]), [0; 4]);
    assert_eq!(guest.driver.content(events[1]), [0xff; 4]);
    let _client = guest.client_for(9);
    let (request, _) = guest.expect(op::REQUEST);
    assert_eq!(request.src_port, HOST_PORT_FIRST + 1, "ports go on");
}

#[test]
fn announcement_waits_for_an_event_buffer_and_survives_another_save() {
    let mut source = Guest::new(&[]);
    source.device.pause();
    let state = source.device.save();
    let mut guest = Guest::reset(&[]);
    guest.device.restore(&state).unwrap();
    assert_eq!(guest.device.save(), state);
    guest.activate(VERSION_1);
    let queues = guest.device.pause();
    guest.resume(queues);
    let events = guest.offer_events(1);
    guest.driver.wait_used(2, 1);
    assert_eq!(guest.driver.content(events[0]), [0; 4]);
}

#[test]
fn device_no_driver_used_has_nothing_to_announce() {
    let source = Guest::reset(&[]);
    let state = source.device.save();
    let mut guest = Guest::reset(&[]);
    guest.device.restore(&state).unwrap();
    guest.offer_events(1);
    guest.activate(VERSION_1);
    let _client = guest.client_for(1);
    guest.expect(op::REQUEST);
    assert!(guest.driver.rings[2].take_used().is_empty());
}

#[test]
fn malformed_states_are_refused() {
    let mut guest = Guest::reset(&[]);
    let error = guest.device.restore(&[1]).unwrap_err();
    assert!(matches!(error, RestoreError::Malformed(_)));
    let error = guest.device.restore(&[1, 5]).unwrap_err();
    assert!(matches!(error, RestoreError::Mismatch { .. }));
}

#[test]
fn takes_its_descriptors_from_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("v")).unwrap();
    let other = UnixListener::bind(directory.path().join("w")).unwrap();
    let mut fds = Fds::new(vec![OwnedFd::from(listener), OwnedFd::from(other)]);
    let mut config = VsockConfig {
        guest_cid: GUEST_CID,
        listener: Fd(0),
        grants: vec![PortGrant {
            port: 1025,
            acceptor: Fd(1),
        }],
    };
    Vsock::from_config(&config, &mut fds).unwrap();
    assert_eq!(fds.unused(), 0);
    config.grants.clear();
    let error = Vsock::from_config(&config, &mut fds).unwrap_err();
    assert!(matches!(error, FdError::Taken { index: 0, .. }));
}

#[test]
fn device_that_waits_does_nothing() {
    let mut guest = Guest::new(&[]);
    let (_client, peer) = guest.connected(1, 1000);
    guest.send(peer.header(op::RW), b"something unread");
    let _slow = guest.client();
    std::thread::sleep(QUIET);
    let before = guest.counter("wake_ups");
    std::thread::sleep(QUIET * 5);
    assert_eq!(guest.counter("wake_ups"), before);
}

#[test]
fn call_takes_few_wake_ups() {
    let mut guest = Guest::new(&[]);
    std::thread::sleep(QUIET);
    let before = guest.counter("wake_ups");
    let mut client = guest.client();
    client.write_all(b"CONNECT 1\nthe request").unwrap();
    let (request, _) = guest.expect(op::REQUEST);
    let peer = Peer::of(&request, 1000);
    guest.send(peer.header(op::RESPONSE), &[]);
    guest.expect(op::RW);
    guest.send(peer.header(op::RW), b"the reply");
    guest.send(peer.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(op::RST);
    let mut reply = String::new();
    client.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with("the reply"));
    std::thread::sleep(QUIET);
    // The client, its request, RESPONSE, two packets, and the rx buffers' return at most once each.
    let wake_ups = guest.counter("wake_ups") - before;
    assert!(wake_ups <= 10, "{wake_ups} wake-ups");
}
