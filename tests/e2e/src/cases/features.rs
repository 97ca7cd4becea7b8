//! `features`: the document has the form that the runtime-spec gives it, and what it lists is there.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::linux::map_ids;
use crate::{
    bundle::PROBE,
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "features",
    cases: CASES,
    probes: PROBES,
};

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];

const CASES: &[Case] = &[
    case!(have_their_form)
        .only(RUNC, "crun 1.8.1 has no features")
        .covers(&[
            "features#features-structure-2",
            "features#specification-version-1..6",
            "features#mount-options-2",
            "features#annotations-1",
        ])
        .right("each: the document is optional, and newer than Debian's crun"),
    case!(are_there)
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

fn have_their_form(test: &Test) -> Result<()> {
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

/// A program that does nothing, where the hooks of `list` run.
fn hook_of(list: &str) -> Value {
    if list == "startContainer" {
        json!({ "path": PROBE, "args": ["probe", "probe", "exit", "0"] })
    } else {
        json!({ "path": "/bin/true" })
    }
}

/// One container asks for all that is listed.
fn are_there(test: &Test) -> Result<()> {
    let features = test.runtime.verb("features", &[]).succeed()?.json()?;
    let list = |pointer: &str| texts(&features, pointer);
    let mut bundle = test.bundle("exit", &["5"])?;
    for hook in list("/hooks") {
        bundle.config["hooks"][hook] = json!([hook_of(hook)]);
    }
    let capabilities = list("/linux/capabilities");
    ensure!(capabilities.len() > 30, "capabilities: {capabilities:?}");
    bundle.set("/process/capabilities/bounding", json!(capabilities));
    let kinds = list("/linux/namespaces");
    ensure!(kinds.contains(&"user"), "namespaces: {kinds:?}");
    let others = kinds.iter().filter(|kind| **kind != "user");
    let others: Vec<Value> = others.map(|kind| json!({ "type": kind })).collect();
    bundle.set("/linux/namespaces", json!(others));
    map_ids(&mut bundle);
    // Rules for calls that nobody makes, one for each action and each operator. The one action that
    // needs somebody who listens is left out.
    let actions = list("/linux/seccomp/actions").into_iter();
    let mut rules: Vec<Value> = actions
        .filter(|action| *action != "SCMP_ACT_NOTIFY")
        .zip(1000..)
        .map(|(action, value)| {
            let args = json!([{ "index": 5, "value": value, "op": "SCMP_CMP_EQ" }]);
            json!({ "names": ["swapoff"], "action": action, "args": args })
        })
        .collect();
    for operator in list("/linux/seccomp/operators") {
        let args = json!([{ "index": 4, "value": 7, "valueTwo": 7, "op": operator }]);
        rules.push(json!({ "names": ["acct"], "action": "SCMP_ACT_ERRNO", "args": args }));
    }
    // libseccomp cannot mix this machine's with those of the other byte order.
    let architectures = list("/linux/seccomp/archs").into_iter();
    let architectures: Vec<&str> = architectures
        .filter(|name| name.starts_with("SCMP_ARCH_X"))
        .collect();
    ensure!(architectures.len() == 3, "architectures: {architectures:?}");
    ensure!(rules.len() > 12, "actions and operators: {features}");
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": architectures,
            "flags": list("/linux/seccomp/supportedFlags"),
            "syscalls": rules,
        }),
    );
    let output = test.runtime.run(&bundle)?.output()?.code(5)?;
    ensure!(output.stderr.is_empty(), "it said {}", output.stderr);
    Ok(())
}
