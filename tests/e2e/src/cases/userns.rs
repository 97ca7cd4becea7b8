//! Containers that join the user namespace of another one by its path, as those of a Kubernetes pod
//! with users of its own do: they are as one with a user namespace of its own.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    errors::check,
    exec::reaped,
    linux::map_ids,
    sandbox::{join, lives},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    console::ConsoleSocket,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "userns",
    cases: CASES,
    probes: PROBES,
};

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];
const LAZARET: &[Kind] = &[Kind::Lazaret];

const CASES: &[Case] = &[
    case!(is_as_one_of_its_own).only(RUNC, "crun loses options of mounts in it"),
    case!(other_namespaces_are_joined_or_new).covers(&["config-linux#namespaces-4"]),
    case!(has_a_terminal),
    case!(ids_of_an_exec_are_mapped),
    case!(outlives_its_first_container),
    case!(mappings_are_not_needed).only(
        &[Kind::Crun, Kind::Lazaret],
        "Debian's runc wants them and passes over them, newer ones do not",
    ),
    case!(mounts_map_ids_as_it_does).only(LAZARET, "newer than Debian's runc and crun"),
    case!(one_process_is_enough).only(
        LAZARET,
        "runc's own part of a container has several threads",
    ),
    case!(other_mappings_are_refused).only(
        LAZARET,
        "Debian's runc and crun pass over them, newer runc does not",
    ),
    case!(nobody_elses_is_joined).only(RUNC, "crun leaves a cgroup behind"),
    case!(mounts_are_not_joined).only(RUNC, "crun leaves a cgroup behind"),
];

const PROBES: &[(&str, Probe)] = &[];

/// Root of the user namespace that [`map_ids`] makes, outside of it.
const ROOT: u32 = 100_000;

/// What an engine gives all containers of a pod from its first one.
const OF_POD: &[&str] = &["ipc", "network", "uts"];

/// A running container in a user namespace.
fn first(test: &Test) -> Result<Bundle> {
    let mut first = test.idle_bundle()?;
    map_ids(&mut first);
    test.runtime.launch(&first)?;
    Ok(first)
}

/// Has `bundle` join the user namespace of the container `id`, whose mappings it repeats.
fn join_user(test: &Test, bundle: &mut Bundle, id: &str) -> Result<()> {
    let pid = test.runtime.pid(id)?.as_raw_nonzero();
    map_ids(bundle);
    let listed = bundle.config["linux"]["namespaces"].as_array_mut();
    let user = listed.and_then(|listed| listed.last_mut());
    user.context("a list of namespaces")?["path"] = json!(format!("/proc/{pid}/ns/user"));
    Ok(())
}

/// A bundle that performs `lines` in the user namespace and these other namespaces of `first`.
fn joining(test: &Test, first: &Bundle, kinds: &[&str], lines: &[&str]) -> Result<Bundle> {
    let mut bundle = test.bundle("sh", lines)?;
    join(test, &mut bundle, &first.id, kinds)?;
    join_user(test, &mut bundle, &first.id)?;
    give_work(&bundle)?;
    Ok(bundle)
}

/// Takes the mappings away that [`join_user`] has repeated.
fn remove_mappings(bundle: &mut Bundle) -> Result<()> {
    let linux = bundle.config["linux"].as_object_mut().context("linux")?;
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    Ok(())
}

/// Makes a directory of the root file system belong to the root of the user namespace.
fn give_work(bundle: &Bundle) -> Result<()> {
    chown(bundle.rootfs().join("work"), Some(ROOT), Some(ROOT)).context("cannot chown")
}

/// What a process can see of its ids and of what belongs to whom.
const LINES: &[&str] = &[
    "read /proc/self/uid_map",
    "read /proc/self/gid_map",
    "read /proc/self/setgroups",
    "device /work",
    "device /etc/passwd",
    "write /work/new text",
    "device /work/new",
    "write /etc/new text",
    "mknod /work/node",
    "mount /proc",
    "mount /sys",
    "mount /dev",
    "mount /dev/pts",
    "mount /dev/mqueue",
    "mount /sys/fs/cgroup",
    "list /sys/class/net",
    "device /dev/null",
    "write /dev/null text",
    "device /dev/mqueue",
    "device /dev/shm",
    "write /dev/shm/new text",
    "device /dev/pts/ptmx",
    "list /dev/mqueue",
    "list /sys/firmware",
    "write /proc/sys/kernel/hostname other",
];

