//! The VM of a sandbox: starts `lazaret-vmm`, hands it its descriptors, waits until the guest's
//! agent is ready, and ends it. Called by the monitor only; knows nothing of containers.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::ExitStatusExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lazaret_protocol::{
    VERSION,
    agent::Ready,
    frame::{self, FrameError},
    vm::{ControlReply, ControlRequest, ExitReason, Launch, Launched, VmConfig},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, Mode, OFlags},
    io::{Errno, FdFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
    },
    process::{Pid, PidfdFlags},
};

use super::{boot_log, disks, machine::END_TIMEOUT};
use crate::{
    agent,
    config::Config,
    log,
    plan::{DISKS_MAX, FD_COUNT, FdIndex, HostDisk},
    process, signals, sys,
};

/// Name of the VMM's control socket in the state directory.
pub(crate) const CONTROL_SOCKET: &str = "vm.sock";

/// Environment variable with the level of the VMM's log.
const VMM_LOG_LEVEL: &str = "LAZARET_LOG";

/// Why there is no VM, or no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// A file the VM needs cannot be opened.
    #[error("cannot open {} {}", what, path.display())]
    Open {
        /// What it is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A block device of the host cannot be opened.
    #[error("{field}: cannot open the host's block device {serial}")]
    Disk {
        /// Field of the spec.
        field: String,
        /// Its numbers.
        serial: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM's process could not be made.
    #[error("cannot start {}", path.display())]
    Start {
        /// Its binary.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something on the host failed.
    #[error("cannot {action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The VMM gave an error instead of a VM.
    #[error("lazaret-vmm: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The guest did not get ready.
    #[error("guest did not answer within {timeout_ms} ms (`boot_timeout_ms`)")]
    Timeout {
        /// The deadline.
        timeout_ms: u64,
    },
    /// Whoever wanted the VM has gone.
    #[error("interrupted")]
    Interrupted,
    /// The agent is from another release.
    #[error(
        "guest agent speaks version {version} of the protocol, not {VERSION}: rebuild the initramfs"
    )]
    Version {
        /// What it speaks.
        version: u32,
    },
    /// The VM ended.
    #[error("{reason}")]
    Lost {
        /// Why, as far as is known.
        reason: String,
    },
}

pub(super) fn host_error<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> VmError {
    move |source| VmError::Host {
        action,
        source: source.into(),
    }
}

/// What of the host's a VM gets at besides its share.
#[derive(Debug, Clone, Copy)]
pub(super) struct VmFiles<'a> {
    /// File for the kernel's console.
    pub(super) console: Option<&'a Path>,
    /// Its disks.
    pub(super) disks: &'a [HostDisk],
}

/// A VM, from the start of its process on. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Vm {
    child: Child,
    pidfd: OwnedFd,
    launch: UnixStream,
    /// Where the VMM's standard error goes: read only when something went wrong.
    log: File,
    /// The guest kernel's console, whose last line may say why the guest ended.
    console: Option<File>,
    /// Our end of the ready port.
    ready: Option<OwnedFd>,
}

