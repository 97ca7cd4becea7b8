//! `lazaret-vmm --launch-fd N`: runs one VM and exits with the reason of its end.
//!
//! The runtime starts it with a socket, sends the launch, and gets the answer there; everything
//! after that is [`lazaret_vmm`]'s.

use std::{
    os::{
        fd::{BorrowedFd, FromRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    process::ExitCode,
    ptr,
};

use anyhow::{Context, bail};
use lazaret_protocol::vm::ExitReason;
use lazaret_vmm::{
    control::Server,
    launch::{self, LaunchError, Received},
};
use tracing_subscriber::{
    filter::LevelFilter,
    fmt::{format::Writer, time::FormatTime},
};
use vmm_sys_util::signal::create_sigset;

const USAGE: &str = "\
Usage: lazaret-vmm --launch-fd N
       lazaret-vmm --help | --version

Runs one virtual machine. Started by `lazaret`; not meant to be started by hand.

Options:
  --launch-fd N  descriptor of the Unix stream socket on which the launch arrives
  --help         print this
  --version      print the version

Environment:
  LAZARET_LOG    level of the log on standard error: off, error, warn (default), info, debug, trace

Exit codes: 0 shut down on request, 1 error, 3 the guest reset itself, 4 the guest panicked";

/// First descriptor after the standard streams.
const FIRST_FD: RawFd = 3;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (first, second, third) = (args.next(), args.next(), args.next());
    match (first.as_deref(), second.as_deref(), third) {
        (Some("--help"), None, None) => println!("{USAGE}"),
        (Some("--version"), None, None) => println!("lazaret-vmm {}", env!("CARGO_PKG_VERSION")),
        (Some("--launch-fd"), Some(fd), None) => run(fd),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(ExitReason::Error.code());
        }
    }
    ExitCode::SUCCESS
}

/// Runs the VM, then ends the process at once: what the kernel frees anyway is not freed twice.
fn run(fd: &str) {
    keep_one_heap();
    unblock_signals();
    ignore_termination();
    log_to_stderr();
    tracing::debug!("VMM started");
    let mut server = match launch_socket(fd).and_then(serve) {
        Ok(server) => server,
        Err(error) => {
            eprintln!("lazaret-vmm: {error:#}");
            std::process::exit(ExitReason::Error.code().into());
        }
    };
    let reason = server.run();
    std::process::exit(reason.code().into());
}

fn log_to_stderr() {
    let level = std::env::var("LAZARET_LOG").ok();
    let level = level.and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::WARN))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_timer(Microseconds)
        .init();
}

/// The time as the runtime reads it: microseconds of `CLOCK_MONOTONIC`.
struct Microseconds;

impl FormatTime for Microseconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        write!(writer, "{}", now.tv_sec * 1_000_000 + now.tv_nsec / 1_000)
    }
}

/// glibc gives each thread a heap of its own, which takes address space, private memory and half a
/// dozen system calls at the thread's start. Threads here hardly allocate.
fn keep_one_heap() {
    // SAFETY: the call sets a number; no other thread exists that could allocate meanwhile.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Lets all signals through, whatever this process has inherited: one of them interrupts vCPUs.
fn unblock_signals() {
    let none = create_sigset(&[]).expect("an empty set names no signal");
    // SAFETY: `none` is initialised and outlives the call; the old set is not asked for.
    let code =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
    assert_eq!(code, 0, "pthread_sigmask takes SIG_SETMASK");
}

/// Goes on when asked to end: who stops all processes of a cgroup, as service managers do, means the
/// guest's programs, and it is the runtime that passes the signal on to them and then ends the VM.
fn ignore_termination() {
    // SAFETY: ignoring a signal installs no code that could run; no other thread exists yet.
    let old = unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    assert_ne!(old, libc::SIG_ERR, "SIGTERM can be ignored");
}

fn launch_socket(argument: &str) -> anyhow::Result<UnixStream> {
    let number: RawFd = argument
        .parse()
        .ok()
        .filter(|number| *number >= FIRST_FD)
        .with_context(|| format!("--launch-fd: `{argument}` is no descriptor number from 3"))?;
    // SAFETY: the borrow ends with the next statement, and that only asks whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)
        .with_context(|| format!("--launch-fd: descriptor {number}"))?;
    // SAFETY: the descriptor is open, and the caller hands it over by naming it; nothing else in
    // this process, which has opened nothing yet, uses that number.
    Ok(unsafe { UnixStream::from_raw_fd(number) })
}

/// Starts the VM and tells the runtime.
fn serve(socket: UnixStream) -> anyhow::Result<Server> {
    let server = match start(&socket) {
        Ok(server) => server,
        Err(error) => {
            let line = launch::one_line(&error);
            // The runtime may be gone; the line is on standard error too.
            let _ = launch::answer(&socket, &Err(line.clone()));
            bail!("{line}");
        }
    };
    // If the runtime is gone, the server notices at once.
    let _ = launch::answer(&socket, &Ok(()));
    Ok(server)
}

/// From the launch to running vCPUs.
fn start(socket: &UnixStream) -> Result<Server, LaunchError> {
    let Received { config, mut fds } = launch::receive(socket)?;
    tracing::debug!("launch received");
    let listener = config
        .control
        .map(|fd| fds.take("control", fd))
        .transpose()?
        .map(UnixListener::from);
    let vm = launch::build(&config, &mut fds)?;
    let socket = socket.try_clone().map_err(LaunchError::Control)?;
    let mut server = Server::new(vm, socket, listener).map_err(LaunchError::Control)?;
    server.vm_mut().resume().map_err(LaunchError::Start)?;
    tracing::debug!("vCPUs run");
    Ok(server)
}
