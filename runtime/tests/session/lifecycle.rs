//! From `create` to `delete`, and what each state refuses.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Place, ends, signal};

#[test]
fn created_running_stopped_deleted() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |config| {
        config["annotations"] = json!({"a": "b"});
    });
    let pid_file = place.path().join("pid");
    let status = place
        .command(&["create", "--pid-file", pid_file.to_str().unwrap(), "c"])
        .status()
        .unwrap();
    assert!(status.success());

    let state = place.state("c");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(state["status"], "created");
    assert_eq!(state["ociVersion"], "1.0.2-dev");
    assert_eq!(state["annotations"], json!({"a": "b"}));
    let bundle = place.path().canonicalize().unwrap().join("bundle");
    assert_eq!(state["bundle"], bundle.to_str().unwrap());
    assert_eq!(
        place.fails(1, &["create", "c"]),
        "container with id exists: c"
    );

    place.ok(&["start", "c"]);
    assert_eq!(place.status("c"), "running");
    assert_eq!(
        place.fails(1, &["start", "c"]),
        "cannot start an already running container"
    );
    assert_eq!(
        place.fails(1, &["delete", "c"]),
        "cannot delete container c that is not stopped: running"
    );
    assert_eq!(place.fails(1, &["resume", "c"]), "container not paused");
    assert_eq!(
        place.fails(1, &["kill", "c", "FOO"]),
        "unknown signal \"FOO\""
    );

    place.ok(&["pause", "c"]);
    assert_eq!(place.status("c"), "paused");
    assert_eq!(place.fails(1, &["pause", "c"]), "container not running");
    place.ok(&["resume", "c"]);
    assert_eq!(
        place.ok(&["ps", "--format", "json", "c"]),
        format!("[{pid}]\n")
    );

    place.ok(&["kill", "c", "0"]);
    place.ok(&["kill", "c", "KILL"]);
    place.wait_status("c", "stopped");
    assert_eq!(place.pid("c"), 0);
    assert_eq!(place.fails(1, &["kill", "c", "0"]), "container not running");
    place.ok(&["kill", "--all", "c", "KILL"]);
    place.ok(&["kill", "--all", "c", "0"]);
    assert_eq!(
        place.fails(1, &["kill", "--all", "c", "FOO"]),
        "unknown signal \"FOO\""
    );
    assert_eq!(
        place.fails(1, &["start", "c"]),
        "cannot start a container that has stopped"
    );
    assert_eq!(place.fails(1, &["kill", "c"]), "container not running");
    assert_eq!(
        place.ok(&["ps", "c"]),
        "UID          PID    PPID  C STIME TTY          TIME CMD\n"
    );
    assert_eq!(place.ok(&["ps", "--format", "json", "c"]), "null\n");
    assert_eq!(
        place.fails(1, &["ps", "--format", "xml", "c"]),
        "--format: must be table or json"
    );
    place.ok(&["delete", "c"]);
    assert_eq!(place.fails(1, &["delete", "c"]), "container does not exist");
    place.ok(&["delete", "--force", "c"]);
}

#[test]
fn a_created_container_can_be_killed_and_deleted() {
    let place = Place::new();
    place.create("killed");
    place.ok(&["kill", "killed", "TERM"]);
    place.wait_status("killed", "stopped");
    place.ok(&["delete", "killed"]);
    place.create("deleted");
    place.ok(&["delete", "deleted"]);
}

#[test]
fn a_running_container_is_deleted_by_force() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |_| {});
    let status = place.command(&["run", "--detach", "c"]).status().unwrap();
    assert!(status.success());
    assert_eq!(place.status("c"), "running");
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn run_exits_as_its_process_does() {
    let place = Place::new();
    for code in [0, 1, 7, 255] {
        place.bundle(&["sh", "-c", &format!("exit {code}")], |_| {});
        assert_eq!(place.call(&["run", "c"]).status.code(), Some(code));
    }
    place.bundle(&["sh", "-c", "kill -KILL $$"], |_| {});
    assert_eq!(place.call(&["run", "c"]).status.code(), Some(137));
}

#[test]
fn run_keeps_what_it_is_told_to() {
    let place = Place::new();
    place.ok(&["run", "--keep", "c"]);
    assert_eq!(place.status("c"), "stopped");
    let list = place.ok(&["list"]);
    assert!(list.contains("stopped"), "{list}");
    assert_eq!(place.ok(&["list", "--quiet"]), "c\n");
    place.ok(&["delete", "c"]);
}

#[test]
fn signals_reach_the_process() {
    let place = Place::new();
    place.bundle(
        &[
            "sh",
            "-c",
            "trap 'exit 42' TERM; echo ready; while :; do sleep 0.1; done",
        ],
        |_| {},
    );
    for to_monitor in [false, true] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut run = place.command(&["run", "c"]).stdout(writer).spawn().unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(&mut reader, &mut ready).unwrap();
        let pid = if to_monitor {
            place.pid("c")
        } else {
            i32::try_from(run.id()).unwrap()
        };
        signal(pid, Signal::SIGTERM);
        assert_eq!(ends(&mut run), 42);
    }
}

#[test]
fn the_state_root_may_be_deep() {
    let place = Place::new().deep();
    place.ok(&["run", "c"]);
}

#[test]
fn twenty_at_once() {
    let place = Place::new();
    // One bundle for all, so their cgroups have the names of their ids.
    place.bundle(&["sh", "-c", "exit 3"], |config| {
        config["linux"]["cgroupsPath"] = "".into();
    });
    let name = place.path().file_name().unwrap().to_str().unwrap();
    let run = |n: u32| {
        let id = format!("c{name}-{n}");
        place.command(&["run", &id]).spawn().unwrap()
    };
    let mut runs: Vec<_> = (0..20).map(run).collect();
    for run in &mut runs {
        assert_eq!(ends(run), 3);
    }
}
