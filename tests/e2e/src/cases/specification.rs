//! Sentences of the runtime-spec that no other topic tests: see `docs/conformance.md`.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    errors::check,
    exec::reaped,
    process::expect,
    shell::{EPERM, commands, perform_in},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    console::ConsoleSocket,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "specification",
    cases: CASES,
    probes: PROBES,
};

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];
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
    case!(namespaces_that_are_not_listed).covers(&["config-linux#namespaces-7"]),
    case!(namespace_of_another_type)
        .only(&[Kind::Runc, Kind::Lazaret], "crun leaves a cgroup behind")
        .covers(&["config-linux#namespaces-5"])
        .right("runc and lazaret: an error leaves nothing behind"),
    case!(mappings_leave_owners_alone).covers(&["config-linux#user-namespace-mappings-2"]),
    case!(console_device).covers(&["config-linux#default-devices-1"]),
    case!(device_rules_apply_in_order).covers(&["config-linux#allowed-device-list-1"]),
    case!(unified_settings_are_written).covers(&["config-linux#unified-1..2"]),
    case!(unified_controller_is_missing)
        .only(&[Kind::Runc, Kind::Lazaret], "crun leaves a cgroup behind")
        .covers(&["config-linux#unified-3"])
        .right("runc and lazaret: an error leaves nothing behind"),
    case!(limit_below_the_use)
        .only(
            LAZARET,
            "newer than Debian's runc and crun, which pass over it",
        )
        .covers(&["config-linux#memory-2"])
        .right("lazaret: the specification demands an error"),
    case!(features_have_their_form)
        .only(RUNC, "crun 1.8.1 has no features")
        .covers(&[
            "features#features-structure-2",
            "features#specification-version-1..6",
            "features#mount-options-2",
            "features#annotations-1",
        ])
        .right("each: the document is optional, and newer than Debian's crun"),
    case!(features_are_there)
        .only(RUNC, "crun 1.8.1 has no features")
        .covers(&[
            "features#hooks-1",
            "features-linux#namespaces-1",
            "features-linux#capabilities-1",
            "features-linux#seccomp-1..5",
        ])
        .right("each: the document is optional, and newer than Debian's crun"),
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
    test.runtime.verb("state", &[&id]).output()?.code(1)?;
    Ok(())
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
    test.runtime
        .verb("state", &[&bundle.id])
        .output()?
        .code(1)?;
    Ok(())
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

/// A type that is not listed is the runtime's namespace: the first one of the kernel, be it the
/// host's or the guest's.
fn namespaces_that_are_not_listed(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("report", &[])?;
    bundle.set(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "network" }]),
    );
    bundle.set("/hostname", Value::Null);
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    // Inode numbers of the first namespaces (include/linux/proc_ns.h of Linux).
    for (kind, inode) in [
        ("ipc", 0xefff_ffff_u32),
        ("uts", 0xefff_fffe),
        ("user", 0xefff_fffd),
        ("pid", 0xefff_fffc),
        ("cgroup", 0xefff_fffb),
    ] {
        let pointer = format!("/namespaces/{kind}");
        expect(&report, &pointer, &json!(format!("{kind}:[{inode}]")))?;
    }
    ensure!(report["pid"] != 1, "it is the first process");
    Ok(())
}

fn namespace_of_another_type(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "pid" }, { "type": "uts", "path": "/proc/1/ns/ipc" }]),
    );
    bundle.set("/hostname", Value::Null);
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &[])?;
    test.runtime
        .verb("state", &[&bundle.id])
        .output()?
        .code(1)?;
    Ok(())
}

fn mappings_leave_owners_alone(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("exit", &["0"])?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", mapping.clone());
    bundle.set("/linux/gidMappings", mapping);
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
    let owners = |root: &Path| -> Result<Vec<(u32, u32)>> {
        ["", "etc", "etc/passwd", "work", "probe"]
            .iter()
            .map(|name| {
                let data = fs::metadata(root.join(name)).context(*name)?;
                Ok((data.uid(), data.gid()))
            })
            .collect()
    };
    let before = owners(&bundle.rootfs())?;
    test.runtime.run(&bundle)?.succeed()?;
    let after = owners(&bundle.rootfs())?;
    ensure!(
        before == after,
        "the owners were {before:?} and are {after:?}"
    );
    Ok(())
}

