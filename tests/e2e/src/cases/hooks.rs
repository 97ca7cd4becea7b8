//! Hooks: when each is run, with what, and what its failure means.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, mount},
    process::Signal,
};
use serde_json::{Value, json};

use super::errors::check;
use crate::{
    bundle::{Bundle, PROBE},
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "hooks",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(each_runs_in_its_turn)
        .only(NO_CRUN, "crun has states of its own for hooks")
        .covers(&[
            "runtime#lifecycle-6",
            "runtime#lifecycle-8",
            "runtime#lifecycle-10",
            "runtime#lifecycle-12",
            "runtime#lifecycle-18",
            "config#posix-platform-hooks-3..4",
            "config#posix-platform-hooks-7..9",
            "config#posix-platform-hooks-11..18",
            "config#prestart-1..4",
            "config#createruntime-hooks-1..3",
            "config#createcontainer-hooks-1..3",
            "config#startcontainer-hooks-1..3",
            "config#poststart-2..3",
            "config#poststop-1..3",
        ])
        .right("runc and lazaret: the container is `creating` until `create` is done"),
    case!(poststart_comes_after_the_process)
        .only(LAZARET, "the reference runtimes run it at create")
        .covers(&["runtime#lifecycle-15", "config#poststart-1"])
        .right("lazaret: poststart belongs to `start`, and comes after the program"),
    case!(their_mounts_come_along)
        .only(NO_CRUN, "crun runs createContainer elsewhere")
        .covers(&[
            "config#posix-platform-hooks-10",
            "config#createcontainer-hooks-4",
        ])
        .right("runc and lazaret: createContainer runs in the container's namespaces"),
    case!(they_may_ask_for_the_state).only(LAZARET, "the reference runtimes have no state yet"),
    case!(failure_before_start_leaves_nothing)
        .only(NO_CRUN, "crun words it otherwise")
        .covers(&[
            "runtime#lifecycle-7",
            "runtime#lifecycle-9",
            "runtime#lifecycle-11",
        ])
        .right("each: the wording is not specified"),
    case!(failure_in_the_container_stops_it)
        .only(LAZARET, "the reference runtimes do not tell of it")
        .covers(&["runtime#lifecycle-13"])
        .right("lazaret: the specification demands an error of `start`"),
    case!(filter_kills_one_in_the_container)
        .only(LAZARET, "the reference runtimes do not tell `start` of it"),
    case!(failure_after_start_stops_it)
        .only(LAZARET, "the specification has become stricter since")
        .covers(&["runtime#lifecycle-16"])
        .right("lazaret: an error since version 1.3.0, a warning before"),
    case!(failure_after_the_end_is_a_warning)
        .only(LAZARET, "runc makes it an error")
        .covers(&["runtime#lifecycle-19"])
        .right("lazaret: the specification demands a warning"),
    case!(environment_is_inherited_where_none_is_given),
    case!(slow_ones_are_killed).only(NO_CRUN, "crun words it otherwise"),
    case!(they_end_with_their_caller).only(LAZARET, "the reference runtimes leave them running"),
    case!(mistakes_are_refused).only(LAZARET, "about the wording of lazaret's errors"),
];

const LAZARET: &[Kind] = &[Kind::Lazaret];
const NO_CRUN: &[Kind] = &[Kind::Runc, Kind::Lazaret];

const PROBES: &[(&str, Probe)] = &[
    ("hook", hook),
    ("hook-fail", hook_fail),
    ("hook-mount", hook_mount),
];

/// The lists of hooks that the host runs.
const ON_THE_HOST: [&str; 5] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "poststart",
    "poststop",
];

/// Adds a line about itself to a file.
fn hook(arguments: &[String]) -> Result<u8> {
    let [name, log, more @ ..] = arguments else {
        anyhow::bail!("a name and a file are needed")
    };
    let mut state = String::new();
    std::io::stdin().read_to_string(&mut state)?;
    let state: Value = serde_json::from_str(&state).context("no state on standard input")?;
    let line = json!({
        "name": name,
        "more": more,
        "state": state,
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "directory": std::env::current_dir()?,
        "pid": std::process::id(),
    });
    let mut log = fs::File::options().append(true).create(true).open(log)?;
    writeln!(log, "{line}")?;
    Ok(0)
}

/// Says something and fails.
fn hook_fail(_: &[String]) -> Result<u8> {
    println!("what it said");
    eprintln!("why it failed");
    Ok(7)
}

/// Mounts a tmpfs on a directory and makes a file in it.
fn hook_mount(arguments: &[String]) -> Result<u8> {
    let directory = Path::new(arguments.first().context("no directory given")?);
    mount("tmpfs", directory, "tmpfs", MountFlags::empty(), None)?;
    fs::write(directory.join("file"), "by a hook")?;
    Ok(0)
}

