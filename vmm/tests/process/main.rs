//! `lazaret-vmm` as a process, driven over its launch socket with tiny kernels on `/dev/kvm`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{os::fd::OwnedFd, process::Command};

use lazaret_protocol::{
    VERSION, frame,
    vm::{ControlAnswer, ControlReply, ControlRequest, ExitReason, Fd, Launch, Launched},
};

mod attach;
#[path = "../../src/vm/tests/script.rs"]
#[allow(dead_code, reason = "the crate's own tests use the rest")]
mod script;
mod vmm;

use vmm::{Vmm, fds, launch};

/// `mov $0xfe, %al; out %al, $0x64`
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// `movw $0x1234, 0x472`, then as [`RESET`].
const PANIC: &[u8] = &[
    0x66, 0xc7, 0x04, 0x25, 0x72, 0x04, 0x00, 0x00, 0x34, 0x12, 0xb0, 0xfe, 0xe6, 0x64,
];
/// `jmp .`
const SPIN: &[u8] = &[0xeb, 0xfe];

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

/// The monitor blocks all signals, and its children inherit that.
#[test]
fn blocked_signals_are_not_inherited() {
    let number = vmm_sys_util::signal::SIGRTMIN();
    vmm_sys_util::signal::block_signal(number).unwrap();
    let (vmm, launched) = Vmm::launch(&launch(), &fds(SPIN));
    vmm_sys_util::signal::unblock_signal(number).unwrap();
    assert_eq!(launched, Ok(()));
    // A spinning vCPU stops for nothing but the signal.
    frame::write(&mut &vmm.socket, &ControlRequest::Pause).unwrap();
    let paused: ControlReply = frame::read(&mut &vmm.socket).unwrap();
    assert_eq!(paused, Ok(ControlAnswer::Done));
    frame::write(&mut &vmm.socket, &ControlRequest::Shutdown).unwrap();
    assert_eq!(vmm.end().0, ExitReason::Shutdown);
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
    let no_kernel: [OwnedFd; 2] = [script::kvm(), tempfile::tempfile().unwrap().into()];
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
