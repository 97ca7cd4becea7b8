//! Containers that join namespaces of another one by their paths, and so its sandbox: what they
//! share, and what the end of one means for the other.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use super::exec::reaped;
use crate::{
    bundle::{Bundle, PROBE},
    case::{Case, Probe, Test, Topic, case},
    invocation::Invocation,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "sandbox",
    cases: CASES,
    probes: PROBES,
};

/// What only a VM makes a difference for.
const LAZARET: &[Kind] = &[Kind::Lazaret];

const CASES: &[Case] = &[
    case!(paths_join_namespaces).covers(&["config-linux#namespaces-4"]),
    case!(what_is_not_joined_is_own),
    case!(files_are_each_ones_own),
    case!(first_may_end_first),
    case!(goes_from_one_to_the_next),
    case!(last_may_come_again),
    case!(pid_namespace_ends_with_its_first_process),
    case!(killed_by_pid_it_leaves_the_other_alone),
    case!(the_first_killed_by_pid_leaves_the_other_alone),
    case!(joins_who_joined),
    case!(only_one_sandbox_can_be_joined).only(LAZARET, "namespaces of the host have no sandboxes"),
    case!(failed_creation_leaves_the_sandbox_as_it_was),
];

const PROBES: &[(&str, Probe)] = &[("namespaces", namespaces), ("show", show), ("put", put)];

/// Kinds in a configuration, and their names in `/proc/PID/ns`.
const KINDS: [(&str, &str); 4] = [
    ("ipc", "ipc"),
    ("network", "net"),
    ("pid", "pid"),
    ("uts", "uts"),
];

/// Prints this process's namespaces.
fn namespaces(_: &[String]) -> Result<u8> {
    let mut found = serde_json::Map::new();
    for (_, link) in KINDS
        .iter()
        .chain(&[("mount", "mnt"), ("cgroup", "cgroup")])
    {
        let target = fs::read_link(format!("/proc/self/ns/{link}"))?;
        found.insert((*link).to_owned(), json!(target));
    }
    print!("{}", Value::from(found));
    Ok(0)
}

/// Prints the content of each file.
fn show(files: &[String]) -> Result<u8> {
    for file in files {
        let content = fs::read_to_string(file).with_context(|| file.clone())?;
        print!("{content}");
    }
    Ok(0)
}

/// Writes the second argument to the file that the first one names.
fn put(arguments: &[String]) -> Result<u8> {
    let [file, content] = arguments else {
        bail!("a file and its content");
    };
    fs::write(file, content).with_context(|| file.clone())?;
    Ok(0)
}

/// Has `bundle` join namespaces of the container `id`.
pub(super) fn join(test: &Test, bundle: &mut Bundle, id: &str, kinds: &[&str]) -> Result<()> {
    let pid = test.runtime.pid(id)?.as_raw_nonzero();
    let listed = bundle.config["linux"]["namespaces"].as_array_mut();
    for namespace in listed.context("a list of namespaces")? {
        let known = KINDS.iter().find(|(kind, _)| namespace["type"] == *kind);
        if let Some((kind, link)) = known
            && kinds.contains(kind)
        {
            namespace["path"] = json!(format!("/proc/{pid}/ns/{link}"));
        }
    }
    if kinds.contains(&"uts") {
        // It would be the other's, too.
        let config = bundle.config.as_object_mut().context("an object")?;
        config.remove("hostname");
    }
    Ok(())
}

/// A running container, and one that runs with these namespaces of its.
fn pair(test: &Test, kinds: &[&str]) -> Result<(Bundle, Bundle)> {
    let first = test.idle_bundle()?;
    test.runtime.launch(&first)?;
    let mut second = test.idle_bundle()?;
    join(test, &mut second, &first.id, kinds)?;
    test.runtime.launch(&second)?;
    Ok((first, second))
}

fn namespaces_of(test: &Test, id: &str) -> Result<Value> {
    let exec = test.runtime.exec_probe(id, "namespaces", &[]);
    exec.succeed()?.json()
}

/// Demands that an exec works in the container.
pub(super) fn lives(test: &Test, id: &str) -> Result<()> {
    test.runtime.status_is(id, "running")?;
    let shown = test
        .runtime
        .exec_probe(id, "show", &["/etc/group"])
        .succeed()?;
    ensure!(shown.stdout.starts_with("root"), "{:?}", shown.stdout);
    Ok(())
}

fn paths_join_namespaces(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &KINDS.map(|(kind, _)| kind))?;
    let (theirs, own) = (
        namespaces_of(test, &first.id)?,
        namespaces_of(test, &second.id)?,
    );
    for (_, link) in KINDS {
        ensure!(own[link] == theirs[link], "{link}: {own} and {theirs}");
    }
    ensure!(own["mnt"] != theirs["mnt"], "{own} and {theirs}");
    // In the pid namespace, the first container's process is the first.
    let command = test
        .runtime
        .exec_probe(&second.id, "show", &["/proc/1/cmdline"])
        .succeed()?;
    ensure!(command.stdout.contains("hold"), "{:?}", command.stdout);
    let pid = test.runtime.pid(&second.id)?;
    test.runtime.destroy(&second.id)?;
    reaped(pid)?;
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)
}

