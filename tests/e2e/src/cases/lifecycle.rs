//! The life of a container: which verb works in which state, and what it leaves.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::exec::reaped;
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "lifecycle",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(create_and_delete).covers(&["runtime#create-4", "runtime#delete-4"]),
    case!(create_start_end_delete).covers(&[
        "runtime#scope-of-a-container-1",
        "runtime#operations-1",
        "runtime#lifecycle-14",
        "runtime#lifecycle-17",
    ]),
    case!(created_process_has_not_run).covers(&[
        "runtime#lifecycle-4",
        "runtime#lifecycle-14",
        "runtime#create-6",
        "runtime#start-4",
    ]),
    case!(kill_before_start).covers(&["runtime#kill-4"]),
    case!(delete_running_needs_force),
    case!(delete_of_an_unknown_container).covers(&["runtime#query-state-2"]),
    case!(start_twice).covers(&["runtime#start-2..3"]),
    case!(start_of_a_stopped_container).covers(&["runtime#start-2..3"]),
    case!(kill_of_a_stopped_container).covers(&["runtime#kill-2..3"]),
    case!(exec_needs_a_running_container),
    case!(the_id_is_taken).covers(&["runtime#state-3", "runtime#create-2..3"]),
    case!(the_id_is_free_again),
    case!(state_shows_everything).covers(&[
        "runtime#state-1..2",
        "runtime#state-4",
        "runtime#state-6..7",
        "runtime#query-state-3",
    ]),
    case!(list_shows_containers),
    case!(pid_file),
    case!(run_detached),
    case!(another_specification).only(&[Kind::Crun, Kind::Lazaret], "an option of crun's"),
    case!(end_is_seen_without_asking),
];

const PROBES: &[(&str, Probe)] = &[("touch", touch)];

/// Makes a file.
fn touch(arguments: &[String]) -> Result<u8> {
    let path = arguments.first().context("no path given")?;
    fs::write(path, "")?;
    Ok(0)
}

/// The options by which crun's callers differ from runc's.
fn another_specification(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let create = test.runtime.create(&bundle)?;
    let folder = bundle.directory.join("other");
    fs::create_dir(&folder)?;
    fs::rename(
        bundle.directory.join("config.json"),
        folder.join("spec.json"),
    )?;
    create
        .global(&["--cgroup-manager", "cgroupfs"])
        .option(&["--config", &folder.join("spec.json").to_string_lossy()])
        .succeed()?;
    test.runtime.start(&bundle.id).succeed()?;
    // What a command inherits from the container comes from that file too.
    test.runtime
        .exec_probe(&bundle.id, "exit", &["7"])
        .output()?
        .code(7)?;
    test.runtime.destroy(&bundle.id)
}

fn create_and_delete(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.create(&bundle)?.succeed()?;
    test.runtime.status_is(&bundle.id, "created")?;
    test.runtime.delete_force(&bundle.id).succeed()?;
    gone(test, &bundle.id)
}

fn create_start_end_delete(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["0"])?;
    test.runtime.create(&bundle)?.succeed()?;
    test.runtime.start(&bundle.id).succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    gone(test, &bundle.id)
}

