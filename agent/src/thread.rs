//! Threads for calls that a container can keep waiting, uninterruptibly and for as long as it likes:
//! the agent's main thread must go on to answer. Called by [`crate::server`] and [`crate::pipe`].
//!
//! The agent forks beside them. A child does nothing but system calls until it executes a program
//! ([`crate::launch`]), so it does not matter what lock of the C library one of them held.
#![forbid(unsafe_code)]

use std::io;
use std::thread::Builder;

use tokio::sync::oneshot;

/// Stack of a thread, in bytes.
const STACK_BYTES: usize = 64 * 1024;

/// Does `work` on a thread of its own, called `name` in the guest's `/proc`, and waits for the result.
///
/// # Errors
/// When there can be no further thread.
pub async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, result) = oneshot::channel();
    Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Whoever waited may be gone.
            let _ = sender.send(work());
        })?;
    result.await.map_err(io::Error::other)
}