fn is_as_one_of_its_own(test: &Test) -> Result<()> {
    let mut own = test.bundle("sh", LINES)?;
    map_ids(&mut own);
    give_work(&own)?;
    let expected = test.runtime.run(&own)?.succeed()?.json()?;
    ensure!(expected[3] == "- 0:0 755 0:0", "{expected}");
    own.probe("report", &[]);
    let expected_report = test.runtime.run(&own)?.succeed()?.json()?;

    let first = first(test)?;
    let mut second = joining(test, &first, OF_POD, LINES)?;
    let said = test.runtime.run(&second)?.succeed()?.json()?;
    for (at, line) in LINES.iter().enumerate() {
        let (said, expected) = (&said[at], &expected[at]);
        ensure!(
            said == expected,
            "`{line}` said {said}, expected {expected}"
        );
    }
    let new = fs::metadata(second.rootfs().join("work/new"))?;
    ensure!((new.uid(), new.gid()) == (ROOT, ROOT), "{new:?}");

    second.probe("report", &[]);
    let report = test.runtime.run(&second)?.succeed()?.json()?;
    for field in [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Umask",
        "NSpid",
    ] {
        let (said, expected) = (&report["status"][field], &expected_report["status"][field]);
        ensure!(said == expected, "{field} is {said}, expected {expected}");
    }
    ensure!(report["limits"] == expected_report["limits"]);
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)
}

fn namespaces_of(test: &Test, id: &str) -> Result<Value> {
    let exec = test.runtime.exec_probe(id, "report", &[]);
    Ok(exec.succeed()?.json()?["namespaces"].take())
}

fn other_namespaces_are_joined_or_new(test: &Test) -> Result<()> {
    let first = first(test)?;
    let theirs = namespaces_of(test, &first.id)?;
    for kinds in [&[][..], OF_POD, &["ipc", "network", "pid", "uts"]] {
        let mut second = joining(test, &first, kinds, &[])?;
        second.probe("hold", &[]);
        test.runtime.launch(&second)?;
        let own = namespaces_of(test, &second.id)?;
        for (kind, link) in [
            ("user", "user"),
            ("ipc", "ipc"),
            ("network", "net"),
            ("pid", "pid"),
            ("uts", "uts"),
            ("mount", "mnt"),
            ("cgroup", "cgroup"),
        ] {
            let joined = kind == "user" || kinds.contains(&kind);
            ensure!(
                (own[link] == theirs[link]) == joined,
                "{link} with {kinds:?}: {own} and {theirs}"
            );
        }
        let pid = test.runtime.pid(&second.id)?;
        test.runtime.destroy(&second.id)?;
        if kinds.contains(&"pid") {
            reaped(pid)?;
        }
    }
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)
}

fn has_a_terminal(test: &Test) -> Result<()> {
    let first = first(test)?;
    let lines = ["device /dev/console", "device /dev/pts/0"];
    let mut second = joining(test, &first, OF_POD, &lines)?;
    second.set("/process/terminal", json!(true));
    let socket = ConsoleSocket::new(&second.directory)?;
    test.runtime
        .create(&second)?
        .option(&["--console-socket", &socket.path.to_string_lossy()])
        .succeed()?;
    let terminal = socket.terminal()?;
    test.runtime.start(&second.id).succeed()?;
    let said = terminal.rest()?;
    test.runtime.wait_for_end(&second.id)?;
    test.runtime.delete(&second.id).succeed()?;
    let said: Value = serde_json::from_str(said.trim()).context(said)?;
    let device = said[1].as_str().unwrap_or_default();
    ensure!(
        said[0] == said[1] && device.starts_with("c 136:0 ") && device.contains(" 0:"),
        "/dev/console and the terminal are {said}"
    );
    test.runtime.destroy(&first.id)
}

fn ids_of_an_exec_are_mapped(test: &Test) -> Result<()> {
    let first = first(test)?;
    let mut second = joining(test, &first, OF_POD, &[])?;
    second.probe("hold", &[]);
    test.runtime.launch(&second)?;
    let lines = [
        "write /tmp/new text",
        "device /tmp/new",
        "read /proc/self/uid_map",
    ];
    let exec = test.runtime.exec_probe(&second.id, "sh", &lines);
    let said = exec.option(&["--user", "7:8"]).succeed()?.json()?;
    ensure!(said[1] == "- 0:0 644 7:8", "{said}");
    let map = said[2].as_str().unwrap_or_default();
    let map: Vec<&str> = map.split_whitespace().collect();
    ensure!(map == ["0", "100000", "65536"], "{said}");
    let new = fs::metadata(second.rootfs().join("tmp/new"))?;
    ensure!((new.uid(), new.gid()) == (ROOT + 7, ROOT + 8), "{new:?}");
    test.runtime.destroy(&second.id)?;
    test.runtime.destroy(&first.id)
}

