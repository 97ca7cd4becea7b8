//! The transmit queue: each chain is output.

use std::sync::Arc;

use vm_memory::{Address, Bytes};

use super::backend::{CHUNK_BYTES, Output};
use crate::devices::serve::{BrokenQueue, Handler, Request};

/// Hands output on.
#[derive(Debug)]
pub(super) struct Transmit(pub(super) Arc<Output>);

impl Handler for Transmit {
    fn handle(&mut self, request: &Request<'_>) -> Result<u32, BrokenQueue> {
        let mut chunk = [0; CHUNK_BYTES];
        for segment in request.segments.iter().filter(|segment| !segment.writable) {
            let mut address = segment.address;
            let mut left = segment.bytes as usize;
            while left > 0 {
                let part = &mut chunk[..left.min(CHUNK_BYTES)];
                let past = BrokenQueue::Address {
                    address: address.raw_value(),
                    bytes: segment.bytes,
                };
                if request.memory.read_slice(part, address).is_err() {
                    return Err(past);
                }
                self.0.write(part);
                left -= part.len();
                // The segment was checked to lie in guest memory.
                address = address.checked_add(part.len() as u64).ok_or(past)?;
            }
        }
        Ok(0)
    }
}
