//! Random messages: whatever a guest sends is answered or refused, and nothing panics.

use fuse_backend_rs::abi::fuse_abi::{FsOptions, ROOT_ID};
use proptest::prelude::*;

use super::client::Client;

fn message() -> impl Strategy<Value = (u32, u64, Vec<u8>, u32)> {
    let body = prop::collection::vec(
        prop_oneof![Just(0_u8), Just(1), Just(b'a'), Just(b'/'), any::<u8>()],
        0..200,
    );
    let silent = [2, 36, 42];
    let opcode = (0_u32..54).prop_filter("has an answer", move |code| !silent.contains(code));
    (
        opcode,
        prop_oneof![Just(ROOT_ID), 0..6_u64],
        body,
        0..600_u32,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn random_messages_do_no_harm(messages in prop::collection::vec(message(), 1..40)) {
        let mut client = Client::new();
        for (opcode, node, body, room) in messages {
            let header = client.header(opcode, node, body.len());
            let _ = client.send(&header, &body, room);
        }
        prop_assert!(!client.driver.interrupt.needs_reset());
        client.init(FsOptions::all()).unwrap();
        client.getattr(ROOT_ID).unwrap();
    }
}
