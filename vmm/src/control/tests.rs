//! The server with a VM on `/dev/kvm`, and clients that behave, dawdle or lie.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    thread,
    time::Duration,
};

use lazaret_protocol::{
    frame,
    vm::{ConsoleConfig, ControlAnswer, ControlReply, ControlRequest, DeviceConfig, ExitReason},
};

use super::{CONNECTIONS_MAX, Server};
use crate::vm::tests::guest::{self, Step};

/// A client waits this long for an answer before the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

struct Bench {
    server: thread::JoinHandle<ExitReason>,
    launch: UnixStream,
    folder: tempfile::TempDir,
}

impl Bench {
    /// A VM that spins for ever.
    fn new(devices: Vec<DeviceConfig>) -> Self {
        let kernel = guest::script(&[Step::SpinUntil(0x20_0000, 1)]);
        let mut vm = guest::boot(kernel, devices).unwrap();
        vm.resume().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("control")).unwrap();
        let (launch, theirs) = UnixStream::pair().unwrap();
        launch.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut server = Server::new(vm, theirs, Some(listener)).unwrap();
        Self {
            server: thread::spawn(move || server.run()),
            launch,
            folder,
        }
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("control")).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Closes the launch socket.
    fn end(self) -> ExitReason {
        drop(self.launch);
        self.server.join().unwrap()
    }
}

fn ask(mut socket: &UnixStream, request: &ControlRequest) -> ControlReply {
    frame::write(&mut socket, request).unwrap();
    frame::read(&mut socket).unwrap()
}