fn console_device(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &["device /dev/console", "device /dev/pts/0"])?;
    bundle.set("/process/terminal", json!(true));
    let socket = ConsoleSocket::new(&bundle.directory)?;
    test.runtime
        .create(&bundle)?
        .option(&["--console-socket", &socket.path.to_string_lossy()])
        .succeed()?;
    let terminal = socket.terminal()?;
    test.runtime.start(&bundle.id).succeed()?;
    let said = terminal.rest()?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    let said: Value = serde_json::from_str(said.trim()).context(said)?;
    ensure!(
        said[0] == said[1]
            && said[0]
                .as_str()
                .is_some_and(|one| one.starts_with("c 136:0 ")),
        "/dev/console and the terminal are {said}"
    );
    Ok(())
}

/// Whether a rule allows or denies, the one that comes later wins.
fn device_rules_apply_in_order(test: &Test) -> Result<()> {
    let deny = json!({ "allow": false, "access": "rwm" });
    let allow = json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" });
    for (rules, said) in [
        (json!([deny, allow]), json!("done")),
        (json!([allow, deny]), json!(EPERM)),
    ] {
        let mut bundle = commands(test, &[])?;
        bundle.set("/linux/resources/devices", rules);
        bundle.set(
            "/linux/devices",
            json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }]),
        );
        perform_in(
            test,
            &mut bundle,
            &[
                ("write /dev/kmsg said-by-a-test", said),
                ("read /dev/kmsg", json!(EPERM)),
            ],
        )?;
    }
    Ok(())
}

fn unified_settings_are_written(test: &Test) -> Result<()> {
    let settings = [("memory.high", "52428800"), ("memory.oom.group", "1")];
    let paths = settings.map(|(name, _)| format!("/sys/fs/cgroup/{name}"));
    let arguments: Vec<&str> = paths.iter().map(String::as_str).collect();
    let mut bundle = test.bundle("report", &arguments)?;
    for (name, value) in settings {
        bundle.config["linux"]["resources"]["unified"][name] = json!(value);
    }
    let report = test.runtime.run(&bundle)?.succeed()?.json()?;
    for ((_, value), path) in settings.iter().zip(&paths) {
        let found = &report["files"][path];
        ensure!(found == value, "{path} has {found}");
    }
    Ok(())
}

fn unified_controller_is_missing(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/linux/resources/unified", json!({ "nonesuch.max": "1" }));
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &["nonesuch"])?;
    test.runtime
        .verb("state", &[&bundle.id])
        .output()?
        .code(1)?;
    Ok(())
}

/// The container uses more than that already.
fn limit_below_the_use(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let path = test.directory.join("limits.json");
    let limits = json!({ "memory": { "limit": 4096, "checkBeforeUpdate": true } });
    fs::write(&path, limits.to_string())?;
    let output = test
        .runtime
        .verb("update", &[&bundle.id])
        .option(&["--resources", &path.to_string_lossy()])
        .output()?;
    check(test, output, &["memory"])?;
    let file = "/sys/fs/cgroup/memory.max";
    let report = test
        .runtime
        .exec_probe(&bundle.id, "report", &[file])
        .succeed()?
        .json()?;
    ensure!(report["files"][file] == "max", "{}", report["files"]);
    test.runtime.destroy(&bundle.id)
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.iter().any(has_null),
        Value::Object(all) => all.values().any(has_null),
        _ => false,
    }
}

/// The properties of features.md and features-linux.md.
const FEATURES: [&str; 7] = [
    "ociVersionMin",
    "ociVersionMax",
    "hooks",
    "mountOptions",
    "linux",
    "annotations",
    "potentiallyUnsafeConfigAnnotations",
];
const LINUX_FEATURES: [&str; 10] = [
    "namespaces",
    "capabilities",
    "cgroup",
    "seccomp",
    "apparmor",
    "selinux",
    "memoryPolicy",
    "intelRdt",
    "mountExtensions",
    "netDevices",
];

