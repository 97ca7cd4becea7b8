//! `linux.sysctl` and the names of a container: what is its own can be set, the rest is refused.

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    errors::check,
    shell::{commands, perform_in},
};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "kernel_parameters",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(own_ones_are_set),
    case!(others_are_refused).only(NO_CRUN, "crun words it otherwise"),
    case!(names_need_a_namespace).only(NO_CRUN, "crun words it otherwise"),
];

const NO_CRUN: &[Kind] = &[Kind::Runc, Kind::Lazaret];

const PROBES: &[(&str, Probe)] = &[];

fn own_ones_are_set(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.set(
        "/linux/sysctl",
        json!({
            "kernel.msgmax": "9001",
            "kernel/shmmni": "1234",
            "fs.mqueue.msg_max": "77",
            "net.ipv4.ip_forward": "1",
            "net/ipv4/conf/lo/forwarding": "1",
            "kernel.domainname": "example.org",
        }),
    );
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /proc/sys/kernel/msgmax", json!("9001\n")),
            ("read /proc/sys/kernel/shmmni", json!("1234\n")),
            ("read /proc/sys/fs/mqueue/msg_max", json!("77\n")),
            ("read /proc/sys/net/ipv4/ip_forward", json!("1\n")),
            ("read /proc/sys/kernel/domainname", json!("example.org\n")),
        ],
    )
}

fn others_are_refused(test: &Test) -> Result<()> {
    for (name, without, words) in [
        ("vm.swappiness", "", "is not in a separate kernel namespace"),
        ("vm/swappiness", "", "is not in a separate kernel namespace"),
        (
            "kernel.hostname",
            "",
            "is not allowed as it conflicts with the OCI",
        ),
        (
            "kernel.sem",
            "ipc",
            "is not allowed in the hosts ipc namespace",
        ),
        (
            "fs/mqueue/msg_max",
            "ipc",
            "is not allowed in the hosts ipc namespace",
        ),
        (
            "net.ipv4.ip_forward",
            "network",
            "not allowed in host network namespace",
        ),
    ] {
        let mut bundle = test.idle_bundle()?;
        bundle.config["linux"]["sysctl"][name] = json!("1");
        if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != without);
        }
        let output = test.runtime.create(&bundle)?.output()?;
        let dotted = name.replace('/', ".");
        check(test, output, &[&dotted, words]).with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn names_need_a_namespace(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "uts");
    }
    let output = test.runtime.create(&bundle)?.output()?;
    let words = "unable to set hostname without a private UTS namespace";
    check(test, output, &[words])
}
