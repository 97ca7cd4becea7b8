//! Guest side of the cases that ask what becomes of a single system call.

use std::{
    io::Write as _,
    sync::atomic::{AtomicI32, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};
use serde_json::json;

/// How often `SIGSYS` came.
static TRAPPED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note_trap(_: i32) {
    TRAPPED.fetch_add(1, Ordering::Relaxed);
}

/// Makes the system call whose number and arguments are given, all decimal, and prints what came
/// of it: the result, or the error number as a negative one. `32:` before the number makes it the
/// call of a 32-bit program.
pub(super) fn call(arguments: &[String]) -> Result<u8> {
    let result = make_call(arguments)?;
    let trapped = TRAPPED.load(Ordering::Relaxed) != 0;
    println!("{}", json!({ "result": result, "trapped": trapped }));
    Ok(0)
}

fn make_call(arguments: &[String]) -> Result<i64> {
    let (first, rest) = arguments.split_first().context("no call given")?;
    let mut words = [0_u64; 6];
    for (word, text) in words.iter_mut().zip(rest) {
        *word = text.parse().context("an argument")?;
    }
    if std::env::var_os("TRAP").is_some() {
        let action = SigAction::new(
            SigHandler::Handler(note_trap),
            SaFlags::empty(),
            SigSet::empty(),
        );
        install(&action)?;
    }
    match first.strip_prefix("32:") {
        Some(number) => Ok(i64::from(call_32(number.parse()?))),
        None => Ok(call_64(first.parse()?, words)),
    }
}

#[allow(unsafe_code, reason = "handlers run at any time")]
fn install(action: &SigAction) -> Result<()> {
    // SAFETY: the handler does nothing but add to an atomic number.
    unsafe { sigaction(Signal::SIGSYS, action) }.context("sigaction")?;
    Ok(())
}

/// The result of a call, or its error number as a negative one.
#[allow(unsafe_code, reason = "the cases choose the call")]
pub(super) fn call_64(number: i64, [a, b, c, d, e, f]: [u64; 6]) -> i64 {
    // SAFETY: the cases make calls that take numbers only, or fail before they look at memory.
    match unsafe { libc::syscall(number, a, b, c, d, e, f) } {
        -1 => -i64::from(nix::errno::Errno::last_raw()),
        result => result,
    }
}

/// A call without arguments by way of 32-bit x86.
#[allow(
    unsafe_code,
    reason = "there is no other way to call like a 32-bit program"
)]
fn call_32(number: i32) -> i32 {
    let mut result = number;
    // SAFETY: the calls of the cases take no pointers; the kernel preserves all registers but eax
    // and r8 to r11.
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inout("eax") result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// Makes a call as `call` does, in a thread of its own, and says that the process goes on.
#[allow(
    unsafe_code,
    reason = "the thread may be killed, which Rust's own does not stand"
)]
pub(super) fn call_in_thread(_: &[String]) -> Result<u8> {
    extern "C" fn run(_: *mut libc::c_void) -> *mut libc::c_void {
        call_64(8, [u64::MAX, 0, 0, 0, 0, 0]);
        std::ptr::null_mut()
    }
    let mut thread: libc::pthread_t = 0;
    // SAFETY: the function touches nothing of this thread.
    let made = unsafe {
        libc::pthread_create(&raw mut thread, std::ptr::null(), run, std::ptr::null_mut())
    };
    ensure!(made == 0, "pthread_create: {made}");
    // SAFETY: the thread was made above and is joined once.
    let joined = unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    ensure!(joined == 0, "pthread_join: {joined}");
    println!("goes on");
    std::io::stdout().flush()?;
    Ok(0)
}
