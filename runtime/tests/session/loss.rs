//! Processes of ours that are killed: the state converges, the others follow, `delete` cleans up.

use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::harness::{Place, message, signal, wait};

#[test]
fn the_vmm_is_killed() {
    let place = Place::new();
    place.run_detached(&["sleep", "1000"]);
    signal(place.vmm("c"), Signal::SIGKILL);
    place.wait_status("c", "stopped");
    assert_eq!(
        place.fails(255, &["exec", "c", "true"]),
        "exec failed: cannot exec in a stopped container"
    );
    place.ok(&["delete", "c"]);
}

#[test]
fn the_vmm_is_killed_under_a_foreground_run() {
    let place = Place::new();
    let run = place.run_sleeping();
    signal(place.vmm("c"), Signal::SIGKILL);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(
        message(&String::from_utf8(output.stderr).unwrap()),
        "sandbox lost: lazaret-vmm was killed by signal 9"
    );
}

#[test]
fn the_guest_panics_at_start() {
    let place = Place::new();
    place.bundle(&["@panic"], |_| {});
    place.create("c");
    place.call(&["start", "c"]);
    place.wait_status("c", "stopped");
    place.ok(&["delete", "c"]);
}

#[test]
fn the_monitor_is_killed() {
    let place = Place::new();
    place.run_detached(&["sleep", "1000"]);
    let vmm = place.vmm("c");
    signal(place.pid("c"), Signal::SIGKILL);
    place.wait_status("c", "stopped");
    wait("the VMM follows", || {
        !std::path::Path::new(&format!("/proc/{vmm}")).exists()
    });
    place.ok(&["delete", "c"]);
}

#[test]
fn all_are_killed_and_the_id_is_free_again() {
    let place = Place::new();
    place.run_detached(&["sleep", "1000"]);
    signal(place.vmm("c"), Signal::SIGKILL);
    let pid = place.pid("c");
    if pid != 0 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
    }
    place.ok(&["delete", "--force", "c"]);
    place.ok(&["delete", "--force", "c"]);
    place.bundle(&["true"], |_| {});
    place.ok(&["run", "c"]);
}

#[test]
fn a_monitor_that_is_killed_under_a_foreground_run_is_reported() {
    let place = Place::new();
    let run = place.run_sleeping();
    signal(place.pid("c"), Signal::SIGKILL);
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    assert_eq!(
        message(&String::from_utf8(output.stderr).unwrap()),
        "the monitor process was killed"
    );
}

#[test]
fn a_foreground_run_is_killed_and_its_container_goes_on() {
    let place = Place::new();
    let mut run = place.run_sleeping();
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(place.status("c"), "running");
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn a_signal_at_any_moment_of_a_start_says_so() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |_| {});
    for delay_ms in 0..25 {
        let mut command = place.command(&["run", "c"]);
        let run = command.stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        signal(i32::try_from(run.id()).unwrap(), Signal::SIGTERM);
        let output = run.wait_with_output().unwrap();
        match output.status.code() {
            // Before it had begun, or when the process was there already.
            None | Some(143) => {}
            code => {
                let message = message(&String::from_utf8(output.stderr).unwrap());
                assert_eq!(
                    (code, &*message),
                    (Some(1), "interrupted"),
                    "after {delay_ms} ms"
                );
            }
        }
    }
}

#[test]
fn the_loss_of_a_detached_sandbox_is_told_in_the_log_alone() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |_| {});
    let log = place.path().join("log");
    for options in [&[][..], &["--log", log.to_str().unwrap()]] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut command = place.command(&[options, &["run", "-d", "c"]].concat());
        assert!(command.stderr(writer).status().unwrap().success());
        drop(command);
        signal(place.vmm("c"), Signal::SIGKILL);
        place.wait_status("c", "stopped");
        place.ok(&["delete", "c"]);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert_eq!(said, "");
    }
    assert_eq!(
        message(&std::fs::read_to_string(&log).unwrap()),
        "sandbox lost: lazaret-vmm was killed by signal 9"
    );
}
