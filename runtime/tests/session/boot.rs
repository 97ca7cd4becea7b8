//! What goes wrong before there is a container: one line that says what, and nothing left behind.

use crate::harness::{Place, wait};

fn create_fails(mode: &str, more: &str) -> String {
    let place = Place::with(mode, more);
    place.fails(1, &["create", "c"])
}

#[test]
fn the_vmm_says_why() {
    assert_eq!(
        create_fails("refuse", ""),
        "lazaret-vmm: no room for the guest"
    );
}

#[test]
fn the_vmm_dies() {
    assert_eq!(
        create_fails("die", ""),
        "lazaret-vmm failed: the fake VMM fails"
    );
}

#[test]
fn the_guest_panics() {
    assert_eq!(create_fails("panic", ""), "the guest kernel panicked");
    assert_eq!(
        create_fails("panic", "console = \"console.log\""),
        "the guest kernel panicked: Kernel panic - not syncing: fake"
    );
}

#[test]
fn the_guest_resets() {
    assert_eq!(create_fails("reset", ""), "the guest reset itself");
}

#[test]
fn the_guest_never_answers() {
    assert_eq!(
        create_fails("silent", "boot_timeout_ms = 1000"),
        "guest did not answer within 1000 ms (`boot_timeout_ms`)"
    );
}

#[test]
fn the_agent_is_from_another_release() {
    let message = create_fails("version", "");
    assert!(
        message.starts_with("guest agent speaks version 99 of the protocol, not "),
        "{message}"
    );
}

#[test]
fn the_guest_dies_during_a_call() {
    let message = create_fails("deaf", "");
    assert_eq!(message, "lazaret-vmm was killed by signal 6");
}

#[test]
fn the_agent_refuses() {
    let place = Place::new();
    place.bundle(&["@refused"], |_| {});
    assert_eq!(
        place.fails(1, &["create", "c"]),
        "exec: \"@refused\": no such program"
    );
    assert_eq!(
        place.fails(1, &["run", "c"]),
        "exec: \"@refused\": no such program"
    );
}

#[test]
fn missing_files_are_named() {
    for (key, start) in [
        ("vmm", "cannot start "),
        ("kernel", "cannot open guest kernel "),
        ("initramfs", "cannot open initramfs "),
    ] {
        let place = Place::new();
        let file = place.path().join("config.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with(key)).collect();
        let text = format!("{}\n{key} = \"/no/such/file\"\n", lines.join("\n"));
        std::fs::write(&file, text).unwrap();
        assert_eq!(
            place.fails(1, &["create", "c"]),
            format!("{start}/no/such/file: no such file or directory")
        );
    }
}

#[test]
fn what_the_caller_names_and_is_not_there_is_told() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |_| {});
    for (arguments, message) in [
        (
            &["create", "--pid-file", "/no/such/pid", "c"][..],
            "cannot write pid file /no/such/pid: no such file or directory",
        ),
        (
            &["create", "--pidfd-socket", "/no/such/socket", "c"],
            "cannot connect to /no/such/socket: no such file or directory",
        ),
    ] {
        assert_eq!(place.fails(1, arguments), message);
        assert_eq!(place.leftovers(), [""; 0]);
    }
    let output = place.call(&["--log", "/no/such/log", "create", "c"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "cannot open log /no/such/log: no such file or directory\n"
    );
    let message = place.fails(1, &[]);
    assert_eq!(message, "lazaret: a verb is missing, see --help");
}

/// A `create` whose guest never answers, as far as its VMM.
fn hanging(place: &Place) -> std::process::Child {
    let child = place.command(&["create", "c"]).spawn().unwrap();
    wait("it is being created", || {
        !place.leftovers().is_empty() && place.status("c") == "creating"
    });
    child
}

#[test]
fn a_killed_command_line_leaves_nothing() {
    let place = Place::with("silent", "");
    let mut child = hanging(&place);
    assert_eq!(
        place.fails(1, &["delete", "c"]),
        "cannot delete container c that is not stopped: creating"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    // Long before the boot's deadline.
    wait("the monitor has cleaned up", || {
        place.leftovers().is_empty()
    });
}

#[test]
fn delete_by_force_waits_for_the_creator() {
    let place = Place::with("silent", "boot_timeout_ms = 1500");
    let mut child = hanging(&place);
    place.ok(&["delete", "--force", "c"]);
    assert!(place.leftovers().is_empty());
    assert_eq!(crate::harness::ends(&mut child), 1);
}

#[test]
fn a_run_can_be_interrupted_while_the_guest_boots() {
    let place = Place::with("silent", "");
    let run = place
        .command(&["run", "c"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait("the VM is being started", || {
        std::fs::exists(place.path().join("state/c/vsock.sock")).unwrap()
    });
    let pid = i32::try_from(run.id()).unwrap();
    crate::harness::signal(pid, nix::sys::signal::Signal::SIGINT);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(crate::harness::message(&stderr), "interrupted");
}
