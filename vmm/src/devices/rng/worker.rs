//! The queue: each chain is a request for random bytes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use vm_memory::{Address, Bytes};

use super::REQUEST_MAX_BYTES;
use crate::devices::serve::{BrokenQueue, Handler, Request};

/// Bytes fetched at a time: `getrandom` gives as many without being interrupted.
const CHUNK_BYTES: usize = 256;

/// Fills requests.
#[derive(Debug)]
pub(super) struct Fill(pub(super) Arc<AtomicU64>);

impl Handler for Fill {
    fn handle(&mut self, request: &Request<'_>) -> Result<u32, BrokenQueue> {
        let mut written = 0;
        for segment in request.segments.iter().filter(|segment| segment.writable) {
            let mut address = segment.address;
            let mut left = segment.bytes.min(REQUEST_MAX_BYTES - written);
            while left > 0 {
                let mut chunk = [0; CHUNK_BYTES];
                let part = &mut chunk[..CHUNK_BYTES.min(left as usize)];
                // The host has no randomness to give: the driver is told that it got less.
                if !fill(part) {
                    return Ok(written);
                }
                let past = BrokenQueue::Address {
                    address: address.raw_value(),
                    bytes: segment.bytes,
                };
                if request.memory.write_slice(part, address).is_err() {
                    return Err(past);
                }
                let bytes = u32::try_from(part.len()).expect("a chunk has 256 bytes at most");
                written += bytes;
                left -= bytes;
                address = address.checked_add(bytes.into()).ok_or(past)?;
            }
        }
        self.0.fetch_add(written.into(), Ordering::Relaxed);
        Ok(written)
    }
}

/// Fills `part`, which is short enough for one call.
fn fill(part: &mut [u8]) -> bool {
    // SAFETY: the pointer and length are those of a writable slice.
    let got = unsafe { libc::getrandom(part.as_mut_ptr().cast(), part.len(), 0) };
    usize::try_from(got) == Ok(part.len())
}
