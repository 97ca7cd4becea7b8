//! Further processes in a running container.

use std::{
    io::{Read as _, Write as _},
    process::Stdio,
};

use serde_json::json;

use crate::harness::{Place, wait};

/// A place with a running container `c`.
fn with_container() -> Place {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |_| {});
    let status = place.command(&["run", "-d", "c"]).status().unwrap();
    assert!(status.success());
    place
}

#[test]
fn exit_codes_and_streams() {
    let place = with_container();
    let output = place.call(&["exec", "c", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(
        place.fails(255, &["exec", "c", "@refused"]),
        "exec failed: exec: \"@refused\": no such program"
    );
    let mut exec = place
        .command(&["exec", "c", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    exec.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(exec.wait_with_output().unwrap().stdout, b"through");
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn options_after_the_command_belong_to_it() {
    let place = with_container();
    assert_eq!(
        place.ok(&["exec", "c", "echo", "-d", "--tty"]),
        "-d --tty\n"
    );
    assert_eq!(place.ok(&["exec", "c", "--", "echo", "-x"]), "-x\n");
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn detached() {
    let place = with_container();
    let pid_file = place.path().join("pid");
    let (mut reader, writer) = std::io::pipe().unwrap();
    let status = place
        .command(&["exec", "-d", "--pid-file"])
        .arg(&pid_file)
        .args(["c", "sh", "-c", "echo hello; exec sleep 1000"])
        .stdout(writer)
        .status()
        .unwrap();
    assert!(status.success());
    let mut line = [0; 6];
    reader.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"hello\n");
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    crate::harness::signal(pid, nix::sys::signal::Signal::SIGTERM);
    wait("the exec's monitor ends with its process", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn a_process_from_a_file() {
    let place = with_container();
    let file = place.path().join("process.json");
    let process = json!({"user": {}, "cwd": "/", "args": ["sh", "-c", "exit 9"]});
    std::fs::write(&file, process.to_string()).unwrap();
    let output = place.call(&["exec", "-p", file.to_str().unwrap(), "c"]);
    assert_eq!(output.status.code(), Some(9));
    // What is missing is zero: root runs it.
    let process = json!({"cwd": "/", "args": ["sh", "-c", "exit 8"]});
    std::fs::write(&file, process.to_string()).unwrap();
    let output = place.call(&["exec", "-p", file.to_str().unwrap(), "c"]);
    assert_eq!(output.status.code(), Some(8));
    for (process, problem) in [
        (json!({"cwd": "/"}), "args: args must not be empty"),
        (json!({}), "cwd: Cwd property must not be empty"),
        (json!({"cwd": "x"}), "cwd: Cwd must be an absolute path"),
    ] {
        std::fs::write(&file, process.to_string()).unwrap();
        assert_eq!(
            place.fails(255, &["exec", "-p", file.to_str().unwrap(), "c"]),
            format!("exec failed: process.{problem}")
        );
    }
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn the_end_of_the_container_is_the_end_of_its_execs() {
    let place = with_container();
    let mut exec = place.command(&["exec", "c", "sleep", "5"]).spawn().unwrap();
    wait("it runs", || {
        let children = std::fs::read_to_string(format!("/proc/{}/stat", exec.id())).unwrap();
        children.contains(" S ")
    });
    place.ok(&["delete", "-f", "c"]);
    let code = crate::harness::ends(&mut exec);
    assert!(matches!(code, 137 | 255), "{code}");
}

#[test]
fn wrong_calls() {
    let place = with_container();
    for (arguments, message) in [
        (
            &["exec", "c"][..],
            "exec failed: process args cannot be empty",
        ),
        (
            &["exec", "nope", "true"],
            "exec failed: container does not exist",
        ),
        (
            &["exec", "-u", "root", "c", "true"],
            "exec failed: --user: \"root\" is not of the form UID[:GID]",
        ),
        (
            &["exec", "--preserve-fds", "1", "c", "true"],
            "exec failed: unable to stat preserved-fd 0 (of 1): stat /proc/self/fd/3: no such file or directory",
        ),
        (
            &["exec", "--cgroup", "cpu:x", "c", "true"],
            "exec failed: invalid --cgroup argument: cpu:x (a guest has cgroup v2: give a path alone)",
        ),
        (
            &["exec", "--cgroup", "a:b:c", "c", "true"],
            "exec failed: invalid --cgroup argument: a:b:c",
        ),
        (
            &["exec", "--cgroup", "a", "--cgroup", "b", "c", "true"],
            "exec failed: invalid --cgroup argument: a (missing <controller>: prefix)",
        ),
        (
            &["exec", "-d", "-t", "c", "true"],
            "exec failed: --console-socket: cannot allocate tty if lazaret will detach without setting console socket",
        ),
    ] {
        assert_eq!(place.fails(255, arguments), message);
    }
    let output = place.call(&["exec", "--cap", "CAP_X", "c", "true"]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{warning}");
    assert!(warning.contains("CAP_X"), "{warning}");
    assert!(warning.contains("is unknown, ignored"), "{warning}");
    place.ok(&["pause", "c"]);
    assert_eq!(
        place.fails(255, &["exec", "c", "true"]),
        "exec failed: cannot exec in a paused container (use --ignore-paused to override)"
    );
    place.ok(&["exec", "--ignore-paused", "c", "true"]);
    place.ok(&["delete", "-f", "c"]);
}
