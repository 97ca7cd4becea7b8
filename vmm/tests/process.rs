//! `lazaret-vmm` as a process, driven over its launch socket with tiny kernels on `/dev/kvm`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::File,
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, Command, Stdio},
};

use lazaret_protocol::{
    VERSION, frame,
    vm::{
        ControlAnswer, ControlReply, ControlRequest, DeviceConfig, ExitReason, Fd, Launch,
        Launched, VmConfig,
    },
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// `mov $0xfe, %al; out %al, $0x64`
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// `movw $0x1234, 0x472`, then as [`RESET`].
const PANIC: &[u8] = &[
    0x66, 0xc7, 0x04, 0x25, 0x72, 0x04, 0x00, 0x00, 0x34, 0x12, 0xb0, 0xfe, 0xe6, 0x64,
];
/// `jmp .`
const SPIN: &[u8] = &[0xeb, 0xfe];

/// An ELF kernel of raw 64-bit code.
fn kernel(code: &[u8]) -> File {
    const ADDRESS: u64 = 0x10_0000;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend([ADDRESS, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend(0_u32.to_le_bytes());
    image.extend(
        [64_u16, 56, 1, 0, 0, 0]
            .into_iter()
            .flat_map(u16::to_le_bytes),
    );
    image.extend([1_u32, 7].into_iter().flat_map(u32::to_le_bytes));
    let bytes = code.len() as u64;
    let fields = [120, ADDRESS, ADDRESS, bytes, bytes, 1];
    image.extend(fields.into_iter().flat_map(u64::to_le_bytes));
    image.extend(code);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file
}

fn launch() -> Launch {
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
        },
    }
}

/// `/dev/kvm` and a kernel of `code`.
fn fds(code: &[u8]) -> Vec<OwnedFd> {
    let kvm = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("these tests need /dev/kvm, readable and writable");
    vec![kvm.into(), kernel(code).into()]
}

struct Vmm {
    process: Child,
    socket: UnixStream,
}

impl Vmm {
    fn start() -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"))
            .args(["--launch-fd", &theirs.as_raw_fd().to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { process, socket }
    }

    fn send(&self, bytes: &[u8], fds: &[OwnedFd]) {
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let part = [IoSlice::new(bytes)];
        let sent = sendmsg(&self.socket, &part, &mut control, SendFlags::empty()).unwrap();
        assert_eq!(sent, bytes.len());
    }

    fn launch(launch: &Launch, fds: &[OwnedFd]) -> (Self, Launched) {
        let vmm = Self::start();
        vmm.send(&frame::encode(launch).unwrap(), fds);
        let launched = frame::read(&mut &vmm.socket).unwrap();
        (vmm, launched)
    }

    /// Waits for the end: the reason and what is on standard error.
    fn end(mut self) -> (ExitReason, String) {
        let status = self.process.wait().unwrap();
        let mut log = String::new();
        let mut stderr = self.process.stderr.take().unwrap();
        stderr.read_to_string(&mut log).unwrap();
        let code = status.code().expect("it exits by itself");
        (ExitReason::from_code(code).unwrap(), log)
    }
}

/// The line with which a launch is refused.
fn refusal(launch: &Launch, fds: &[OwnedFd]) -> String {
    let (vmm, launched) = Vmm::launch(launch, fds);
    let line = launched.unwrap_err();
    let (reason, log) = vmm.end();
    assert_eq!(reason, ExitReason::Error);
    assert_eq!(log, format!("lazaret-vmm: {line}\n"));
    line
}

#[test]
fn the_exit_code_tells_reset_from_panic() {
    for (code, expected) in [(RESET, ExitReason::Reset), (PANIC, ExitReason::Panic)] {
        let (vmm, launched) = Vmm::launch(&launch(), &fds(code));
        assert_eq!(launched, Ok(()));
        assert_eq!(vmm.end(), (expected, String::new()));
    }
}

#[test]
fn the_launch_socket_is_a_lifeline() {
    let (vmm, launched) = Vmm::launch(&launch(), &fds(SPIN));
    assert_eq!(launched, Ok(()));
    vmm.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(vmm.end(), (ExitReason::Shutdown, String::new()));
}

#[test]
fn the_launch_socket_serves_requests() {
    let (vmm, _) = Vmm::launch(&launch(), &fds(SPIN));
    let ask = |request: &ControlRequest| -> ControlReply {
        frame::write(&mut &vmm.socket, request).unwrap();
        frame::read(&mut &vmm.socket).unwrap()
    };
    let Ok(ControlAnswer::Description(description)) = ask(&ControlRequest::Describe) else {
        panic!("no description");
    };
    assert_eq!(description.name, "sandbox-1");
    assert_eq!(description.pid, vmm.process.id());
    assert_eq!(ask(&ControlRequest::Shutdown), Ok(ControlAnswer::Done));
    assert_eq!(vmm.end(), (ExitReason::Shutdown, String::new()));
}

#[test]
fn a_launch_may_arrive_in_pieces() {
    let vmm = Vmm::start();
    let bytes = frame::encode(&launch()).unwrap();
    vmm.send(&bytes[..1], &fds(RESET));
    for byte in &bytes[1..] {
        vmm.send(&[*byte], &[]);
    }
    assert_eq!(frame::read::<Launched>(&mut &vmm.socket).unwrap(), Ok(()));
    assert_eq!(vmm.end().0, ExitReason::Reset);
}

#[test]
fn a_wrong_launch_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut Launch)| {
        let mut launch = launch();
        change(&mut launch);
        refusal(&launch, &fds(RESET))
    };
    assert!(refused(&|launch| launch.version = 99).contains("version 99"));
    assert!(refused(&|launch| launch.vm.name = "a/b".into()).starts_with("name:"));
    assert!(refused(&|launch| launch.vm.name.clear()).starts_with("name:"));
    assert!(refused(&|launch| launch.vm.vcpus = 0).starts_with("vcpus: 0"));
    assert!(refused(&|launch| launch.vm.kvm = Fd(7)).starts_with("kvm: descriptor 7"));
    assert!(refused(&|launch| launch.vm.control = Some(Fd(0))).starts_with("kvm: descriptor 0"));
    let mut surplus = fds(RESET);
    surplus.push(tempfile::tempfile().unwrap().into());
    assert!(refusal(&launch(), &surplus).starts_with("1 descriptors"));
    let no_kernel: [OwnedFd; 2] = [
        File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap()
            .into(),
        tempfile::tempfile().unwrap().into(),
    ];
    assert!(refusal(&launch(), &no_kernel).starts_with("kernel: cannot read the ELF header"));
}

