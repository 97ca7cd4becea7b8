//! Figures, limits and processes of a container that runs: `events`, `update`, `ps`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
};

use serde_json::{Value, json};

use crate::harness::{Place, ends, message};

/// The message of the one line on standard error, a warning.
fn warning(stderr: &[u8]) -> String {
    let text = String::from_utf8(stderr.to_vec()).unwrap();
    assert!(text.contains(" level=warning msg="), "{text}");
    message(&text.replace("level=warning", "level=error"))
}

/// A place with a running container `c` that has limits.
fn with_container() -> Place {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
        config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    });
    let status = place.command(&["run", "-d", "c"]).status().unwrap();
    assert!(status.success());
    place
}

/// What the guest's cgroup has been told, as far as it was told anything.
fn file(place: &Place, name: &str) -> Value {
    let resources = place.record("c")["resources"].clone();
    resources.pointer(name).cloned().unwrap_or(Value::Null)
}

#[test]
fn limits_are_changed_and_kept() {
    let place = with_container();
    place.ok(&["update", "--pids-limit", "7", "--cpu-quota=-1", "c"]);
    assert_eq!(file(&place, "/pids/limit"), 7);
    assert_eq!(file(&place, "/cpu/quota"), -1);
    assert_eq!(file(&place, "/cpu/period"), 100_000);
    assert_eq!(file(&place, "/memory/limit"), 64 << 20);
    place.ok(&[
        "update",
        "c",
        "--memory",
        "32M",
        "--memory-reservation",
        "1m",
    ]);
    assert_eq!(file(&place, "/memory/limit"), 32 << 20);
    assert_eq!(file(&place, "/memory/reservation"), 1 << 20);
    // No limit of memory is none of swap.
    place.ok(&["update", "c", "--memory", "-1"]);
    assert_eq!(file(&place, "/memory/swap"), -1);
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn limits_come_from_a_file_or_standard_input() {
    let place = with_container();
    let path = place.path().join("limits.json");
    let limits = json!({"pids": {"limit": 9}, "cpu": {"shares": 512, "quota": 0}});
    std::fs::write(&path, limits.to_string()).unwrap();
    // Options beside it are ignored, as by runc.
    let path = path.to_str().unwrap();
    place.ok(&["update", "-r", path, "--pids-limit", "1", "c"]);
    assert_eq!(file(&place, "/pids/limit"), 9);
    assert_eq!(
        file(&place, "/cpu"),
        json!({"shares": 512, "quota": 50_000, "period": 100_000})
    );
    let mut command = place.command(&["update", "--resources", "-", "c"]);
    let mut update = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = update.stdin.take().unwrap();
    stdin
        .write_all(br#"{"memory": {"limit": 4194304}}"#)
        .unwrap();
    drop(stdin);
    assert_eq!(ends(&mut update), 0);
    assert_eq!(file(&place, "/memory/limit"), 4_194_304);
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn a_limit_that_is_refused_changes_nothing() {
    let place = with_container();
    let before = place.record("c");
    let path = place.path().join("limits.json");
    let file = path.to_str().unwrap();
    for (limits, start) in [
        ("{", "--resources: EOF while parsing an object"),
        (
            r#"{"memory": {"limit": "much"}}"#,
            "--resources: memory.limit: invalid type: string",
        ),
        (
            r#"{"unified": {"memory.max": "refused"}}"#,
            "write to memory.max: refused",
        ),
    ] {
        std::fs::write(&path, limits).unwrap();
        let message = place.fails(1, &["update", "-r", file, "c"]);
        assert!(message.starts_with(start), "{message}");
    }
    for (option, value, expected) in [
        ("--memory-swap", "1M", "linux.resources.memory.swap: "),
        (
            "--cpu-share",
            "1",
            "linux.resources.cpu.shares: must be a number",
        ),
        ("--cpuset-cpus", "x", "linux.resources.cpu.cpus: "),
        (
            "--l3-cache-schema",
            "L3:0=f",
            "Intel RDT/CAT: l3 cache schema is not enabled",
        ),
        (
            "--mem-bw-schema",
            "MB:0=1",
            "Intel RDT/MBA: memory bandwidth schema is not enabled",
        ),
        (
            "--resources",
            "/no/such/file",
            "cannot read /no/such/file: no such file",
        ),
    ] {
        let message = place.fails(1, &["update", option, value, "c"]);
        assert!(message.starts_with(expected), "{option}: {message}");
    }
    assert_eq!(place.record("c"), before);
    place.ok(&["delete", "-f", "c"]);
    assert_eq!(
        place.fails(1, &["update", "--pids-limit", "1", "c"]),
        "container does not exist"
    );
}

#[test]
fn wrong_values_are_told_by_their_option() {
    let place = Place::new();
    for (option, value) in [
        ("--memory", "much"),
        ("--cpu-period", "-1"),
        ("--blkio-weight", "x"),
        ("--pids-limit", "many"),
    ] {
        let output = place.call(&["update", option, value, "c"]);
        assert_eq!(output.status.code(), Some(1));
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(option), "{stderr}");
    }
}

#[test]
fn a_limit_beyond_the_vm_is_a_warning() {
    let place = with_container();
    let output = place.call(&["update", "--memory", "100M", "c"]);
    assert!(output.status.success());
    assert_eq!(
        warning(&output.stderr),
        "linux.resources.memory.limit: the VM has 129 MiB, beyond which the limit has no effect"
    );
    let output = place.call(&["update", "--kernel-memory", "1", "c"]);
    assert!(output.status.success());
    assert_eq!(
        warning(&output.stderr),
        "Setting --kernel-memory is ignored and will be removed"
    );
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn a_limit_below_the_usage_is_refused_if_that_is_asked_for() {
    let place = with_container();
    // The stand-in's cgroup says what it was told.
    let path = place.path().join("limits.json");
    let file = path.to_str().unwrap();
    let limits = json!({"unified": {"memory.current": "9000000"}});
    std::fs::write(&path, limits.to_string()).unwrap();
    place.ok(&["update", "-r", file, "c"]);
    let limits = json!({"memory": {"limit": 8_000_000, "checkBeforeUpdate": true}});
    std::fs::write(&path, limits.to_string()).unwrap();
    assert_eq!(
        place.fails(1, &["update", "-r", file, "c"]),
        "linux.resources.memory.limit: unable to set memory limit to 8000000 (current usage: \
         9000000)"
    );
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn figures_are_told_once() {
    let place = with_container();
    let line = place.ok(&["events", "--stats", "c"]);
    assert!(
        line.starts_with(r#"{"type":"stats","id":"c","data":{"cpu":"#),
        "{line}"
    );
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(event["data"]["pids"], json!({}));
    place.ok(&["update", "--pids-limit", "5", "c"]);
    let event: Value = serde_json::from_str(&place.ok(&["events", "--stats", "c"])).unwrap();
    assert_eq!(event["data"]["pids"]["limit"], 5);
    for interval in ["0", "-1s", "0s"] {
        assert_eq!(
            place.fails(1, &["events", "--interval", interval, "c"]),
            "--interval: duration interval must be greater than 0"
        );
    }
    place.ok(&["kill", "c", "KILL"]);
    place.wait_status("c", "stopped");
    assert_eq!(
        place.fails(1, &["events", "c"]),
        "container with id c is not running"
    );
    place.ok(&["delete", "c"]);
}

#[test]
fn events_come_until_the_container_ends() {
    let place = with_container();
    let path = place.path().join("limits.json");
    let mut command = place.command(&["events", "--interval", "50ms", "c"]);
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with(r#"{"type":"stats""#), "{first}");
    let mut kill = |kills: &str, expected: usize| {
        let limits = json!({"unified": {"fake.kills": kills}});
        std::fs::write(&path, limits.to_string()).unwrap();
        place.ok(&["update", "-r", path.to_str().unwrap(), "c"]);
        let mut seen = 0;
        while seen < expected {
            let line = lines.next().unwrap().unwrap();
            seen += usize::from(line == r#"{"type":"oom","id":"c"}"#);
        }
    };
    kill("1", 1);
    kill("3", 2);
    place.ok(&["delete", "-f", "c"]);
    assert_eq!(ends(&mut events), 0);
}

#[test]
fn processes_are_shown_as_ps_does() {
    let place = with_container();
    let table = place.ok(&["ps", "c"]);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[0],
        "UID          PID    PPID  C STIME TTY          TIME CMD"
    );
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[1].starts_with("root           7       1 20 "),
        "{table}"
    );
    assert!(lines[2].ends_with(" ?        00:00:02 sh -c 8"), "{table}");
    let table = place.ok(&["ps", "c", "-e", "-o", "pid,args"]);
    assert_eq!(table, "    PID COMMAND\n      7 sh -c 7\n      8 sh -c 8\n");
    let pid = place.pid("c");
    assert_eq!(place.ok(&["ps", "-f", "json", "c"]), format!("[{pid}]\n"));
    for (arguments, expected) in [
        (&["-l"][..], "ps: option \"-l\" of ps is not supported"),
        (&["-o", "args"], "ps: couldn't find PID field in ps output"),
    ] {
        let arguments = [&["ps", "c"], arguments].concat();
        assert_eq!(place.fails(1, &arguments), expected);
    }
    assert_eq!(
        place.fails(1, &["ps", "-f", "xml", "c"]),
        "--format: must be table or json"
    );
    place.ok(&["delete", "-f", "c"]);
}
