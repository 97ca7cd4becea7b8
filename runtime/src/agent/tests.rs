//! The handshake is taken off exactly, whatever the pieces it arrives in.

use std::{io::Read as _, thread};

use lazaret_protocol::agent::FailureKind;

use super::*;

/// Serves one connection: reads the request, sends `pieces` one after the other, then closes.
fn served(pieces: Vec<Vec<u8>>) -> Result<(Answer, Vec<u8>), AgentError> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        for piece in pieces {
            theirs.write_all(&piece).unwrap();
            thread::yield_now();
        }
    });
    let result = Call { stream: ours }.finish();
    server.join().unwrap();
    let (answer, mut stream) = result?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    Ok((answer, rest))
}

fn reply(reply: Reply) -> Vec<u8> {
    frame::encode(&reply).unwrap()
}

#[test]
fn what_follows_the_answer_stays_on_the_stream() {
    let mut all = b"OK 1073741824\n".to_vec();
    all.extend(reply(Ok(Answer::Done)));
    all.extend(b"output");
    let (answer, rest) = served(vec![all.clone()]).unwrap();
    assert_eq!(
        (answer, rest.as_slice()),
        (Answer::Done, b"output".as_slice())
    );
    let bytes = all.iter().map(|&byte| vec![byte]).collect();
    let (answer, rest) = served(bytes).unwrap();
    assert_eq!(
        (answer, rest.as_slice()),
        (Answer::Done, b"output".as_slice())
    );
}

#[test]
fn a_refusal_is_the_agents_own_words() {
    let failure = Failure {
        kind: FailureKind::State,
        message: "container a is stopped".to_owned(),
    };
    let error = served(vec![b"OK 1\n".to_vec(), reply(Err(failure))]).unwrap_err();
    assert_eq!(error.to_string(), "container a is stopped");
}

#[test]
fn a_device_that_hangs_up_or_talks_nonsense_is_told_apart_from_the_agent() {
    for pieces in [
        vec![],
        vec![b"OK 1".to_vec()],
        vec![b"NO\n".to_vec()],
        vec![b"OK x\n".to_vec()],
        vec![vec![b'O'; 100]],
    ] {
        assert!(matches!(served(pieces), Err(AgentError::Handshake(_))));
    }
    let cut = vec![b"OK 1\n".to_vec(), reply(Ok(Answer::Done))[..3].to_vec()];
    assert!(matches!(
        served(cut),
        Err(AgentError::Frame(FrameError::Closed))
    ));
}

#[test]
fn a_guest_that_does_not_even_take_the_call_is_left_when_told() {
    for said in [&b""[..], b"OK 1\n"] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        let (interrupt, caller) = io::pipe().unwrap();
        drop(caller);
        let result = Call { stream: ours }.finish_late(&[interrupt.as_fd()]);
        assert!(matches!(result, Err(AgentError::Interrupted)));
    }
}