fn outlives_its_first_container(test: &Test) -> Result<()> {
    let first = first(test)?;
    let theirs = namespaces_of(test, &first.id)?;
    let mut second = joining(test, &first, &["ipc"], &[])?;
    second.probe("hold", &[]);
    test.runtime.launch(&second)?;
    test.runtime.destroy(&first.id)?;
    lives(test, &second.id)?;
    let mut third = joining(test, &second, OF_POD, &[])?;
    third.probe("report", &[]);
    let report = test.runtime.run(&third)?.succeed()?.json()?;
    let own = &report["namespaces"];
    ensure!(
        own["user"] == theirs["user"] && own["ipc"] == theirs["ipc"],
        "{own} and {theirs}"
    );
    ensure!(own["uts"] != theirs["uts"], "{own} and {theirs}");
    test.runtime.destroy(&second.id)
}

fn mappings_are_not_needed(test: &Test) -> Result<()> {
    let first = first(test)?;
    let mut second = joining(test, &first, OF_POD, LINES)?;
    let expected = test.runtime.run(&second)?.succeed()?.json()?;
    fs::remove_file(second.rootfs().join("work/new"))?;
    remove_mappings(&mut second)?;
    let said = test.runtime.run(&second)?.succeed()?.json()?;
    ensure!(said == expected, "{said}, expected {expected}");
    test.runtime.destroy(&first.id)
}

fn mounts_map_ids_as_it_does(test: &Test) -> Result<()> {
    let first = first(test)?;
    let source = test.directory.join("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "")?;
    chown(source.join("file"), Some(3), Some(4))?;
    let lines = [
        "device /data/file",
        "write /data/new text",
        "device /data/new",
    ];
    let mut second = joining(test, &first, OF_POD, &lines)?;
    remove_mappings(&mut second)?;
    second.bind("/data", &source, &["idmap"]);
    let said = test.runtime.run(&second)?.succeed()?.json()?;
    let expected = json!(["- 0:0 644 3:4", "done", "- 0:0 644 0:0"]);
    ensure!(said == expected, "{said}, expected {expected}");
    let new = fs::metadata(source.join("new"))?;
    ensure!((new.uid(), new.gid()) == (0, 0), "{new:?}");
    test.runtime.destroy(&first.id)
}

/// What brings it into the user namespace counts for nothing.
fn one_process_is_enough(test: &Test) -> Result<()> {
    let first = first(test)?;
    let mut second = joining(test, &first, OF_POD, &["read /sys/fs/cgroup/pids.max"])?;
    second.set("/linux/resources/pids", json!({ "limit": 1 }));
    let said = test.runtime.run(&second)?.succeed()?.json()?;
    ensure!(said == json!(["1\n"]), "{said}");
    test.runtime.destroy(&first.id)
}

/// [`check`], where only lazaret's error has these words; no container must have come of it.
fn refuses(test: &Test, bundle: &Bundle, words: &[&str]) -> Result<()> {
    let words = match test.runtime.kind {
        Kind::Lazaret => words,
        _ => &[],
    };
    check(test, test.runtime.create(bundle)?.output()?, words)?;
    test.runtime.has_no(&bundle.id)
}

fn other_mappings_are_refused(test: &Test) -> Result<()> {
    let first = first(test)?;
    let mut second = joining(test, &first, OF_POD, &[])?;
    second.config["linux"]["gidMappings"][0]["size"] = json!(65535);
    let words = [
        "linux.namespaces[6].path: user namespaces enabled, but both namespace path and non-matching \
         mapping specified -- you may only provide one",
    ];
    refuses(test, &second, &words)?;
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)
}

fn nobody_elses_is_joined(test: &Test) -> Result<()> {
    let first = test.idle_bundle()?;
    test.runtime.launch(&first)?;
    let second = joining(test, &first, OF_POD, &[])?;
    let words = [
        "linux.namespaces[6].path: container ",
        &*first.id,
        " has no user namespace of its own",
    ];
    refuses(test, &second, &words)?;
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)?;
    // By now there is no such process.
    let path = &second.config["linux"]["namespaces"][6]["path"];
    let path = path.as_str().context("a path")?.to_owned();
    let mut third = test.idle_bundle()?;
    map_ids(&mut third);
    third.config["linux"]["namespaces"][6]["path"] = json!(path);
    let words = format!(
        "linux.namespaces[6].path: joining {path}, which is no namespace of a running container of \
         this runtime, is not supported"
    );
    refuses(test, &third, &[&words])
}

/// The mounts of a container have its root at their top: there is no way to another one.
fn mounts_are_not_joined(test: &Test) -> Result<()> {
    let first = test.idle_bundle()?;
    test.runtime.launch(&first)?;
    let mut second = test.idle_bundle()?;
    let path = format!(
        "/proc/{}/ns/mnt",
        test.runtime.pid(&first.id)?.as_raw_nonzero()
    );
    second.config["linux"]["namespaces"][4]["path"] = json!(path);
    let words = format!(
        "linux.namespaces[4].path: a container's root file system is mounted in a mount namespace of \
         its own: joining {path} is not supported"
    );
    refuses(test, &second, &[&words])?;
    lives(test, &first.id)?;
    test.runtime.destroy(&first.id)
}
