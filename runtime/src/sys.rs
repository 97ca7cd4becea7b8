//! System calls that neither rustix nor nix wraps the way they are needed here. The only file of
//! the runtime that contains `unsafe`; each wrapper is safe to call.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, process::CommandExt as _},
    },
    path::Path,
    process::Command,
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
    mount_setattr(fd, &request, recursive)
}

/// Maps the ids of the mount `fd` refers to, which must not be attached yet, as `user_namespace`
/// does, and of all mounts below it if `recursive`.
///
/// # Errors
/// As `mount_setattr(2)`; `EINVAL` when the file system does not support it.
pub(crate) fn map_mount_ids(
    fd: BorrowedFd<'_>,
    user_namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    let request = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(user_namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    mount_setattr(fd, &request, recursive)
}

/// Has all threads of this process share one heap: glibc would give each one of its own, which takes
/// 64 MiB of address space and some system calls. For processes whose threads hardly allocate.
pub(crate) fn keep_one_heap() {
    // SAFETY: the call sets a number, under the allocator's own lock.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Ends this process at once: for the child of [`fork`] that is no monitor.
pub(crate) fn end_child() -> ! {
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(0) }
}

fn mount_setattr(
    fd: BorrowedFd<'_>,
    request: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated static string, `request` is a live `mount_attr` whose
    // size is passed with it, and `fd` is open for the whole call because it is borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(request),
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

/// Flag of `clone3(2)`; the C library's constant is of a type too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks a process that has one thread only; a threaded one is refused, for its child could
/// inherit a lock that nobody will ever release. The child is born in the cgroup v2 whose directory
/// `cgroup` is, if one is given: moving it there later would wait until every CPU has been
/// scheduled once.
///
/// # Errors
/// As `fork(2)` and, with a cgroup, `clone3(2)`; `EINVAL` when other threads exist.
pub(crate) fn fork(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.take(2).count() > 1 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let pid = match cgroup {
        // SAFETY: this is the process's only thread (checked above, and nobody else could start
        // one in between), so the child finds every lock in the state this thread left it in.
        None => unsafe { libc::fork() }.into(),
        Some(cgroup) => clone_into(cgroup),
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => i32::try_from(pid)
            .map(Fork::Parent)
            .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// As `fork(2)`, into a cgroup. The C library does not see it, and goes on taking the child for its
/// parent where it remembers a thread's id, which is in locks of kinds that are not used here.
fn clone_into(cgroup: BorrowedFd<'_>) -> libc::c_long {
    // SAFETY: `clone_args` is a struct of integers, for which zero is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    // SAFETY: `arguments` outlives the call, and its size is passed with it; without CLONE_VM the
    // child runs on its own copy of this stack. That there is only one thread is what `fork`, the
    // one caller, has checked.
    unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
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

/// Takes over descriptor `number` if it was inherited from whoever started this program.
pub(crate) fn inherited(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: this reads and sets a flag of a descriptor, if there is one, and touches no memory.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    // What this program opens itself is closed on exec, the one flag there is.
    if flags != 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    // SAFETY: it is open. It has survived an exec, so nothing in this program has opened it; and
    // having the flag from now on it is taken only once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether two descriptors of this process share one description: what is read from one is not
/// read from the other.
pub(crate) fn is_same_description(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    const KCMP_FILE: i32 = 0;
    let pid = std::process::id();
    let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
    // SAFETY: this compares what two descriptors refer to and touches no memory.
    unsafe { libc::syscall(libc::SYS_kcmp, pid, pid, KCMP_FILE, one, other) == 0 }
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

/// Has the child that `command` is going to start enter `mount_namespace`, then `directory` in it,
/// and receive all signals: ours are blocked.
///
/// # Errors
/// When the directory's name holds a NUL character.
pub(crate) fn place_child(
    command: &mut Command,
    mount_namespace: Option<OwnedFd>,
    directory: Option<&Path>,
) -> io::Result<()> {
    let directory = directory
        .map(|directory| CString::new(directory.as_os_str().as_bytes()))
        .transpose()?;
    let place = move || {
        if let Some(namespace) = &mount_namespace {
            // SAFETY: setns takes two integers; the descriptor is open, as it is owned.
            let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) };
            check(result.into())?;
        }
        if let Some(directory) = &directory {
            // SAFETY: the path is a live, NUL-terminated string.
            let result = unsafe { libc::chdir(directory.as_ptr()) };
            check(result.into())?;
        }
        // SAFETY: a `sigset_t` is a struct of integers, for which zero is a valid value: it is the
        // empty set.
        let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set outlives the call, and no old mask is asked for.
        let result =
            unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) };
        check(result.into())
    };
    // SAFETY: between fork and exec the closure makes system calls on data made before, and
    // nothing else: it takes no lock and allocates nothing, not even for the error of a call.
    unsafe { command.pre_exec(place) };
    Ok(())
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

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
