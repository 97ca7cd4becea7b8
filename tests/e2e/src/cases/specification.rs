//! Sentences of the runtime-spec that no other topic tests: see `docs/conformance.md`.

use std::{fs, process::Command};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    errors::check,
    exec::reaped,
    process::expect,
    shell::{commands, perform_in},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "specification",
    cases: CASES,
    probes: PROBES,
};

const LAZARET: &[Kind] = &[Kind::Lazaret];

const CASES: &[Case] = &[
    case!(operations_need_an_id).covers(&[
        "runtime#query-state-1",
        "runtime#create-1",
        "runtime#start-1",
        "runtime#kill-1",
        "runtime#delete-1",
    ]),
    case!(create_needs_a_bundle).covers(&["runtime#create-1"]),
    case!(state_has_the_form_of_the_schema).covers(&[
        "runtime#state-1..2",
        "runtime#state-4..8",
        "runtime#query-state-3",
    ]),
    case!(create_makes_what_is_asked_for).covers(&["runtime#lifecycle-3", "runtime#create-5"]),
    case!(changes_after_create_have_no_effect).covers(&["runtime#lifecycle-5"]),
    case!(wrong_states_change_nothing).covers(&[
        "runtime#errors-1",
        "runtime#start-2..3",
        "runtime#kill-2..3",
    ]),
    case!(delete_leaves_what_others_made).covers(&["runtime#lifecycle-17", "runtime#delete-4..5"]),
    case!(relative_destination).covers(&["config#mounts-4"]),
    case!(console_size_without_a_terminal).covers(&["config#process-2"]),
    case!(limit_is_there_twice)
        .only(LAZARET, "runc and crun set the last one")
        .covers(&["config#posix-process-8"])
        .right("lazaret: the specification demands an error"),
    case!(oom_score_is_left_alone).covers(&["config#linux-process-4"]),
    case!(unknown_properties_are_ignored)
        .covers(&["config#extensibility-1", "config#annotations-8"]),
];

const PROBES: &[(&str, Probe)] = &[];

fn operations_need_an_id(test: &Test) -> Result<()> {
    for verb in ["state", "create", "start", "kill", "delete"] {
        let output = test.runtime.verb(verb, &[]).output()?;
        ensure!(!output.status.success(), "{verb} without an id succeeded");
        ensure!(
            !output.stdout.is_empty() || !output.stderr.is_empty(),
            "{verb} said nothing"
        );
    }
    Ok(())
}

/// Without `--bundle` it is the working directory, in which there is none.
fn create_needs_a_bundle(test: &Test) -> Result<()> {
    let empty = test.directory.join("empty");
    fs::create_dir(&empty)?;
    let id = format!("{}x", test.tag);
    let output = Command::new(&test.runtime.program)
        .arg("--root")
        .arg(&test.runtime.root)
        .args(["create", &id])
        .current_dir(&empty)
        .output()?;
    ensure!(output.status.code() == Some(1), "{}", output.status);
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(errors.contains("config.json"), "it said {errors}");
    test.runtime.has_no(&id)
}

/// The rules of `state-schema.json`, and those of the text.
fn has_the_form(state: &Value, bundle: &Bundle, status: &str) -> Result<()> {
    let version = state["ociVersion"].as_str().unwrap_or_default();
    let numbers: Vec<&str> = version.splitn(3, '.').collect();
    ensure!(
        numbers.len() == 3 && numbers[..2].iter().all(|part| part.parse::<u32>().is_ok()),
        "ociVersion: {state}"
    );
    ensure!(state["id"] == *bundle.id, "id: {state}");
    ensure!(state["status"] == status, "not {status}: {state}");
    ensure!(
        state["bundle"] == *bundle.directory.to_string_lossy(),
        "bundle: {state}"
    );
    let lives = status != "stopped";
    let pid = &state["pid"];
    ensure!(
        pid.as_u64().is_some_and(|pid| !lives || pid > 0) || !lives && pid.is_null(),
        "pid: {state}"
    );
    let annotations = &state["annotations"];
    ensure!(
        annotations["org.example.colour"] == "green"
            && annotations
                .as_object()
                .is_some_and(|all| all.values().all(Value::is_string)),
        "annotations: {state}"
    );
    Ok(())
}

fn state_has_the_form_of_the_schema(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/annotations", json!({ "org.example.colour": "green" }));
    let id = &bundle.id;
    test.runtime.create(&bundle)?.succeed()?;
    has_the_form(&test.runtime.state(id)?, &bundle, "created")?;
    test.runtime.start(id).succeed()?;
    has_the_form(&test.runtime.state(id)?, &bundle, "running")?;
    test.runtime.verb("pause", &[id]).succeed()?;
    has_the_form(&test.runtime.state(id)?, &bundle, "paused")?;
    test.runtime.verb("resume", &[id]).succeed()?;
    has_the_form(&test.runtime.state(id)?, &bundle, "running")?;
    test.runtime.kill(id, "KILL").succeed()?;
    test.runtime.wait_for_end(id)?;
    has_the_form(&test.runtime.state(id)?, &bundle, "stopped")?;
    test.runtime.delete(id).succeed()?;
    Ok(())
}

