//! Hooks as processes: what they are given, and how their ends are told.

use std::{fs, os::fd::AsFd as _};

use super::*;

fn hook(script: &str) -> Hook {
    Hook {
        path: "/bin/sh".to_owned(),
        args: ["sh", "-c", script].map(str::to_owned).into(),
        env: Some(vec![("NAME".to_owned(), "a=b".to_owned())]),
        timeout_s: None,
    }
}

fn state(annotations: &BTreeMap<String, String>) -> State<'_> {
    State {
        oci_version: "1.0.2",
        id: "box",
        status: "creating",
        pid: 7,
        bundle: Path::new("/bundle"),
        annotations,
    }
}

fn run_in(directory: &Path, hooks: &[Hook]) -> Result<(), String> {
    let place = Place {
        mount_namespace: None,
        directory: Some(directory),
    };
    run("prestart", hooks, state(&BTreeMap::new()), place, &[])
        .map_err(|error| crate::log::chain(&error))
}

#[test]
fn a_hook_gets_its_arguments_environment_directory_and_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let script = r#"{ echo "$0 $1 $NAME $#"; pwd; cat; } > said; env | grep -c . > count"#;
    let mut hook = hook(script);
    hook.args.extend(["zero", "one"].map(str::to_owned));
    run_in(directory.path(), &[hook]).unwrap();
    let said = fs::read_to_string(directory.path().join("said")).unwrap();
    let path = directory.path().canonicalize().unwrap();
    let state =
        r#"{"ociVersion":"1.0.2","id":"box","status":"creating","pid":7,"bundle":"/bundle"}"#;
    assert_eq!(said, format!("zero one a=b 1\n{}\n{state}", path.display()));
    // NAME, and the PWD, SHLVL and _ that shells may add.
    let count = fs::read_to_string(directory.path().join("count")).unwrap();
    assert!(count.trim().parse::<u32>().unwrap() <= 4, "{count}");
}

#[test]
fn the_state_leaves_out_what_there_is_not() {
    let annotations = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
    let mut state = state(&annotations);
    state.pid = 0;
    assert_eq!(
        state.to_json(),
        r#"{"ociVersion":"1.0.2","id":"box","status":"creating","bundle":"/bundle","annotations":{"k":"v"}}"#
    );
}

#[test]
fn the_first_failure_ends_the_list() {
    let directory = tempfile::tempdir().unwrap();
    let hooks = [
        hook("echo one > one"),
        hook("echo out; echo first >&2; echo second >&2; exit 3"),
        hook("echo three > three"),
    ];
    let error = run_in(directory.path(), &hooks).unwrap_err();
    assert_eq!(
        error,
        "hooks.prestart: error running hook #1: exit status 3, stdout: out, stderr: first; second"
    );
    assert!(directory.path().join("one").exists());
    assert!(!directory.path().join("three").exists());
}

#[test]
fn a_killed_hook_and_a_missing_one_fail() {
    let directory = tempfile::tempdir().unwrap();
    let error = run_in(directory.path(), &[hook("kill -9 $$")]).unwrap_err();
    assert!(
        error.ends_with("signal: killed, stdout: , stderr: "),
        "{error}"
    );
    let mut missing = hook("");
    missing.path = "/no/such/hook".to_owned();
    let error = run_in(directory.path(), &[missing]).unwrap_err();
    assert!(
        error.starts_with("hooks.prestart: error running hook #0: cannot execute /no/such/hook: "),
        "{error}"
    );
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut slow = hook("echo $$ > pid; exec sleep 1000");
    slow.timeout_s = Some(1);
    let error = run_in(directory.path(), &[slow]).unwrap_err();
    assert_eq!(
        error,
        "hooks.prestart: error running hook #0: hook ran past specified timeout of 1.0s"
    );
    let pid = fs::read_to_string(directory.path().join("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists());
}

#[test]
fn nobody_waits_for_what_a_hook_leaves_running() {
    let directory = tempfile::tempdir().unwrap();
    run_in(directory.path(), &[hook("sleep 1000 & echo $! > pid")]).unwrap();
    let pid = fs::read_to_string(directory.path().join("pid")).unwrap();
    crate::sys::kill(pid.trim().parse().unwrap(), libc::SIGKILL).unwrap();
}

#[test]
fn a_hook_ends_with_whoever_waits_for_it() {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let error = run(
        "prestart",
        &[hook("exec sleep 1000")],
        state(&BTreeMap::new()),
        Place::default(),
        &[writer.as_fd()],
    );
    assert_eq!(
        crate::log::chain(&error.unwrap_err()),
        "hooks.prestart: error running hook #0: interrupted"
    );
}

#[test]
fn signals_reach_a_hook_whose_parent_blocks_them() {
    crate::signals::block();
    let directory = tempfile::tempdir().unwrap();
    let error = run_in(directory.path(), &[hook("kill -TERM $$; sleep 1000")]).unwrap_err();
    assert!(error.contains("signal: terminated"), "{error}");
}