fn paused(socket: &UnixStream) -> bool {
    match ask(socket, &ControlRequest::Describe) {
        Ok(ControlAnswer::Description(description)) => description.paused,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_sockets_serve_requests() {
    let bench = Bench::new(vec![DeviceConfig::Rng]);
    let client = bench.client();
    assert!(!paused(&bench.launch));
    assert_eq!(
        ask(&client, &ControlRequest::Pause),
        Ok(ControlAnswer::Done)
    );
    assert!(paused(&bench.launch));
    // Twice is as good as once.
    assert_eq!(
        ask(&client, &ControlRequest::Pause),
        Ok(ControlAnswer::Done)
    );
    assert_eq!(
        ask(&bench.launch, &ControlRequest::Resume),
        Ok(ControlAnswer::Done)
    );
    assert!(!paused(&client));
    let Ok(ControlAnswer::Description(description)) = ask(&client, &ControlRequest::Describe)
    else {
        panic!("no description");
    };
    assert_eq!(description.name, "test");
    assert_eq!(description.vcpus, 1);
    assert_eq!(
        description.devices,
        [(0, "rng".to_owned(), "reset".to_owned())]
    );
    let Ok(ControlAnswer::Counters(counters)) = ask(&client, &ControlRequest::Counters) else {
        panic!("no counters");
    };
    assert!(counters.is_sorted());
    assert!(counters.iter().any(|(name, _)| name == "rng.0.bytes"));
    assert!(ask(&client, &ControlRequest::Console).is_err());
    assert!(ask(&client, &ControlRequest::Detach { slot: 1 }).is_err());
    assert_eq!(bench.end(), ExitReason::Shutdown);
}

#[test]
fn a_console_is_read_even_if_empty() {
    let console = DeviceConfig::Console(ConsoleConfig {
        ring_bytes: 4096,
        output: None,
    });
    let bench = Bench::new(vec![console]);
    assert_eq!(
        ask(&bench.client(), &ControlRequest::Console),
        Ok(ControlAnswer::Console(Vec::new()))
    );
    assert_eq!(bench.end(), ExitReason::Shutdown);
}

#[test]
fn shutdown_is_answered_and_done() {
    for from_launch in [true, false] {
        let bench = Bench::new(Vec::new());
        let client = bench.client();
        let socket = if from_launch { &bench.launch } else { &client };
        assert_eq!(
            ask(socket, &ControlRequest::Shutdown),
            Ok(ControlAnswer::Done)
        );
        assert_eq!(bench.server.join().unwrap(), ExitReason::Shutdown);
    }
}

#[test]
fn several_requests_at_once_are_answered_in_order() {
    let bench = Bench::new(Vec::new());
    let mut client = bench.client();
    let mut requests = frame::encode(&ControlRequest::Pause).unwrap();
    requests.extend(frame::encode(&ControlRequest::Describe).unwrap());
    requests.extend(frame::encode(&ControlRequest::Resume).unwrap());
    client.write_all(&requests).unwrap();
    let mut reply = || frame::read::<ControlReply>(&mut client).unwrap().unwrap();
    assert_eq!(reply(), ControlAnswer::Done);
    assert!(matches!(reply(), ControlAnswer::Description(description) if description.paused));
    assert_eq!(reply(), ControlAnswer::Done);
    assert_eq!(bench.end(), ExitReason::Shutdown);
}

#[test]
fn dawdlers_and_liars_block_nobody() {
    let bench = Bench::new(Vec::new());
    // Half a frame.
    let mut half = bench.client();
    half.write_all(&[0, 0]).unwrap();
    // More than a frame may have; no request; garbage after a request.
    let lies: [&[u8]; 3] = [&[0xff; 4], &[0, 0, 0, 1, 99], &[0, 0, 0, 2, 0, 0]];
    for lie in lies {
        let mut liar = bench.client();
        liar.write_all(lie).unwrap();
        assert_eq!(liar.read(&mut [0; 16]).unwrap_or(0), 0, "{lie:?}");
    }
    // One that asks without end and never reads.
    let deaf = bench.client();
    deaf.set_nonblocking(true).unwrap();
    let request = frame::encode(&ControlRequest::Counters).unwrap();
    for _ in 0..100_000 {
        if (&deaf).write(&request).is_err() {
            break;
        }
    }
    assert!(!paused(&bench.client()));
    assert!(!paused(&bench.launch));
    // The one with half a frame is still welcome.
    half.write_all(&[0, 1, 0]).unwrap();
    assert!(frame::read::<ControlReply>(&mut half).unwrap().is_ok());
    assert_eq!(bench.end(), ExitReason::Shutdown);
}

#[test]
fn silent_connections_do_not_shut_others_out() {
    let bench = Bench::new(Vec::new());
    let first = bench.client();
    assert!(!paused(&first));
    let silent: Vec<_> = (0..2 * CONNECTIONS_MAX).map(|_| bench.client()).collect();
    assert!(!paused(&bench.client()));
    // The oldest of them made room; the launch socket never does.
    assert_eq!((&first).read(&mut [0; 1]).unwrap(), 0);
    assert!(!paused(silent.last().unwrap()));
    assert!(!paused(&bench.launch));
    assert_eq!(bench.end(), ExitReason::Shutdown);
}

#[test]
fn the_vm_lives_as_long_as_its_last_lifeline() {
    let bench = Bench::new(Vec::new());
    let first = bench.client();
    assert_eq!(ask(&first, &ControlRequest::Hold), Ok(ControlAnswer::Done));
    let second = bench.client();
    for _ in 0..2 {
        // Twice is as good as once.
        assert_eq!(ask(&second, &ControlRequest::Hold), Ok(ControlAnswer::Done));
    }
    drop(bench.launch);
    drop(first);
    assert!(!paused(&second));
    // Who only asks does not hold.
    let client = UnixStream::connect(bench.folder.path().join("control")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!paused(&client));
    drop(second);
    assert_eq!(bench.server.join().unwrap(), ExitReason::Shutdown);
}

#[test]
fn lifelines_are_not_closed_for_new_connections() {
    let bench = Bench::new(Vec::new());
    let lifelines: Vec<_> = (0..CONNECTIONS_MAX + 1).map(|_| bench.client()).collect();
    for lifeline in &lifelines {
        assert_eq!(
            ask(lifeline, &ControlRequest::Hold),
            Ok(ControlAnswer::Done)
        );
    }
    for _ in 0..2 * CONNECTIONS_MAX {
        assert!(!paused(&bench.client()));
    }
    let silent: Vec<_> = (0..2 * CONNECTIONS_MAX).map(|_| bench.client()).collect();
    assert!(!paused(silent.last().unwrap()));
    for lifeline in &lifelines {
        assert!(!paused(lifeline));
    }
    drop(lifelines);
    assert_eq!(bench.end(), ExitReason::Shutdown);
}

#[test]
fn the_guest_ends_the_server_too() {
    let mut vm = guest::boot(guest::script(&[]), Vec::new()).unwrap();
    vm.resume().unwrap();
    let (_launch, theirs) = UnixStream::pair().unwrap();
    let mut server = Server::new(vm, theirs, None).unwrap();
    assert_eq!(server.run(), ExitReason::Reset);
}