impl Vm {
    /// Starts the VMM's process, which then waits for its configuration.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn start(config: &Config) -> Result<Self, VmError> {
        let (launch, theirs) = UnixStream::pair().map_err(host_error("make a socket pair"))?;
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
            .map_err(host_error("pass on a socket"))?;
        let vmm_log = rustix::fs::memfd_create("lazaret-vmm-log", MemfdFlags::CLOEXEC)
            .map_err(host_error("make a memory file"))?;
        let start = |source| VmError::Start {
            path: config.vmm.clone(),
            source,
        };
        let mut command = Command::new(&config.vmm);
        command
            .arg("--launch-fd")
            .arg(theirs.as_raw_fd().to_string())
            .env_clear();
        if log::keeps_debug() {
            command.env(VMM_LOG_LEVEL, "debug");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(vmm_log.try_clone().map_err(start)?))
            .spawn()
            .map_err(start)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("the kernel's pids are positive");
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(host_error("watch lazaret-vmm"))?;
        Ok(Self {
            child,
            pidfd,
            launch,
            log: vmm_log.into(),
            console: None,
            ready: None,
        })
    }

    /// The VMM's pid.
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("the kernel's pids fit in 31 bits")
    }

    /// Opens everything the VM may touch and sends it with its configuration.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn launch(
        &mut self,
        mut vm: VmConfig,
        config: &Config,
        state_dir: &impl AsFd,
        share: &OwnedFd,
        files: VmFiles<'_>,
    ) -> Result<(), VmError> {
        let (ready, acceptor) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(host_error("make a socket pair"))?;
        self.ready = Some(ready);
        let kvm = open_kvm()?;
        let kernel = open("guest kernel", &config.kernel, OFlags::RDONLY)?;
        let initramfs = open("initramfs", &config.initramfs, OFlags::RDONLY)?;
        let control = listen(state_dir, CONTROL_SOCKET)?;
        let vsock = listen(state_dir, agent::SOCKET)?;
        let disks = disks::open_all(files.disks, &mut vm)?;
        if let Some(path) = files.console {
            let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE;
            self.console = Some(open("console", path, flags)?.into());
        }
        let mut fds = vec![share.as_fd(); FD_COUNT];
        fds[FdIndex::Kvm as usize] = kvm.as_fd();
        fds[FdIndex::Kernel as usize] = kernel.as_fd();
        fds[FdIndex::Initramfs as usize] = initramfs.as_fd();
        fds[FdIndex::Control as usize] = control.as_fd();
        fds[FdIndex::Vsock as usize] = vsock.as_fd();
        fds[FdIndex::Ready as usize] = acceptor.as_fd();
        match &self.console {
            Some(console) => fds[FdIndex::Console as usize] = console.as_fd(),
            None => fds.truncate(FdIndex::Console as usize),
        }
        fds.extend(disks.iter().map(AsFd::as_fd));
        let launch = Launch {
            version: VERSION,
            vm,
        };
        let sent = self.send(&launch, &fds);
        // If it ended before it could read, why it did is the better answer.
        sent.map_err(|_| self.lost())
    }

    fn send(&self, launch: &Launch, fds: &[BorrowedFd<'_>]) -> Result<(), VmError> {
        let bytes = frame::encode(launch).map_err(|error| VmError::Refused {
            message: error.to_string(),
        })?;
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_COUNT + DISKS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(fds));
        let sent = rustix::net::sendmsg(
            &self.launch,
            &[IoSlice::new(&bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .map_err(io::Error::from)
        .and_then(|sent| (&self.launch).write_all(&bytes[sent..]));
        sent.map_err(host_error("send the configuration to lazaret-vmm"))
    }

    /// Waits until the vCPUs run and the agent has said that it is ready; gives up when the other
    /// end of the pipe `caller` is closed, or when a signal says so. All signals must be blocked.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) fn wait_ready(
        &mut self,
        since: Instant,
        timeout_ms: u64,
        caller: BorrowedFd<'_>,
    ) -> Result<(), VmError> {
        let interrupts = signals::open_interrupts().map_err(host_error("receive signals"))?;
        let deadline = Deadline {
            since,
            timeout_ms,
            caller,
            interrupts,
        };
        deadline.wait_readable(self.launch.as_fd())?;
        let launched: Launched = match frame::read(&mut self.launch) {
            Ok(launched) => launched,
            Err(error) => return Err(self.missing(&error, &deadline)),
        };
        launched.map_err(|message| VmError::Refused { message })?;
        boot_log::pass_on(&self.log);
        log::monitor_phase("VM launched");
        let mut connection = self.accept_ready(&deadline)?;
        // A guest that sends less than a frame must not hold us.
        connection
            .set_read_timeout(Some(deadline.left()?))
            .map_err(host_error("set a deadline"))?;
        let payload = match frame::read_payload(&mut connection) {
            Ok(payload) => payload,
            Err(error) => return Err(self.missing(&error, &deadline)),
        };
        if let Some(version) = frame::other_version(&payload) {
            return Err(VmError::Version { version });
        }
        let ready: Ready = frame::decode(&payload).map_err(|error| VmError::Refused {
            message: error.to_string(),
        })?;
        boot_log::note_guest(&ready);
        Ok(())
    }

    fn accept_ready(&mut self, deadline: &Deadline<'_>) -> Result<UnixStream, VmError> {
        let ready = self.ready.take().expect("launch made the socket");
        deadline.wait_readable(ready.as_fd())?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let received = rustix::net::recvmsg(
            &ready,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        match received {
            Err(error) => return Err(self.missing(&FrameError::Io(error.into()), deadline)),
            Ok(message) if message.bytes == 0 => return Err(self.lost()),
            Ok(_) => {}
        }
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        fd.map(UnixStream::from).ok_or_else(|| VmError::Refused {
            message: "sent no descriptor for the ready port".to_owned(),
        })
    }

    /// Why an awaited message did not come.
    fn missing(&mut self, error: &FrameError, deadline: &Deadline<'_>) -> VmError {
        match error {
            FrameError::Io(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                VmError::Timeout {
                    timeout_ms: deadline.timeout_ms,
                }
            }
            FrameError::Closed | FrameError::Io(_) => self.lost(),
            malformed => VmError::Refused {
                message: malformed.to_string(),
            },
        }
    }

    /// Ends the VM, whose guest has nothing left to do, and waits until it is gone.
    pub(crate) fn shut_down(mut self) {
        // Whatever fails here, dropping kills what is left.
        let _ = self.launch.set_read_timeout(Some(END_TIMEOUT));
        if frame::write(&mut self.launch, &ControlRequest::Shutdown).is_ok() {
            let _ = frame::read::<ControlReply>(&mut self.launch);
            process::wait_for_end(&self.pidfd, END_TIMEOUT);
        }
    }

    /// Finds out why the VM ended, which it has, or is about to.
    pub(crate) fn lost(&mut self) -> VmError {
        let in_time = process::wait_for_end(&self.pidfd, END_TIMEOUT);
        if !in_time {
            process::kill_and_wait(&self.pidfd, END_TIMEOUT);
        }
        let reason = match self.child.wait() {
            _ if !in_time => "lost the connection to the guest agent".to_owned(),
            Err(error) => format!("cannot wait for lazaret-vmm: {error}"),
            Ok(status) => self.describe(status.code(), status.signal()),
        };
        VmError::Lost { reason }
    }

    fn describe(&mut self, code: Option<i32>, signal: Option<i32>) -> String {
        let Some(code) = code else {
            return format!("lazaret-vmm was killed by signal {}", signal.unwrap_or(0));
        };
        let (mut text, detail) = match ExitReason::from_code(code) {
            Some(ExitReason::Shutdown) => ("the VM was shut down".to_owned(), None),
            Some(ExitReason::Error) => (
                "lazaret-vmm failed".to_owned(),
                boot_log::last_line(&mut self.log),
            ),
            Some(ExitReason::Reset) => (
                "the guest reset itself".to_owned(),
                self.console.as_mut().and_then(boot_log::last_line),
            ),
            Some(ExitReason::Panic) => (
                "the guest kernel panicked".to_owned(),
                self.console.as_mut().and_then(boot_log::last_line),
            ),
            None => (
                format!("lazaret-vmm ended with exit code {code}"),
                boot_log::last_line(&mut self.log),
            ),
        };
        if let Some(detail) = detail {
            text.push_str(": ");
            text.push_str(&detail);
        }
        text
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What ends the wait for a guest.
struct Deadline<'a> {
    since: Instant,
    timeout_ms: u64,
    caller: BorrowedFd<'a>,
    interrupts: OwnedFd,
}

impl Deadline<'_> {
    /// What is left of it, more than nothing.
    fn left(&self) -> Result<Duration, VmError> {
        let timeout_ms = self.timeout_ms;
        Duration::from_millis(timeout_ms)
            .checked_sub(self.since.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or(VmError::Timeout { timeout_ms })
    }

    /// Waits until there is something to read from `fd`, its end included.
    fn wait_readable(&self, fd: BorrowedFd<'_>) -> Result<(), VmError> {
        loop {
            let left = Timespec::try_from(self.left()?).expect("a boot's deadline is minutes");
            // Without events, what is heard of a pipe is that its reader has gone.
            let mut fds = [
                PollFd::from_borrowed_fd(fd, PollFlags::IN),
                PollFd::from_borrowed_fd(self.caller, PollFlags::empty()),
                PollFd::new(&self.interrupts, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(host_error("wait for the guest")(error)),
            }
            if fds[1..].iter().any(|fd| !fd.revents().is_empty()) {
                return Err(VmError::Interrupted);
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
        }
    }
}

fn open_kvm() -> Result<OwnedFd, VmError> {
    const KVM: &str = "/dev/kvm";
    let kvm = open("KVM device", Path::new(KVM), OFlags::RDWR)?;
    sys::kvm_api_version(kvm.as_fd()).map_err(|source| VmError::Open {
        what: "KVM device",
        path: KVM.into(),
        source,
    })?;
    Ok(kvm)
}

fn open(what: &'static str, path: &Path, flags: OFlags) -> Result<OwnedFd, VmError> {
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::open(path, flags | OFlags::CLOEXEC, mode).map_err(|error| VmError::Open {
        what,
        path: path.to_owned(),
        source: error.into(),
    })
}

fn listen(state_dir: &impl AsFd, name: &str) -> Result<UnixListener, VmError> {
    let fd = state_dir.as_fd().as_raw_fd();
    // By way of the descriptor: a socket's path has at most 108 bytes.
    UnixListener::bind(format!("/proc/self/fd/{fd}/{name}")).map_err(host_error("make a socket"))
}
