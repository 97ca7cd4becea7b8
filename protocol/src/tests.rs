//! Frames are bounded, exact and reversible.

use proptest::prelude::*;

use crate::{
    agent::{ExitStatus, ProcessRef, Request},
    frame::{self, FrameError, HEADER_BYTES, PAYLOAD_MAX_BYTES},
    vm::ExitReason,
};

fn signal(container: String, exec: Option<String>, signal: i32) -> Request {
    Request::Signal {
        process: ProcessRef { container, exec },
        signal,
        all: false,
    }
}

proptest! {
    #[test]
    fn a_frame_carries_its_value(container in ".*", exec in proptest::option::of(".*"), number: i32) {
        let request = signal(container, exec, number);
        let bytes = frame::encode(&request).unwrap();
        prop_assert_eq!(frame::read::<Request>(&mut bytes.as_slice()).unwrap(), request);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = frame::read::<Request>(&mut bytes.as_slice());
        let _ = frame::decode::<Request>(&bytes);
    }

    #[test]
    fn every_truncation_is_reported(cut in 0_usize..100) {
        let bytes = frame::encode(&signal("c".repeat(100), None, 9)).unwrap();
        let error = frame::read::<Request>(&mut &bytes[..cut]).unwrap_err();
        prop_assert!(matches!(error, FrameError::Closed));
    }
}

#[test]
fn an_announced_length_past_the_maximum_is_refused() {
    let header = u32::try_from(PAYLOAD_MAX_BYTES + 1).unwrap().to_be_bytes();
    let error = frame::read::<Request>(&mut header.as_slice()).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { bytes } if bytes == PAYLOAD_MAX_BYTES + 1));
}

#[test]
fn a_value_past_the_maximum_is_not_sent() {
    let mut sent = Vec::new();
    let error =
        frame::write(&mut sent, &signal("c".repeat(PAYLOAD_MAX_BYTES), None, 9)).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { .. }));
    assert!(sent.is_empty());
}

#[test]
fn bytes_after_the_value_are_refused() {
    let bytes = frame::encode(&(ExitStatus::Exited(1), 7_u8)).unwrap();
    let error = frame::decode::<Request>(&bytes[HEADER_BYTES..]).unwrap_err();
    assert!(matches!(error, FrameError::TrailingBytes { bytes: 1 }));
}

#[test]
fn exit_codes_are_the_shells() {
    assert_eq!(ExitStatus::Exited(255).shell_code(), 255);
    assert_eq!(ExitStatus::Signaled(9).shell_code(), 137);
}

#[test]
fn exit_reasons_are_told_apart_by_code() {
    for reason in ExitReason::ALL {
        assert_eq!(ExitReason::from_code(reason.code().into()), Some(reason));
    }
    assert_eq!(ExitReason::from_code(101), None);
}
