//! The system calls that `rustix` does not wrap, each as a safe function where that is possible.
//! Called by the modules named after what they do; nothing here decides anything.

use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub mod attributes;

/// Turns the C library's return convention into a `Result`.
fn check(result: c_long) -> Result<c_long, Errno> {
    if result == -1 {
        let error = std::io::Error::last_os_error();
        Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    } else {
        Ok(result)
    }
}

/// Flag of `clone3(2)`; the C library's constant is of a type too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child made by [`clone3`].
#[derive(Debug)]
pub struct Child {
    /// Its pid in the caller's pid namespace.
    pub pid: u32,
    /// Refers to it for as long as it is open; closed on exec.
    pub pidfd: OwnedFd,
}

/// Forks with `clone3(2)`: the child shares nothing, starts in `cgroup` if one is given, and gets
/// new namespaces as `flags` (`CLONE_NEW*`) says. With `CLONE_PARENT` it is the child of the
/// caller's parent. Returns `None` in the child.
///
/// # Errors
/// Those of `clone3(2)`.
///
/// # Safety
/// The caller may have other threads, which do not exist in the child: until it has executed
/// another program the child must do nothing but system calls (no allocation, no locks).
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<Child>, Errno> {
    let mut pidfd: c_int = -1;
    // SAFETY: `clone_args` is a struct of integers, for which zero is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    // A sibling signals its end as the caller does.
    if flags & libc::CLONE_PARENT as u64 == 0 {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `arguments` and the `pidfd` it points to outlive the call; without CLONE_VM the
    // child runs on its own copy of this stack; the rest is the caller's obligation.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match check(result)? {
        0 => Ok(None),
        pid => Ok(Some(Child {
            pid: u32::try_from(pid).map_err(|_| Errno::SRCH)?,
            // SAFETY: the kernel stored a new descriptor there, which nothing else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        })),
    }
}

/// Sets a limit of process `pid`, `RLIMIT_*` by its number; `u64::MAX` is none.
///
/// # Errors
/// Those of `prlimit(2)`.
pub fn set_limit(pid: u32, resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` outlives the call; the old limit is not asked for.
    let result = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    check(result).map(|_| ())
}

/// Arguments of `mount_setattr(2)`; the kernel's `struct mount_attr`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// One of `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
    /// User namespace of an id-mapped mount; unused.
    pub userns_fd: u64,
}

/// Changes the mount that `mount` refers to, and with `recursive` those below it.
///
/// # Errors
/// Those of `mount_setattr(2)`.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attributes: MountAttr,
) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated string and `attributes` has the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    check(result).map(|_| ())
}

/// `BPF_PROG_LOAD` and `BPF_PROG_ATTACH` of `bpf(2)`.
const BPF_PROG_LOAD: c_int = 5;
const BPF_PROG_ATTACH: c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that loading a program needs.
#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` that attaching a program needs.
#[repr(C)]
struct ProgramAttach {
    target_fd: RawFd,
    attach_bpf_fd: RawFd,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`, one `u64` for each instruction.
///
/// # Errors
/// Those of `bpf(2)`; `EINVAL` or `EACCES` when the verifier refuses the program.
pub fn load_device_program(instructions: &[u64]) -> Result<OwnedFd, Errno> {
    let attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: the pointers in `attributes` refer to data that outlives the call, with the length
    // that is passed; the size is that of the struct, which the kernel extends by zeros.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<ProgramLoad>(),
        )
    };
    let fd = RawFd::try_from(check(result)?).map_err(|_| Errno::BADF)?;
    // SAFETY: the kernel returned a new descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program of [`load_device_program`] to a cgroup directory.
///
/// # Errors
/// Those of `bpf(2)`.
pub fn attach_device_program(program: &OwnedFd, cgroup: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes = ProgramAttach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: program.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attributes` outlives the call and has the size that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            size_of::<ProgramAttach>(),
        )
    };
    check(result).map(|_| ())
}

/// Sends `signal`, any number the kernel knows, to the process behind `pidfd`.
///
/// # Errors
/// `ESRCH` when it has ended, `EINVAL` for an unknown number.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // SAFETY: a null `siginfo` is allowed; the other arguments are integers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<c_void>(),
            0,
        )
    };
    check(result).map(|_| ())
}

/// Leaves the namespaces in `flags` (`CLONE_NEW*`) for new ones.
///
/// # Errors
/// Those of `unshare(2)`; `EINVAL` for flags other than those of namespaces.
pub fn unshare_namespaces(flags: c_int) -> Result<(), Errno> {
    if flags & (libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_VM) != 0 {
        return Err(Errno::INVAL);
    }
    // SAFETY: descriptors, memory and the file system context stay shared as they are.
    let result = unsafe { libc::unshare(flags) };
    check(c_long::from(result)).map(|_| ())
}

