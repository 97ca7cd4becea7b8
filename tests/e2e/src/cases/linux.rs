//! Sentences of the runtime-spec about Linux that no other topic tests: see `docs/conformance.md`.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    errors::check,
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
    name: "linux",
    cases: CASES,
    probes: PROBES,
};

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];
const LAZARET: &[Kind] = &[Kind::Lazaret];

const CASES: &[Case] = &[
    case!(namespaces_that_are_not_listed).covers(&["config-linux#namespaces-7"]),
    case!(namespace_of_another_type)
        .only(RUNC, "crun leaves a cgroup behind")
        .covers(&["config-linux#namespaces-5"])
        .right("runc and lazaret: an error leaves nothing behind"),
    case!(mappings_leave_owners_alone).covers(&["config-linux#user-namespace-mappings-2"]),
    case!(console_device).covers(&["config-linux#default-devices-1"]),
    case!(device_rules_apply_in_order).covers(&["config-linux#allowed-device-list-1"]),
    case!(cgroup_ownership)
        .only(
            &[Kind::Crun, Kind::Lazaret],
            "runc changes owners through systemd only",
        )
        .covers(&[
            "config-linux#cgroup-ownership-5",
            "config-linux#cgroup-ownership-8..9",
        ])
        .right("crun and lazaret: a writable cgroup should change its owner"),
    case!(unified_settings_are_written).covers(&["config-linux#unified-1..2"]),
    case!(unified_controller_is_missing)
        .only(RUNC, "crun leaves a cgroup behind")
        .covers(&["config-linux#unified-3"])
        .right("runc and lazaret: an error leaves nothing behind"),
    case!(limit_below_the_use)
        .only(
            LAZARET,
            "newer than Debian's runc and crun, which pass over it",
        )
        .covers(&["config-linux#memory-2"])
        .right("lazaret: the specification demands an error"),
];

const PROBES: &[(&str, Probe)] = &[];

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
    test.runtime.has_no(&bundle.id)
}

/// Gives the container a user namespace.
pub(super) fn map_ids(bundle: &mut Bundle) {
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", mapping.clone());
    bundle.set("/linux/gidMappings", mapping);
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
}

fn mappings_leave_owners_alone(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("exit", &["0"])?;
    map_ids(&mut bundle);
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

/// A container's root user, who is nobody outside, owns what the kernel lets be delegated of a
/// cgroup that is mounted writable; of the rest it sees that the owner is nobody inside.
fn cgroup_ownership(test: &Test) -> Result<()> {
    let delegated = [
        "",
        "/cgroup.procs",
        "/cgroup.subtree_control",
        "/cgroup.threads",
    ];
    let kept = ["/memory.max", "/pids.max", "/cpu.weight", "/cgroup.freeze"];
    let lines = delegated.iter().chain(&kept);
    let lines: Vec<String> = lines
        .map(|name| format!("device /sys/fs/cgroup{name}"))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut bundle = commands(test, &lines)?;
    map_ids(&mut bundle);
    if let Some(mounts) = bundle.config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]);
    let said = test.runtime.run(&bundle)?.succeed()?.json()?;
    for (at, line) in lines.iter().enumerate() {
        let owner = if at < delegated.len() { "0" } else { "65534" };
        let text = said[at].as_str().unwrap_or_default();
        let found = text
            .rsplit(' ')
            .next()
            .and_then(|ids| ids.split(':').next());
        ensure!(found == Some(owner), "`{line}` said {}", said[at]);
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
    test.runtime.has_no(&bundle.id)
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