fn features_have_their_form(test: &Test) -> Result<()> {
    let features = test.runtime.verb("features", &[]).succeed()?.json()?;
    ensure!(!has_null(&features), "null: {features}");
    for (place, known) in [("", &FEATURES[..]), ("/linux", &LINUX_FEATURES)] {
        let object = features.pointer(place).and_then(Value::as_object);
        for name in object.into_iter().flatten().map(|(name, _)| name) {
            ensure!(known.contains(&&**name), "{place}/{name} is not defined");
        }
    }
    let mut versions = Vec::new();
    for name in ["ociVersionMin", "ociVersionMax"] {
        let version = features[name].as_str().context(name)?;
        let numbers = version.split(['.', '-', '+']).take(3);
        versions.push(
            numbers
                .map(str::parse::<u32>)
                .collect::<Result<Vec<_>, _>>()?,
        );
        let mut bundle = test.bundle("exit", &["5"])?;
        bundle.set("/ociVersion", json!(version));
        test.runtime.run(&bundle)?.output()?.code(5)?;
    }
    ensure!(versions[0] <= versions[1], "versions: {versions:?}");
    for option in texts(&features, "/mountOptions") {
        let own = ["size", "mode", "uid", "gid", "nr_inodes", "newinstance"];
        ensure!(!own.contains(&option), "{option} is one file system's own");
    }
    let annotations = features["annotations"].as_object();
    ensure!(
        annotations.is_none_or(|all| all.values().all(Value::is_string)),
        "annotations: {features}"
    );
    Ok(())
}

/// A list of texts; none if it is not there.
fn texts<'a>(features: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = features.pointer(pointer).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// One container asks for all that is listed.
fn features_are_there(test: &Test) -> Result<()> {
    let features = test.runtime.verb("features", &[]).succeed()?.json()?;
    let list = |pointer: &str| texts(&features, pointer);
    let mut bundle = test.bundle("exit", &["5"])?;
    for hook in list("/hooks") {
        bundle.config["hooks"][hook] = json!([{ "path": "/bin/true" }]);
    }
    let capabilities = list("/linux/capabilities");
    ensure!(capabilities.len() > 30, "capabilities: {capabilities:?}");
    bundle.set("/process/capabilities/bounding", json!(capabilities));
    let mut namespaces = Vec::new();
    for kind in list("/linux/namespaces") {
        namespaces.push(json!({ "type": kind }));
    }
    ensure!(namespaces.len() > 5, "namespaces: {namespaces:?}");
    bundle.set("/linux/namespaces", json!(namespaces));
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", mapping.clone());
    bundle.set("/linux/gidMappings", mapping);
    // A call for each action and operator that nobody makes.
    let mut rules = Vec::new();
    for action in list("/linux/seccomp/actions") {
        // The only one that needs somebody on the host who listens.
        if action != "SCMP_ACT_NOTIFY" {
            rules.push(json!({ "names": [format!("swapo{}", if rules.len() % 2 == 0 { "n" } else { "ff" })],
                "action": action, "args": [{ "index": 5, "value": rules.len() + 1000, "op": "SCMP_CMP_EQ" }] }));
        }
    }
    for operator in list("/linux/seccomp/operators") {
        let args = json!([{ "index": 4, "value": 7, "valueTwo": 7, "op": operator }]);
        rules.push(json!({ "names": ["acct"], "action": "SCMP_ACT_ERRNO", "args": args }));
    }
    ensure!(rules.len() > 12, "actions and operators: {features}");
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": list("/linux/seccomp/archs"),
            "flags": list("/linux/seccomp/supportedFlags"),
            "syscalls": rules,
        }),
    );
    let output = test.runtime.run(&bundle)?.output()?.code(5)?;
    ensure!(output.stderr.is_empty(), "it said {}", output.stderr);
    Ok(())
}
