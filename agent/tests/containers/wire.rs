//! What does not fit on the wire.

use lazaret_protocol::VERSION;
use lazaret_protocol::agent::{Answer, FailureKind, Reply, Request, StdStream};
use lazaret_protocol::frame;

use crate::harness::{Agent, exec, init, shell};

#[test]
fn hello_checks_the_version() {
    let agent = Agent::start();
    match agent.call(&Request::Hello { version: VERSION }) {
        Ok(Answer::Hello {
            version,
            kernel_release,
        }) => {
            assert_eq!(version, VERSION);
            assert!(kernel_release.starts_with(|first: char| first.is_ascii_digit()));
        }
        other => panic!("{other:?}"),
    }
    let failure = agent.fails(&Request::Hello {
        version: VERSION + 1,
    });
    assert_eq!(failure.kind, FailureKind::Version);
}

#[test]
fn malformed_frames_are_refused_and_harmless() {
    let agent = Agent::start();
    for bytes in [
        &b"\0\0\0\x02\xff\xff"[..],
        b"\xff\xff\xff\xff",
        b"\0\0\0\x03\0\x01\0",
    ] {
        let mut stream = agent.connect();
        std::io::Write::write_all(&mut stream, bytes).unwrap();
        let reply: Reply = frame::read(&mut stream).unwrap();
        assert_eq!(reply.unwrap_err().kind, FailureKind::Invalid);
    }
    // Half a frame, and none.
    std::io::Write::write_all(&mut agent.connect(), b"\0\0").unwrap();
    drop(agent.connect());
    assert!(agent.call(&Request::Hello { version: VERSION }).is_ok());
}

#[test]
fn unknown_names_are_not_found() {
    let agent = Agent::start();
    for request in [
        Request::StartContainer {
            container: "c".to_owned(),
        },
        Request::Wait { process: init("c") },
        Request::Stream {
            process: init("c"),
            stream: StdStream::Stdout,
        },
        Request::Exec {
            process: exec("c", "e"),
            spec: Box::new(shell("exit")),
            cgroup: String::new(),
            ignore_paused: false,
        },
    ] {
        let failure = agent.fails(&request);
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert_eq!(failure.message, "container \"c\" does not exist");
    }
}