/// Marks every descriptor from `first` on to be closed on exec.
///
/// # Errors
/// Those of `close_range(2)`.
pub fn close_on_exec_from(first: u32) -> Result<(), Errno> {
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: this only sets a flag on descriptors, it closes none.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    check(result).map(|_| ())
}

/// Sets what happens on `SIGPIPE`: ignored (a write then fails with `EPIPE`) or the default.
pub fn ignore_broken_pipes(ignore: bool) {
    let action = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither disposition runs code of ours; SIGPIPE is a valid number, so it cannot fail.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

/// Ends the process at once, without running destructors or `atexit` functions.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// A NULL-terminated array of C strings, as `execve(2)` takes it, built before it is needed.
#[derive(Debug)]
pub struct StringArray {
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl StringArray {
    /// Holds `strings` and pointers to them; moving the array leaves the strings where they are.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self {
            pointers,
            _strings: strings,
        }
    }
}

/// Replaces the program of this process. Returns only on failure.
pub fn execve(path: &std::ffi::CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    // SAFETY: the path and all strings end with NUL, the arrays with NULL, and both outlive the
    // call, which does not return when it succeeds.
    let result = unsafe {
        libc::execve(
            path.as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
        )
    };
    check(c_long::from(result)).err().unwrap_or(Errno::IO)
}

/// Makes `target` refer to what `source` does and stay open on exec. For the time between fork
/// and exec: only a system call.
///
/// # Errors
/// Those of `dup2(2)`.
pub fn place_descriptor(source: RawFd, target: RawFd) -> Result<(), Errno> {
    // SAFETY: the child of a fork owns its whole descriptor table, and no Rust object of its
    // single thread closes `target` before exec.
    let result = unsafe { libc::dup2(source, target) };
    check(c_long::from(result)).map(|_| ())
}

/// Lets a descriptor stay open on exec.
///
/// # Errors
/// Those of `fcntl(2)`.
pub fn keep_on_exec(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: this changes a flag of a descriptor and touches no memory.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    check(c_long::from(result)).map(|_| ())
}

/// Waits for one byte on `gate`, which says that this process's new user namespace has its
/// mappings. For the time between fork and exec: only a system call.
///
/// # Errors
/// Those of `read(2)`; `EPIPE` when the other end was closed instead.
pub fn pass_gate(gate: RawFd) -> Result<(), Errno> {
    let mut byte = 0_u8;
    // SAFETY: one byte is read into a variable of one byte.
    let result = unsafe { libc::read(gate, (&raw mut byte).cast(), 1) };
    if check(result as c_long)? == 1 {
        Ok(())
    } else {
        Err(Errno::PIPE)
    }
}

/// Becomes root in this process's user namespace. For the time between fork and exec: only system
/// calls.
///
/// # Errors
/// Those of `setresuid(2)`; `EINVAL` when no id outside is mapped to it.
pub fn become_root() -> Result<(), Errno> {
    // SAFETY: the system call itself, for this thread, takes only integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) }).map(|_| ())
}

/// Sets `IFF_UP` on a network interface of the caller's network namespace.
///
/// # Errors
/// Those of the ioctls `SIOCGIFFLAGS` and `SIOCSIFFLAGS`; `EINVAL` when the name is too long.
pub fn set_interface_up(socket: impl AsFd, name: &str) -> Result<(), Errno> {
    // SAFETY: `ifreq` is a struct of integers and arrays of them, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::INVAL);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the request number takes a pointer to an `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut request) };
    check(c_long::from(result))?;
    // SAFETY: the kernel has just filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as i16;
    // SAFETY: as for SIOCGIFFLAGS above.
    let result = unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw mut request) };
    check(c_long::from(result)).map(|_| ())
}

/// Lets the running tokio runtime wait on a descriptor.
///
/// # Errors
/// When the kernel cannot wait on it (`EPERM` for a regular file).
pub fn watch(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor from its making to its drop, which is what the
    // runtime relies on.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Takes over a descriptor that this process inherited under a number it was told.
///
/// # Safety
/// The number must be an open descriptor that nothing else in this process owns.
pub unsafe fn inherited_fd(number: RawFd) -> OwnedFd {
    // SAFETY: the caller's obligation.
    unsafe { OwnedFd::from_raw_fd(number) }
}
