//! Signals as data: blocked, and read from a descriptor one after the other. Called by the session
//! and by the foreground of `run`.

use std::{io, os::fd::OwnedFd};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};

/// Bytes of one `struct signalfd_siginfo` (`signalfd(2)`), whose first field is the number.
const INFO_BYTES: usize = 128;

/// Blocks all signals, so that they wait to be read. Called before the process they are meant for
/// exists, or one that comes early would end us without it.
pub(crate) fn block() {
    // Fails for an invalid set only.
    let _ = SigSet::all().thread_block();
}

/// A descriptor that all blocked signals are read from, without waiting.
///
/// # Errors
/// As `signalfd(2)`.
pub(crate) fn open() -> io::Result<OwnedFd> {
    open_set(&SigSet::all(), SfdFlags::SFD_NONBLOCK)
}

/// The same, but reading waits.
///
/// # Errors
/// As `signalfd(2)`.
pub(crate) fn open_waiting() -> io::Result<OwnedFd> {
    open_set(&SigSet::all(), SfdFlags::empty())
}

/// A descriptor for the signals with which a person or a supervisor ends a program; others wait
/// on.
///
/// # Errors
/// As `signalfd(2)`.
pub(crate) fn open_interrupts() -> io::Result<OwnedFd> {
    let ends = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ];
    open_set(&ends.into_iter().collect(), SfdFlags::SFD_NONBLOCK)
}

fn open_set(set: &SigSet, flags: SfdFlags) -> io::Result<OwnedFd> {
    Ok(SignalFd::with_flags(set, flags | SfdFlags::SFD_CLOEXEC)?.into())
}

/// Number of the next signal.
///
/// # Errors
/// As `read(2)`; `WouldBlock` when there is none on a non-blocking descriptor.
pub(crate) fn next(signals: &OwnedFd) -> io::Result<i32> {
    let mut info = [0_u8; INFO_BYTES];
    rustix::io::read(signals, &mut info)?;
    let [a, b, c, d, ..] = info;
    Ok(i32::from_ne_bytes([a, b, c, d]))
}