/// The destination of a mount is made in the root file system, which the host sees.
fn create_makes_what_is_asked_for(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.mount("/new/place", "tmpfs", "tmpfs", &[]);
    test.runtime.create(&bundle)?.succeed()?;
    let made = bundle.rootfs().join("new/place").is_dir();
    test.runtime.delete_force(&bundle.id).succeed()?;
    ensure!(made, "the mount's destination was not made at create");
    Ok(())
}

fn changes_after_create_have_no_effect(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("exit", &["3"])?;
    test.runtime.create(&bundle)?.succeed()?;
    let before = test.runtime.state(&bundle.id)?;
    bundle.probe("exit", &["4"]);
    bundle.set("/annotations", json!({ "org.example.colour": "green" }));
    bundle.save()?;
    let after = test.runtime.state(&bundle.id)?;
    let pid = test.runtime.pid(&bundle.id)?;
    test.runtime.start(&bundle.id).succeed()?;
    let code = reaped(pid)?;
    test.runtime.delete(&bundle.id).succeed()?;
    ensure!(code == Some(3), "the process ended with {code:?}");
    ensure!(before == after, "the state was {before} and is {after}");
    Ok(())
}

fn wrong_states_change_nothing(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let id = &bundle.id;
    test.runtime.launch(&bundle)?;
    let before = test.runtime.state(id)?;
    test.runtime.start(id).output()?.code(1)?;
    test.runtime.delete(id).output()?.code(1)?;
    test.runtime.create(&bundle)?.output()?.code(1)?;
    let after = test.runtime.state(id)?;
    ensure!(before == after, "running: it was {before} and is {after}");
    test.runtime.exec_probe(id, "exit", &["0"]).succeed()?;

    test.runtime.kill(id, "KILL").succeed()?;
    test.runtime.wait_for_end(id)?;
    let before = test.runtime.state(id)?;
    test.runtime.start(id).output()?.code(1)?;
    test.runtime.kill(id, "TERM").output()?.code(1)?;
    let after = test.runtime.state(id)?;
    ensure!(before == after, "stopped: it was {before} and is {after}");
    test.runtime.delete(id).succeed()?;
    Ok(())
}

fn delete_leaves_what_others_made(test: &Test) -> Result<()> {
    let source = test.directory.join("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "kept")?;
    let mut bundle = test.bundle("touch", &["/work/made-inside"])?;
    bundle.bind("/data", &source, &[]);
    test.runtime.launch(&bundle)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    for path in [
        source.join("file"),
        bundle.directory.join("config.json"),
        bundle.rootfs().join("etc/passwd"),
        bundle.rootfs().join("work/made-inside"),
    ] {
        ensure!(path.is_file(), "{} is gone", path.display());
    }
    test.runtime.has_no(&bundle.id)
}

fn relative_destination(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.mount("work", "tmpfs", "tmpfs", &[]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("write /work/file x", json!("done")),
            ("list /work", json!(["file"])),
        ],
    )?;
    ensure!(
        !bundle.rootfs().join("work/file").exists(),
        "the file is in the root"
    );
    Ok(())
}

fn console_size_without_a_terminal(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("say", &["one", "two"])?;
    bundle.set("/process/consoleSize", json!({ "width": 7, "height": 3 }));
    let output = test.runtime.run(&bundle)?.succeed()?;
    ensure!(
        (&*output.stdout, &*output.stderr) == ("one\n", "two\n"),
        "{output:?}"
    );
    Ok(())
}

fn limit_is_there_twice(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 100 });
    bundle.set("/process/rlimits", json!([limit, limit]));
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &["process.rlimits[1]", "RLIMIT_NOFILE"])
}

fn oom_score_is_left_alone(test: &Test) -> Result<()> {
    let bundle = test.bundle("report", &[])?;
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    expect(&report, "/oom_score_adj", &json!(own.trim_end()))
}

fn unknown_properties_are_ignored(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("exit", &["5"])?;
    for pointer in [
        "/nonesuch",
        "/root/nonesuch",
        "/process/nonesuch",
        "/process/user/nonesuch",
        "/linux/nonesuch",
        "/linux/resources/nonesuch",
        "/annotations/org.example.nonesuch",
    ] {
        bundle.set(pointer, json!("unknown"));
    }
    for list in ["mounts", "hooks"] {
        if let Some(first) = bundle.config[list].get_mut(0) {
            first["nonesuch"] = json!({ "a": 1 });
        }
    }
    test.runtime.run(&bundle)?.output()?.code(5)?;
    Ok(())
}
