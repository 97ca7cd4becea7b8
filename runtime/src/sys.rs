//! System calls that neither rustix nor nix wraps the way they are needed here. The only file of
//! the runtime that contains `unsafe`; each wrapper is safe to call.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// What [`set_mount_attributes`] changes, as `struct mount_attr` (`mount_setattr(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MountAttributes {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub(crate) propagation: u64,
}

/// Changes the attributes of the mount `fd` refers to, and of all mounts below it if `recursive`.
///
/// # Errors
/// As `mount_setattr(2)`.
pub(crate) fn set_mount_attributes(
    fd: BorrowedFd<'_>,
    attributes: MountAttributes,
    recursive: bool,
) -> io::Result<()> {
    let request = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated static string, `request` is a live `mount_attr` whose
    // size is passed with it, and `fd` is open for the whole call because it is borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const request,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result)
}

/// Sends signal number `signal`, real-time signals included, to process `pid`.
///
/// # Errors
/// As `kill(2)`.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours.
    let result = unsafe { libc::kill(pid, signal) };
    check(result.into())
}

/// Which side of a fork the caller is on.
pub(crate) enum Fork {
    /// The parent, with the child's pid.
    Parent(i32),
    /// The child.
    Child,
}

/// Forks a process that has one thread only; a threaded one is refused, for its child could
/// inherit a lock that nobody will ever release.
///
/// # Errors
/// As `fork(2)`; `EINVAL` when other threads exist.
pub(crate) fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.take(2).count() > 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: this is the process's only thread (checked above, and nobody else could start one in
    // between), so the child finds every lock in the state this thread left it in.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

/// Closes every descriptor above 2 that is not in `keep`.
///
/// Meant for a freshly forked monitor, which must not hold open what its caller inherited from
/// somebody else. Whoever owns one of the closed descriptors must not use it again: the caller
/// leaves such owners behind by never returning.
///
/// # Errors
/// As `close_range(2)`.
pub(crate) fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|&fd| u32::try_from(fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().filter(|&fd| fd >= 3) {
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: close_range touches no memory; that no owner of these descriptors goes on using
    // them is the documented duty of `close_others`'s caller.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    check(result)
}

/// Makes `fd` known to the reactor of the current tokio runtime; gives it back if epoll takes no
/// such file.
///
/// # Errors
/// As `epoll_ctl(2)`.
pub(crate) fn watch(
    fd: OwnedFd,
    interest: Interest,
) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` is open, stays so until it is dropped, and its number never changes;
    // the `AsyncFd` owns it.
    let result = unsafe { AsyncFd::register_with_interest(fd, interest) };
    result.map_err(tokio::io::unix::AsyncFdRegisterError::into_parts)
}

/// Version of the KVM API behind `kvm`, an open `/dev/kvm` (KVM API §4.1); 12 since 2007.
///
/// # Errors
/// As `ioctl(2)`, for example when the file is not KVM's.
pub(crate) fn kvm_api_version(kvm: BorrowedFd<'_>) -> io::Result<i32> {
    const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
    // SAFETY: this request has no argument, so the kernel touches no memory of ours.
    let version = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0) };
    check(version.into())?;
    Ok(version)
}

/// By how much the local time of day is ahead of UTC's, `since_s` seconds after 1970 began.
pub(crate) fn seconds_east_of_utc(since_s: u64) -> i64 {
    let time = libc::time_t::try_from(since_s).unwrap_or(libc::time_t::MAX);
    // SAFETY: `tm` consists of integers and one pointer, for which zeros are valid.
    let mut local: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to live values of the right types. It reads the environment variable TZ,
    // and this process changes no variable once it runs.
    let result = unsafe { libc::localtime_r(&raw const time, &raw mut local) };
    if result.is_null() { 0 } else { local.tm_gmtoff }
}

/// Binds all threads in `tasks`, a directory like `/proc/PID/task`, to `cpus`; those that are
/// started meanwhile inherit it from a thread that is bound already or is found in another look.
///
/// # Errors
/// As `sched_setaffinity(2)`; a thread that has ended is none.
pub(crate) fn bind_threads(tasks: &std::path::Path, cpus: &[usize]) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    for &cpu in cpus {
        set.set(cpu);
    }
    let mut bound = std::collections::BTreeSet::new();
    loop {
        let mut more = false;
        for entry in std::fs::read_dir(tasks)? {
            let name = entry?.file_name();
            let thread = name.to_str().and_then(|name| name.parse().ok());
            let Some(thread) = thread.and_then(rustix::thread::Pid::from_raw) else {
                continue;
            };
            if bound.insert(thread.as_raw_nonzero()) {
                more = true;
                match rustix::thread::sched_setaffinity(Some(thread), &set) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        if !more {
            return Ok(());
        }
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
