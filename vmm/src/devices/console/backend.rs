//! Where output goes: the ring, and the file if there is one.

use std::{
    fs::File,
    io::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ring::Ring;

/// What is written to the file at a time: a pipe that is writable takes this much at once
/// (`PIPE_BUF`, pipe(7)).
pub(super) const CHUNK_BYTES: usize = 4096;

const AT_ONCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// Shared by the device and its worker.
#[derive(Debug)]
pub(super) struct Output {
    ring: Mutex<Ring>,
    file: Option<File>,
    pub(super) bytes: AtomicU64,
    pub(super) dropped_bytes: AtomicU64,
}

impl Output {
    pub(super) fn new(ring_bytes: usize, file: Option<File>) -> Self {
        Self {
            ring: Mutex::new(Ring::new(ring_bytes)),
            file,
            bytes: AtomicU64::new(0),
            dropped_bytes: AtomicU64::new(0),
        }
    }

    /// Takes at most [`CHUNK_BYTES`] of output. Never waits: what a full pipe does not take is
    /// dropped and counted, or the guest's console would stop with the pipe's reader.
    pub(super) fn write(&self, chunk: &[u8]) {
        let count = |counter: &AtomicU64| counter.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        count(&self.bytes);
        self.ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(chunk);
        let Some(mut file) = self.file.as_ref() else {
            return;
        };
        let mut ready = [PollFd::new(&file, PollFlags::OUT)];
        let writable = poll(&mut ready, Some(&AT_ONCE)) == Ok(1)
            && ready[0].revents().contains(PollFlags::OUT);
        if !writable || file.write_all(chunk).is_err() {
            count(&self.dropped_bytes);
        }
    }

    pub(super) fn content(&self) -> Vec<u8> {
        self.ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .content()
    }

    /// Takes over saved content.
    pub(super) fn restore(&self, content: &[u8]) {
        self.ring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(content);
    }
}