fn what_is_not_joined_is_own(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &["ipc"])?;
    let (theirs, own) = (
        namespaces_of(test, &first.id)?,
        namespaces_of(test, &second.id)?,
    );
    ensure!(own["ipc"] == theirs["ipc"], "{own} and {theirs}");
    for link in ["net", "pid", "uts", "mnt", "cgroup"] {
        ensure!(own[link] != theirs[link], "{link}: {own} and {theirs}");
    }
    test.runtime.destroy(&first.id)?;
    test.runtime.destroy(&second.id)
}

fn files_are_each_ones_own(test: &Test) -> Result<()> {
    let first = test.idle_bundle()?;
    test.runtime.launch(&first)?;
    let mut second = test.idle_bundle()?;
    join(test, &mut second, &first.id, &["ipc", "network"])?;
    let volume = test.directory.join("volume");
    fs::create_dir(&volume)?;
    fs::write(volume.join("file"), "of the volume\n")?;
    fs::write(second.rootfs().join("file"), "of the second\n")?;
    second.bind("/volume", &volume, &[]);
    second.set("/root/readonly", json!(true));
    test.runtime.launch(&second)?;
    let files = ["/file", "/volume/file"];
    let shown = test
        .runtime
        .exec_probe(&second.id, "show", &files)
        .succeed()?;
    ensure!(
        shown.stdout == "of the second\nof the volume\n",
        "{:?}",
        shown.stdout
    );
    let write = |id: &str, file: &str| test.runtime.exec_probe(id, "put", &[file, "new\n"]);
    write(&second.id, "/volume/new").succeed()?;
    ensure!(fs::read_to_string(volume.join("new"))? == "new\n");
    let refused = write(&second.id, "/new").output()?;
    ensure!(refused.stderr.contains("Read-only"), "{:?}", refused.stderr);
    write(&first.id, "/new").succeed()?;
    ensure!(!second.rootfs().join("new").exists());
    seen_by_pid(test, &second.id, "/file", "of the second\n")?;
    seen_by_pid(test, &first.id, "/new", "new\n")?;
    test.runtime.destroy(&second.id)?;
    test.runtime.destroy(&first.id)
}

/// Demands that who joins the mount namespace of the container's pid finds the container's files.
fn seen_by_pid(test: &Test, id: &str, file: &str, content: &str) -> Result<()> {
    let pid = test.runtime.pid(id)?.as_raw_nonzero().to_string();
    let global = vec!["enter".to_owned(), pid];
    let words = ["probe", "show", file];
    let shown = Invocation::new(test.probe.clone(), global, PROBE, &words).succeed()?;
    ensure!(shown.stdout == content, "{id}: {:?}", shown.stdout);
    Ok(())
}

fn first_may_end_first(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &["ipc", "uts"])?;
    test.runtime.destroy(&first.id)?;
    nobody_has_mounts_of(&first)?;
    fs::remove_dir_all(&first.directory)?;
    lives(test, &second.id)?;
    let write = test
        .runtime
        .exec_probe(&second.id, "put", &["/written", "late\n"]);
    write.succeed()?;
    test.runtime.kill(&second.id, "TERM").succeed()?;
    test.runtime.wait_for_end(&second.id)?;
    let written = fs::read_to_string(second.rootfs().join("written"))?;
    ensure!(written == "late\n", "{written:?}");
    test.runtime.delete(&second.id).succeed()?;
    Ok(())
}

/// Each joins the one before, which then is deleted.
fn goes_from_one_to_the_next(test: &Test) -> Result<()> {
    let mut last = test.idle_bundle()?;
    test.runtime.launch(&last)?;
    let ipc = namespaces_of(test, &last.id)?["ipc"].take();
    for _ in 0..3 {
        let mut next = test.idle_bundle()?;
        join(test, &mut next, &last.id, &["ipc"])?;
        test.runtime.launch(&next)?;
        test.runtime.destroy(&last.id)?;
        nobody_has_mounts_of(&last)?;
        fs::remove_dir_all(&last.directory)?;
        let own = namespaces_of(test, &next.id)?["ipc"].take();
        ensure!(own == ipc, "{own}, expected {ipc}");
        last = next;
    }
    lives(test, &last.id)?;
    test.runtime.destroy(&last.id)
}

fn last_may_come_again(test: &Test) -> Result<()> {
    let first = test.idle_bundle()?;
    test.runtime.launch(&first)?;
    let mut second = test.bundle("show", &["/file"])?;
    join(test, &mut second, &first.id, &["ipc"])?;
    for content in ["one\n", "two\n"] {
        fs::write(second.rootfs().join("file"), content)?;
        let shown = test.runtime.run(&second)?.output()?.code(0)?;
        ensure!(shown.stdout == content, "{:?}", shown.stdout);
        lives(test, &first.id)?;
        nobody_has_mounts_of(&second)?;
    }
    test.runtime.destroy(&first.id)
}

