//! Processes of ours that are killed: the state converges, the others follow, `delete` cleans up.

use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::harness::{Place, message, signal, wait};

fn running(place: &Place) {
    place.bundle(&["sleep", "5"], |_| {});
    let status = place.command(&["run", "-d", "c"]).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_vmm_is_killed() {
    let place = Place::new();
    running(&place);
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
    place.bundle(&["sleep", "5"], |_| {});
    let run = place
        .command(&["run", "c"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("it runs", || {
        !place.leftovers().is_empty() && place.status("c") == "running"
    });
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
    running(&place);
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
    running(&place);
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
    place.bundle(&["sleep", "5"], |_| {});
    let run = place
        .command(&["run", "c"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait("it runs", || {
        !place.leftovers().is_empty() && place.status("c") == "running"
    });
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
    place.bundle(&["sleep", "1000"], |_| {});
    let mut run = place.command(&["run", "c"]).spawn().unwrap();
    wait("it runs", || {
        !place.leftovers().is_empty() && place.status("c") == "running"
    });
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(place.status("c"), "running");
    place.ok(&["delete", "-f", "c"]);
}