/// A hook that runs a probe of the host's suite.
fn on_host(test: &Test, name: &str, arguments: &[&str]) -> Value {
    probe(&test.probe.to_string_lossy(), name, arguments)
}

/// A hook that runs a probe of the suite's binary `program`.
pub(super) fn probe(program: &str, name: &str, arguments: &[&str]) -> Value {
    let args = [&["a-name", "probe", name], arguments].concat();
    json!({
        "path": program,
        "args": args,
        "env": ["NAME=a=b"],
    })
}

fn shell(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

/// A bundle whose hooks of every list write to the log, and the log.
fn logging(test: &Test) -> Result<(Bundle, PathBuf)> {
    let mut bundle = test.bundle("touch", &["/work/ran"])?;
    let log = test.directory.join("log");
    for list in ON_THE_HOST {
        let hook = on_host(test, "hook", &[list, &log.to_string_lossy()]);
        bundle.set(&format!("/hooks/{list}"), json!([hook]));
    }
    let inside = probe(PROBE, "hook", &["startContainer", "/work/log"]);
    bundle.set("/hooks/startContainer", json!([inside]));
    bundle.set("/annotations", json!({ "some.key": "some value" }));
    Ok((bundle, log))
}

fn lines(log: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(log).with_context(|| format!("{}", log.display()))?;
    text.lines()
        .map(|line| Ok(serde_json::from_str(line)?))
        .collect()
}

fn names(log: &Path) -> Result<Vec<String>> {
    let name = |line: &Value| line["name"].as_str().unwrap_or_default().to_owned();
    Ok(lines(log)?.iter().map(name).collect())
}

fn each_runs_in_its_turn(test: &Test) -> Result<()> {
    let (bundle, log) = logging(test)?;
    test.runtime.create(&bundle)?.succeed()?;
    let pid = test.runtime.pid(&bundle.id)?;
    let inside = bundle.rootfs().join("work/log");
    ensure!(!inside.exists(), "startContainer was run by create");
    test.runtime.start(&bundle.id).succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    ensure!(
        bundle.rootfs().join("work/ran").exists(),
        "the process did not run"
    );
    ensure!(
        !names(&log)?.contains(&"poststop".to_owned()),
        "poststop was run before delete"
    );
    test.runtime.delete(&bundle.id).succeed()?;
    let found = names(&log)?;
    ensure!(found == ON_THE_HOST, "the hooks came as {found:?}");

    let directory = bundle.directory.canonicalize()?;
    let statuses = ["creating", "creating", "creating", "", "stopped"];
    for (line, status) in lines(&log)?.iter().zip(statuses) {
        let state = &line["state"];
        ensure!(line["more"] == json!([]), "arguments: {line}");
        ensure!(
            line["env"] == json!({ "NAME": "a=b" }),
            "environment: {line}"
        );
        ensure!(state["id"] == *bundle.id, "id: {line}");
        ensure!(state["ociVersion"].is_string(), "version: {line}");
        ensure!(state["bundle"] == json!(directory), "bundle: {line}");
        ensure!(
            state["annotations"]["some.key"] == "some value",
            "annotations: {line}"
        );
        if !status.is_empty() {
            ensure!(state["status"] == status, "status: {line}");
        }
        if matches!(line["name"].as_str(), Some("prestart" | "createRuntime")) {
            ensure!(state["pid"] == pid.as_raw_nonzero().get(), "pid: {line}");
            ensure!(line["directory"] == json!(directory), "directory: {line}");
        }
    }
    let line = &lines(&inside)?[0];
    ensure!(
        line["state"]["status"] == "created",
        "in the container: {line}"
    );
    ensure!(line["state"]["pid"] == 1, "in the container: {line}");
    ensure!(
        line["state"]["id"] == *bundle.id,
        "in the container: {line}"
    );
    ensure!(
        line["env"] == json!({ "NAME": "a=b" }),
        "in the container: {line}"
    );
    Ok(())
}

fn poststart_comes_after_the_process(test: &Test) -> Result<()> {
    let (mut bundle, log) = logging(test)?;
    bundle.probe("hold", &[]);
    test.runtime.create(&bundle)?.succeed()?;
    let pid = test.runtime.pid(&bundle.id)?;
    let before = ["prestart", "createRuntime", "createContainer"];
    ensure!(names(&log)? == before, "by create: {:?}", names(&log)?);
    test.runtime.start(&bundle.id).succeed()?;
    let line = lines(&log)?.pop().context("nothing was logged")?;
    ensure!(line["name"] == "poststart", "by start: {line}");
    ensure!(line["state"]["status"] == "running", "status: {line}");
    ensure!(
        line["state"]["pid"] == pid.as_raw_nonzero().get(),
        "pid: {line}"
    );
    test.runtime.destroy(&bundle.id)
}

/// The hook's directory is the root file system, in the mount namespace of the container's mounts.
fn their_mounts_come_along(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("sh", &["read /mnt/file", "mount /mnt"])?;
    let mounts = on_host(test, "hook-mount", &["mnt"]);
    bundle.set("/hooks/createContainer", json!([mounts]));
    let said = test.runtime.run(&bundle)?.succeed()?.json()?;
    ensure!(said[0] == "by a hook", "the container sees {said}");
    ensure!(
        fs::read_dir(bundle.rootfs().join("mnt"))?.next().is_none(),
        "the mount is the host's"
    );
    Ok(())
}

fn they_may_ask_for_the_state(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let ask = |file: &str| {
        let (program, root) = (test.runtime.program.display(), test.runtime.root.display());
        let (id, to) = (&bundle.id, test.directory.join(file));
        shell(&format!(
            "{program} --root {root} state {id} > {}",
            to.display()
        ))
    };
    let (early, late) = (ask("early"), ask("late"));
    bundle.set("/hooks/createRuntime", json!([early]));
    bundle.set("/hooks/poststart", json!([late]));
    test.runtime.launch(&bundle)?;
    for (file, status) in [("early", "creating"), ("late", "running")] {
        let state: Value = serde_json::from_slice(&fs::read(test.directory.join(file))?)?;
        ensure!(state["status"] == status, "{state}");
        let bundle_path = bundle.directory.canonicalize()?;
        ensure!(state["bundle"] == json!(bundle_path), "{state}");
    }
    test.runtime.destroy(&bundle.id)
}

fn failure_before_start_leaves_nothing(test: &Test) -> Result<()> {
    for list in ["prestart", "createRuntime", "createContainer"] {
        let (mut bundle, log) = logging(test)?;
        let fine = bundle.config["hooks"][list][0].take();
        let fails = on_host(test, "hook-fail", &[]);
        bundle.set(&format!("/hooks/{list}"), json!([fine, fails, fine]));
        let output = test.runtime.create(&bundle)?.output()?;
        let said = "exit status 7, stdout: what it said";
        check(
            test,
            output,
            &["error running hook #1:", said, "why it failed"],
        )?;
        test.runtime.has_no(&bundle.id)?;
        let at = ON_THE_HOST.iter().position(|other| *other == list);
        let mut expected = ON_THE_HOST[..=at.unwrap_or(0)].to_vec();
        expected.push("poststop");
        ensure!(names(&log)? == expected, "{list}: {:?}", names(&log)?);
        fs::remove_file(&log)?;
    }
    Ok(())
}

fn failure_in_the_container_stops_it(test: &Test) -> Result<()> {
    let (mut bundle, log) = logging(test)?;
    let fails = probe(PROBE, "hook-fail", &[]);
    bundle.set("/hooks/startContainer", json!([fails]));
    let words = [
        "hooks.startContainer: error running hook #0: exit status 7",
        "stdout: what it said, stderr: why it failed",
    ];
    test.runtime.create(&bundle)?.succeed()?;
    check(test, test.runtime.start(&bundle.id).output()?, &words)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    check(test, test.runtime.run(&bundle)?.output()?, &words)?;
    ensure!(
        !bundle.rootfs().join("work/ran").exists(),
        "the process ran nevertheless"
    );
    let before = ["prestart", "createRuntime", "createContainer", "poststop"];
    let expected = [before, before].concat();
    ensure!(
        names(&log)? == expected,
        "the hooks were {:?}",
        names(&log)?
    );
    Ok(())
}

fn environment_is_inherited_where_none_is_given(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("touch", &["/work/ran"])?;
    let log = test.directory.join("log");
    let without = |mut hook: Value| {
        if let Some(fields) = hook.as_object_mut() {
            fields.remove("env");
        }
        hook
    };
    let hook = |name: &str| on_host(test, "hook", &[name, &log.to_string_lossy()]);
    let mut empty = hook("empty");
    empty["env"] = json!([]);
    let inside = probe(PROBE, "hook", &["inside", "/work/log"]);
    bundle.set("/hooks/prestart", json!([without(hook("none")), empty]));
    bundle.set("/hooks/startContainer", json!([without(inside)]));
    bundle.set("/process/env", json!(["INSIDE=b"]));
    test.runtime
        .run(&bundle)?
        .environment("OUTSIDE", "a")
        .succeed()?;
    let of = |line: &Value, name: &str| line["env"][name].as_str().map(str::to_owned);
    let host = lines(&log)?;
    ensure!(
        of(&host[0], "OUTSIDE").as_deref() == Some("a"),
        "{}",
        host[0]
    );
    ensure!(host[1]["env"] == json!({}), "{}", host[1]);
    let inside = &lines(&bundle.rootfs().join("work/log"))?[0];
    ensure!(of(inside, "INSIDE").as_deref() == Some("b"), "{inside}");
    ensure!(of(inside, "OUTSIDE").is_none(), "{inside}");
    Ok(())
}

/// The profile names a listener that is not there, which no rule has anything to say to.
fn filter_kills_one_in_the_container(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/no/such/listener",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS" }],
        }),
    );
    let hook = probe(PROBE, "make-directory", &["/work/made"]);
    bundle.set("/hooks", json!({ "startContainer": [hook] }));
    let words = ["error running hook #0: signal: bad system call"];
    // Without privileges to gain, the filter could be left to the last moment: too late.
    for no_new_privileges in [false, true] {
        bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        test.runtime.create(&bundle)?.succeed()?;
        check(test, test.runtime.start(&bundle.id).output()?, &words)?;
        test.runtime.wait_for_end(&bundle.id)?;
        test.runtime.delete(&bundle.id).succeed()?;
    }
    Ok(())
}