fn created_process_has_not_run(test: &Test) -> Result<()> {
    let bundle = test.bundle("touch", &["/work/ran"])?;
    let trace = bundle.rootfs().join("work/ran");
    test.runtime.create(&bundle)?.succeed()?;
    ensure!(!trace.exists(), "the process ran before start");
    test.runtime.start(&bundle.id).succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    ensure!(trace.exists(), "the process did not run after start");
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn kill_before_start(test: &Test) -> Result<()> {
    let bundle = test.bundle("touch", &["/work/ran"])?;
    test.runtime.create(&bundle)?.succeed()?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    ensure!(
        !bundle.rootfs().join("work/ran").exists(),
        "the process ran"
    );
    Ok(())
}

fn delete_running_needs_force(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    test.runtime
        .delete(&bundle.id)
        .output()?
        .fails(1, &[&bundle.id])?;
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.delete_force(&bundle.id).succeed()?;
    gone(test, &bundle.id)
}

fn delete_of_an_unknown_container(test: &Test) -> Result<()> {
    let id = format!("{}none", test.tag);
    test.runtime.delete(&id).output()?.code(1)?;
    // Forced, it is safe to repeat.
    test.runtime.delete_force(&id).succeed()?;
    test.runtime.has_no(&id)?;
    test.runtime.start(&id).output()?.code(1)?;
    test.runtime.kill(&id, "KILL").output()?.code(1)?;
    Ok(())
}

fn start_twice(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    test.runtime.start(&bundle.id).output()?.code(1)?;
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

fn start_of_a_stopped_container(test: &Test) -> Result<()> {
    let bundle = stopped(test)?;
    test.runtime.start(&bundle.id).output()?.code(1)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn kill_of_a_stopped_container(test: &Test) -> Result<()> {
    let bundle = stopped(test)?;
    test.runtime.kill(&bundle.id, "TERM").output()?.code(1)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn exec_needs_a_running_container(test: &Test) -> Result<()> {
    let bundle = stopped(test)?;
    let output = test
        .runtime
        .exec_probe(&bundle.id, "exit", &["0"])
        .output()?;
    ensure!(
        !output.status.success(),
        "exec in a stopped container succeeded"
    );
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn the_id_is_taken(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    test.runtime
        .create(&bundle)?
        .output()?
        .fails(1, &["exist"])?;
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

fn the_id_is_free_again(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["4"])?;
    for _ in 0..2 {
        test.runtime.run(&bundle)?.output()?.code(4)?;
    }
    Ok(())
}

fn state_shows_everything(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(
        "/annotations",
        serde_json::json!({ "org.example.colour": "green" }),
    );
    test.runtime.create(&bundle)?.succeed()?;
    let state = test.runtime.state(&bundle.id)?;
    let directory = bundle.directory.to_string_lossy();
    ensure!(state["id"] == *bundle.id, "id: {state}");
    ensure!(state["status"] == "created", "status: {state}");
    ensure!(state["bundle"] == *directory, "bundle: {state}");
    ensure!(
        state["annotations"]["org.example.colour"] == "green",
        "annotations: {state}"
    );
    ensure!(
        state["ociVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("1.")),
        "{state}"
    );
    let created = test.runtime.pid(&bundle.id)?;
    test.runtime.start(&bundle.id).succeed()?;
    test.runtime.status_is(&bundle.id, "running")?;
    let running = test.runtime.pid(&bundle.id)?;
    ensure!(
        created == running,
        "the pid changed from {created:?} to {running:?}"
    );
    rustix::process::test_kill_process(running).context("the pid is of no process")?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    let state = test.runtime.state(&bundle.id)?;
    ensure!(state["status"] == "stopped", "status: {state}");
    ensure!(
        state["pid"].as_i64().unwrap_or(0) == 0,
        "a stopped container has a pid: {state}"
    );
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn list_shows_containers(test: &Test) -> Result<()> {
    let list = || {
        test.runtime
            .verb("list", &[])
            .option(&["--format", "json"])
            .succeed()?
            .json()
    };
    let bundles = [test.idle_bundle()?, test.idle_bundle()?];
    test.runtime.create(&bundles[0])?.succeed()?;
    test.runtime.launch(&bundles[1])?;
    let json = list()?;
    for (bundle, status) in bundles.iter().zip(["created", "running"]) {
        let entry = json
            .as_array()
            .and_then(|all| all.iter().find(|entry| entry["id"] == *bundle.id))
            .with_context(|| format!("list does not have {}: {json}", bundle.id))?;
        ensure!(entry["status"] == status, "status: {entry}");
        ensure!(
            entry["bundle"] == *bundle.directory.to_string_lossy(),
            "bundle: {entry}"
        );
    }
    let table = test.runtime.verb("list", &[]).succeed()?.stdout;
    ensure!(
        table.starts_with("ID") || table.starts_with("NAME"),
        "no header: {table}"
    );
    ensure!(
        table.contains(&bundles[0].id),
        "the table lacks a container: {table}"
    );
    for bundle in &bundles {
        test.runtime.delete_force(&bundle.id).succeed()?;
    }
    let json = list()?;
    ensure!(
        json.as_array().is_none_or(Vec::is_empty),
        "deleted containers are listed: {json}"
    );
    Ok(())
}

fn pid_file(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let path = test.directory.join("pid");
    let option = ["--pid-file", &*path.to_string_lossy()].map(str::to_owned);
    let option: Vec<&str> = option.iter().map(String::as_str).collect();
    test.runtime.create(&bundle)?.option(&option).succeed()?;
    let text = fs::read_to_string(&path)?;
    let pid = test.runtime.pid(&bundle.id)?.as_raw_nonzero().to_string();
    ensure!(text == pid, "the pid file has {text:?}, state has {pid}");
    test.runtime.delete_force(&bundle.id).succeed()?;
    Ok(())
}

fn run_detached(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.run(&bundle)?.option(&["--detach"]).succeed()?;
    test.runtime.status_is(&bundle.id, "running")?;
    // Not SIGTERM: nobody waited until the process, pid 1, handles it.
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// The process in the pid file ends with the container, and its parent (here: this process, as
/// a subreaper) gets the exit status, as containerd's and podman's monitors rely on.
fn end_is_seen_without_asking(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["42"])?;
    test.runtime.create(&bundle)?.succeed()?;
    let pid = test.runtime.pid(&bundle.id)?;
    test.runtime.start(&bundle.id).succeed()?;
    ensure!(reaped(pid)? == Some(42), "the exit code was lost");
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// The bundle of a container that has ended.
fn stopped(test: &Test) -> Result<Bundle> {
    let bundle = test.bundle("exit", &["0"])?;
    test.runtime.launch(&bundle)?;
    test.runtime.wait_for_end(&bundle.id)?;
    Ok(bundle)
}

/// Demands that nothing knows the container any more.
fn gone(test: &Test, id: &str) -> Result<()> {
    test.runtime.verb("state", &[id]).output()?.fails(1, &[])?;
    Ok(())
}
