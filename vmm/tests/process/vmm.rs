//! A `lazaret-vmm` process and our end of its launch socket.

use std::{
    io::{IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
};

use lazaret_protocol::{
    VERSION, frame,
    vm::{DeviceConfig, ExitReason, Fd, Launch, Launched, VmConfig},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::script;

/// A VM with one processor, whose descriptors are those of [`fds`].
pub(crate) fn launch() -> Launch {
    Launch {
        version: VERSION,
        vm: VmConfig {
            name: "sandbox-1".into(),
            kvm: Fd(0),
            kernel: Fd(1),
            initramfs: None,
            command_line: String::new(),
            memory_mib: 16,
            huge_pages: false,
            vcpus: 1,
            nested: false,
            control: None,
            devices: vec![DeviceConfig::Rng],
            spare_slots: 0,
        },
    }
}

/// `/dev/kvm` and a kernel of `code`.
pub(crate) fn fds(code: &[u8]) -> Vec<OwnedFd> {
    vec![script::kvm(), script::kernel(code, false).into()]
}

/// The process, which ends with our end of its launch socket.
pub(crate) struct Vmm {
    pub(crate) process: Child,
    pub(crate) socket: UnixStream,
}

impl Vmm {
    pub(crate) fn start() -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"))
            .args(["--launch-fd", &theirs.as_raw_fd().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process, socket }
    }

    pub(crate) fn send(&self, bytes: &[u8], fds: &[OwnedFd]) {
        send(&self.socket, bytes, fds);
    }

    pub(crate) fn launch(launch: &Launch, fds: &[OwnedFd]) -> (Self, Launched) {
        let vmm = Self::start();
        vmm.send(&frame::encode(launch).unwrap(), fds);
        let launched = frame::read(&mut &vmm.socket).unwrap();
        (vmm, launched)
    }

    /// Waits for the end: the reason and what is on standard error.
    pub(crate) fn end(mut self) -> (ExitReason, String) {
        let status = self.process.wait().unwrap();
        let mut log = String::new();
        let mut stderr = self.process.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        let code = status.code().expect("it exits by itself");
        (ExitReason::from_code(code).unwrap(), log)
    }
}

/// Sends `bytes` at once, with `fds` attached to the first of them.
pub(crate) fn send(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
    }
    let part = [IoSlice::new(bytes)];
    let sent = sendmsg(socket, &part, &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
}