fn failure_after_start_stops_it(test: &Test) -> Result<()> {
    let (mut bundle, log) = logging(test)?;
    bundle.probe("hold", &[]);
    bundle.set("/hooks/poststart", json!([on_host(test, "hook-fail", &[])]));
    let words = ["hooks.poststart: error running hook #0: exit status 7"];
    test.runtime.create(&bundle)?.succeed()?;
    check(test, test.runtime.start(&bundle.id).output()?, &words)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    check(test, test.runtime.run(&bundle)?.output()?, &words)?;
    let last = names(&log)?.pop();
    ensure!(last.as_deref() == Some("poststop"), "the last was {last:?}");
    Ok(())
}

fn failure_after_the_end_is_a_warning(test: &Test) -> Result<()> {
    let (mut bundle, log) = logging(test)?;
    let fine = bundle.config["hooks"]["poststop"][0].take();
    let fails = on_host(test, "hook-fail", &[]);
    bundle.set("/hooks/poststop", json!([fails, fine]));
    let output = test.runtime.run(&bundle)?.succeed()?;
    ensure!(
        output
            .stderr
            .contains("hooks.poststop: error running hook #0: exit status 7"),
        "no warning: {}",
        output.stderr
    );
    let last = names(&log)?.pop();
    ensure!(last.as_deref() == Some("poststop"), "the last was {last:?}");
    Ok(())
}