#[test]
fn what_is_no_launch_ends_the_vmm() {
    let version = u8::try_from(VERSION).unwrap();
    for bytes in [&[0xff_u8; 4][..], &[0, 0, 0, 2, version, 1], &[0, 0]] {
        let vmm = Vmm::start();
        vmm.send(bytes, &[]);
        vmm.socket.shutdown(std::net::Shutdown::Write).unwrap();
        let launched: Launched = frame::read(&mut &vmm.socket).unwrap();
        assert!(
            launched
                .unwrap_err()
                .starts_with("cannot receive the launch")
        );
        assert_eq!(vmm.end().0, ExitReason::Error);
    }
}

#[test]
fn wrong_arguments_are_explained() {
    for args in [
        &[][..],
        &["--launch-fd"],
        &["--launch-fd", "3", "x"],
        &["--nonsense"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"))
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .starts_with("Usage:")
        );
    }
    for fd in ["1", "-1", "x", "999"] {
        let output = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"))
            .args(["--launch-fd", fd])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            String::from_utf8(output.stderr)
                .unwrap()
                .contains("--launch-fd")
        );
    }
    let help = Command::new(env!("CARGO_BIN_EXE_lazaret-vmm"))
        .arg("--help")
        .output()
        .unwrap();
    assert!(help.status.success());
    assert!(
        String::from_utf8(help.stdout)
            .unwrap()
            .contains("LAZARET_LOG")
    );
}
