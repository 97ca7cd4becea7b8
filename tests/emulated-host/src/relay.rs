//! Copies one stream to another in a thread and counts, for launcher and guest alike.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// Most bytes moved at once: a pipe's default capacity.
const CHUNK_BYTES: usize = 64 * 1024;

/// How far a relay has come.
#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    bytes: u64,
    ended: bool,
    broken: bool,
}

/// A thread that copies until its source ends.
#[derive(Debug)]
pub(crate) struct Relay {
    state: Arc<(Mutex<Progress>, Condvar)>,
}

impl Relay {
    /// Starts copying `from` to `to`. `when_over` gets the destination back and whether it broke
    /// (its reader went away), when no more will be copied.
    pub(crate) fn start(
        mut from: File,
        mut to: File,
        when_over: impl FnOnce(File, bool) + Send + 'static,
    ) -> Self {
        let state = Arc::new((Mutex::new(Progress::default()), Condvar::new()));
        let relay = Self {
            state: Arc::clone(&state),
        };
        thread::spawn(move || {
            let broken = copy(&mut from, &mut to, |count| {
                update(&state, |progress| progress.bytes += count);
            });
            update(&state, |progress| {
                progress.broken = broken;
                progress.ended = true;
            });
            when_over(to, broken);
        });
        relay
    }

    /// Waits until `bytes` have been copied, or nothing more will be.
    pub(crate) fn wait_for_bytes(&self, bytes: u64) {
        self.wait(|progress| progress.ended || progress.bytes >= bytes);
    }

    /// Waits for the end of the source. Returns how many bytes were copied.
    pub(crate) fn wait_for_end(&self) -> u64 {
        self.wait(|progress| progress.ended).bytes
    }

    /// Whether the destination's reader went away.
    pub(crate) fn is_broken(&self) -> bool {
        self.wait(|_| true).broken
    }

    fn wait(&self, done: impl Fn(&Progress) -> bool) -> Progress {
        let (lock, changed) = &*self.state;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        *changed
            .wait_while(guard, |progress| !done(progress))
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn update(state: &(Mutex<Progress>, Condvar), change: impl FnOnce(&mut Progress)) {
    change(&mut state.0.lock().unwrap_or_else(PoisonError::into_inner));
    state.1.notify_all();
}

/// Copies until the source ends or fails; true if it was the destination that failed.
fn copy(from: &mut File, to: &mut File, mut copied: impl FnMut(u64)) -> bool {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A pty's master fails with EIO when its last slave is closed: that is its end.
            Err(_) => return false,
        };
        if to.write_all(&buffer[..count]).is_err() {
            return true;
        }
        copied(count as u64);
    }
}