/// Demands that no process on this host has a mount of the bundle, or at a path with the container's
/// id in it.
fn nobody_has_mounts_of(bundle: &Bundle) -> Result<()> {
    let case = bundle.directory.parent().and_then(Path::file_name);
    let rootfs = Path::new(case.context("a case's directory")?)
        .join(bundle.directory.file_name().context("a bundle's name")?)
        .join("rootfs");
    for process in fs::read_dir("/proc")? {
        let path = process?.path().join("mountinfo");
        // Not a process, or one that has ended.
        let Ok(mounts) = fs::read_to_string(&path) else {
            continue;
        };
        let left = mounts.lines().find(|line| {
            let mut fields = line.split(' ').skip(3);
            let (root, point) = (fields.next(), fields.next());
            root.is_some_and(|root| Path::new(root).ends_with(&rootfs))
                || point.is_some_and(|point| point.split('/').any(|name| name == bundle.id))
        });
        ensure!(left.is_none(), "{}: {left:?}", path.display());
    }
    Ok(())
}

fn pid_namespace_ends_with_its_first_process(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &["pid"])?;
    let pid = test.runtime.pid(&second.id)?;
    test.runtime.kill(&first.id, "KILL").succeed()?;
    test.runtime.wait_for_end(&second.id)?;
    reaped(pid)?;
    test.runtime.wait_for_end(&first.id)?;
    test.runtime.status_is(&second.id, "stopped")?;
    test.runtime.delete(&first.id).succeed()?;
    test.runtime.delete(&second.id).succeed()?;
    Ok(())
}

fn killed_by_pid_it_leaves_the_other_alone(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &["ipc"])?;
    kill_process(test.runtime.pid(&second.id)?, Signal::KILL)?;
    test.runtime.wait_for_end(&second.id)?;
    test.runtime.status_is(&second.id, "stopped")?;
    lives(test, &first.id)?;
    test.runtime.delete(&second.id).succeed()?;
    test.runtime.launch(&second)?;
    lives(test, &second.id)?;
    test.runtime.destroy(&second.id)?;
    test.runtime.destroy(&first.id)
}

fn the_first_killed_by_pid_leaves_the_other_alone(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &["ipc"])?;
    kill_process(test.runtime.pid(&first.id)?, Signal::KILL)?;
    test.runtime.wait_for_end(&first.id)?;
    lives(test, &second.id)?;
    test.runtime.delete(&first.id).succeed()?;
    lives(test, &second.id)?;
    test.runtime.destroy(&second.id)
}

fn joins_who_joined(test: &Test) -> Result<()> {
    let (first, second) = pair(test, &["ipc"])?;
    let mut third = test.idle_bundle()?;
    join(test, &mut third, &second.id, &["ipc", "uts"])?;
    test.runtime.launch(&third)?;
    let (one, two, three) = (
        namespaces_of(test, &first.id)?,
        namespaces_of(test, &second.id)?,
        namespaces_of(test, &third.id)?,
    );
    ensure!(one["ipc"] == three["ipc"], "{one} and {three}");
    ensure!(two["uts"] == three["uts"], "{two} and {three}");
    ensure!(one["uts"] != three["uts"], "{one} and {three}");
    test.runtime.destroy(&second.id)?;
    lives(test, &third.id)?;
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)?;
    test.runtime.destroy(&third.id)
}

fn only_one_sandbox_can_be_joined(test: &Test) -> Result<()> {
    let (first, second) = (test.idle_bundle()?, test.idle_bundle()?);
    test.runtime.launch(&first)?;
    test.runtime.launch(&second)?;
    let mut third = test.idle_bundle()?;
    join(test, &mut third, &first.id, &["ipc"])?;
    join(test, &mut third, &second.id, &["uts"])?;
    let words = [&*first.id, &*second.id, "only one can be joined"];
    test.runtime.create(&third)?.output()?.fails(1, &words)?;
    test.runtime.destroy(&first.id)?;
    test.runtime.destroy(&second.id)
}

fn failed_creation_leaves_the_sandbox_as_it_was(test: &Test) -> Result<()> {
    let first = test.idle_bundle()?;
    test.runtime.launch(&first)?;
    let mut second = test.idle_bundle()?;
    join(test, &mut second, &first.id, &["ipc"])?;
    second.set("/process/args", json!(["/missing"]));
    let output = test.runtime.run(&second)?.output()?;
    ensure!(!output.status.success() && output.stderr.contains("missing"));
    let gone = test.runtime.verb("state", &[&second.id]).output()?;
    ensure!(!gone.status.success(), "{:?}", gone.stdout);
    lives(test, &first.id)?;
    second.probe("hold", &[]);
    test.runtime.launch(&second)?;
    lives(test, &second.id)?;
    test.runtime.destroy(&second.id)?;
    test.runtime.destroy(&first.id)
}