fn slow_ones_are_killed(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let mut slow = shell("exec sleep 1000");
    slow["timeout"] = json!(1);
    bundle.set("/hooks/createRuntime", json!([slow]));
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &["hook ran past specified timeout of 1.0s"])
}

/// Whoever makes a container is killed while a hook runs.
fn they_end_with_their_caller(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let pipe = test.directory.join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let waits = shell(&format!("echo > {}; exec sleep 1000", pipe.display()));
    bundle.set("/hooks/prestart", json!([waits]));
    let creating = test.runtime.create(&bundle)?.spawn()?;
    // Opening it waits for the hook.
    fs::read(&pipe)?;
    test.runtime.status_is(&bundle.id, "creating")?;
    creating.signal(Signal::KILL)?;
    creating.wait()?;
    // It waits until the creation has ended.
    test.runtime.delete_force(&bundle.id).succeed()?;
    Ok(())
}

fn mistakes_are_refused(test: &Test) -> Result<()> {
    for (hook, words) in [
        (
            json!({ "path": "relative" }),
            "hooks.poststart[0].path: must be an absolute path",
        ),
        (
            json!({ "path": "/bin/true", "timeout": 0 }),
            "hooks.poststart[0].timeout: must be greater than 0",
        ),
    ] {
        let mut bundle = test.idle_bundle()?;
        bundle.set("/hooks/poststart", json!([hook]));
        check(test, test.runtime.create(&bundle)?.output()?, &[words])?;
    }
    let mut bundle = test.idle_bundle()?;
    bundle.set("/hooks/prestart", json!([{ "path": "/no/such/hook" }]));
    let words = "hooks.prestart: error running hook #0: cannot execute /no/such/hook";
    check(test, test.runtime.create(&bundle)?.output()?, &[words])
}
