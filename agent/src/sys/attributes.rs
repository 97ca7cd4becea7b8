//! System calls that set what a process is allowed: its filter of system calls, its scheduling,
//! its execution domain. Called by [`crate::attributes`] and [`crate::seccomp`].

use std::ffi::{c_long, c_ulong};

use rustix::io::Errno;

use super::check;

/// Loads a filter of system calls with `seccomp(2)`.
///
/// # Errors
/// Those of `seccomp(2)`: `EACCES` without `CAP_SYS_ADMIN` or `no_new_privs`, `EINVAL` for flags
/// or a program the kernel does not take.
pub fn seccomp_set_filter(flags: u32, program: &[libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` points to as many instructions as it says, which the kernel copies and
    // does not change; it outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    check(result).map(|_| ())
}

/// Sets the scheduling policy of the calling thread; the size of `attributes` is filled in.
///
/// # Errors
/// Those of `sched_setattr(2)`.
pub fn sched_setattr(mut attributes: libc::sched_attr) -> Result<(), Errno> {
    attributes.size = size_of::<libc::sched_attr>() as u32;
    // SAFETY: `attributes` outlives the call and has the size it says.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(result).map(|_| ())
}

/// Sets the I/O priority of the calling thread: class and level in one number.
///
/// # Errors
/// Those of `ioprio_set(2)`.
pub fn ioprio_set(priority: u16) -> Result<(), Errno> {
    const IOPRIO_WHO_PROCESS: c_long = 1;
    // SAFETY: the call takes only integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            c_long::from(priority),
        )
    };
    check(result).map(|_| ())
}

/// Sets the execution domain of the calling process (`personality(2)`).
///
/// # Errors
/// Those of `personality(2)`.
pub fn set_personality(domain: u32) -> Result<(), Errno> {
    // SAFETY: the call takes only an integer.
    let result = unsafe { libc::personality(c_ulong::from(domain)) };
    check(c_long::from(result)).map(|_| ())
}

/// Makes a new time namespace for the program that this process executes next, with the clocks'
/// offsets that `lines` gives (`time_namespaces(7)`). For the time between fork and exec: only
/// system calls.
///
/// # Errors
/// Those of the calls; `ERANGE` when an offset would take a clock below zero or too far.
pub fn enter_new_time_namespace(lines: &[u8]) -> Result<(), Errno> {
    super::unshare_namespaces(libc::CLONE_NEWTIME)?;
    if lines.is_empty() {
        return Ok(());
    }
    // SAFETY: the path is a NUL-terminated string.
    let file = unsafe { libc::open(c"/proc/self/timens_offsets".as_ptr(), libc::O_WRONLY) };
    let file = check(c_long::from(file))?;
    // SAFETY: as many bytes are read from `lines` as it has.
    let written = unsafe { libc::write(file as i32, lines.as_ptr().cast(), lines.len()) };
    let written = check(written as c_long);
    // SAFETY: the descriptor was opened above and is used no more.
    unsafe { libc::close(file as i32) };
    written.map(|_| ())
}
