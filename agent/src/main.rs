//! The program: PID 1 of the guest, or with [`ARGUMENT`] the child that sets a container up.
//!
//! It has the C library's `main` and not Rust's, whose start-up reads `/proc/self/maps` and aborts
//! where neither a console nor `/dev/null` exists, as in a guest that has just booted.
#![no_main]

use std::ffi::{c_char, c_int};
use std::io::Write;

use lazaret_agent::instructions::ARGUMENT;
use lazaret_agent::{errno, guest, init, server, sys};

/// Entry point, called by the C library.
// SAFETY: the C library calls the symbol `main` with this signature, and no other crate defines it.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == ARGUMENT)
        && let Some(channel) = arguments.next()
        && let Some(channel) = channel.to_str().and_then(|number| number.parse().ok())
    {
        // SAFETY: who starts the binary with this argument, the agent, has placed the descriptor
        // under this number; no other code has run that could have taken it.
        unsafe { init::main(channel) };
    }
    if std::process::id() != 1 {
        log("lazaret-agent is PID 1 of a Lazaret guest and does nothing elsewhere");
        return 1;
    }
    let started_us = guest::clock_us();
    std::panic::set_hook(Box::new(|panic| {
        log(&format!("agent panicked: {panic}"));
        // The end of PID 1 is the end of the guest, and the kernel says so to the host.
        sys::exit_now(1)
    }));
    sys::ignore_broken_pipes(true);
    let served = guest::prepare(started_us)
        .map_err(|error| errno::chain(&error))
        .and_then(|(listener, environment, share)| {
            server::serve(listener, environment, share).map_err(|error| errno::chain(&error))
        });
    if let Err(error) = served {
        log(&error);
    }
    1
}

/// One line to the kernel's log, or to standard error where that is not to be had.
fn log(line: &str) {
    let kernel = std::fs::OpenOptions::new().write(true).open("/dev/kmsg");
    let line = format!("lazaret-agent: {line}\n");
    // There is nobody to tell that telling failed.
    let _ = match kernel {
        Ok(mut kernel) if std::process::id() == 1 => kernel.write_all(line.as_bytes()),
        _ => std::io::stderr().write_all(line.as_bytes()),
    };
}
