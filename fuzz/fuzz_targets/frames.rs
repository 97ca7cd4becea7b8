//! Bytes from the other side of a wire: the guest's agent, the runtime, the VMM.
//!
//! Whatever they are, decoding ends in a value or an error. A value survives being sent on.

#![no_main]

use std::fmt::Debug;

use lazaret_protocol::{agent, frame, vm};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// Reads a frame of one type, as its receiver would.
fn receive<T: Serialize + DeserializeOwned + Debug + PartialEq>(mut bytes: &[u8]) {
    let Ok(value) = frame::read::<T>(&mut bytes) else {
        return;
    };
    let encoded = frame::encode(&value).expect("what came in one frame goes into one");
    let again: T = frame::read(&mut encoded.as_slice()).expect("what was encoded decodes");
    assert_eq!(value, again);
}

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    // The length is the first thing a mutation breaks, and is not what takes the longest to get right.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    let whole = [&length[..], bytes].concat();
    let bytes = if kind & 0x80 == 0 { &whole } else { bytes };
    match kind & 0x7f {
        0 => receive::<agent::Request>(bytes),
        1 => receive::<agent::Answer>(bytes),
        2 => receive::<agent::Ready>(bytes),
        3 => receive::<vm::Launch>(bytes),
        4 => receive::<vm::ControlRequest>(bytes),
        5 => receive::<vm::ControlAnswer>(bytes),
        _ => {}
    }
});
