//! Many at once and many in a row: nothing may grow.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    host,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "scale",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(twenty_at_once).alone().timeout_s(900),
    case!(many_in_a_row).alone().timeout_s(1800),
    case!(many_processes_in_one_container)
        .alone()
        .timeout_s(600),
];

const PROBES: &[(&str, Probe)] = &[];

/// How much less memory the machine may have after many containers, in KiB: caches of the kernel
/// come and go; a leak of one page in each of 100 containers' processes is larger.
const LOSS_MAX_KIB: u64 = 24 * 1024;

/// How much one process may grow over many `exec`, in KiB: its allocator settles.
const GROWTH_MAX_KIB: u64 = 512;

fn twenty_at_once(test: &Test) -> Result<()> {
    let bundles: Vec<Bundle> = (0..20).map(|_| test.idle_bundle()).collect::<Result<_>>()?;
    // Started four at a time, as many as a busy caller would; all of them run in the end.
    for group in bundles.chunks(4) {
        let calls = group
            .iter()
            .map(|bundle| test.runtime.create(bundle)?.spawn())
            .collect::<Result<Vec<_>>>()?;
        for call in calls {
            call.wait()?.code(0)?;
        }
    }
    for bundle in &bundles {
        test.runtime.start(&bundle.id).succeed()?;
    }
    for (number, bundle) in bundles.iter().enumerate() {
        let word = number.to_string();
        let code = i32::try_from(number)?;
        test.runtime
            .exec_probe(&bundle.id, "exit", &[&word])
            .output()?
            .code(code)?;
    }
    let list = test
        .runtime
        .verb("list", &[])
        .option(&["--format", "json"])
        .succeed()?
        .json()?;
    ensure!(
        list.as_array().map(Vec::len) == Some(20),
        "list shows {list}"
    );
    for bundle in &bundles {
        test.runtime.destroy(&bundle.id)?;
    }
    Ok(())
}

fn many_in_a_row(test: &Test) -> Result<()> {
    let count = if test.full { 100 } else { 20 };
    let bundle = test.bundle("exit", &["3"])?;
    // The first ones fill caches.
    for _ in 0..3 {
        test.runtime.run(&bundle)?.output()?.code(3)?;
    }
    let before = host::available_kib()?;
    for _ in 0..count {
        test.runtime.run(&bundle)?.output()?.code(3)?;
    }
    let after = host::available_kib()?;
    ensure!(
        after + LOSS_MAX_KIB >= before,
        "available memory went from {before} to {after} KiB"
    );
    Ok(())
}

/// Descriptors and memory of the runtime's processes, by pid. One that ends meanwhile is none of
/// those that stay.
fn sizes() -> Result<BTreeMap<i32, (usize, u64)>> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let size =
        |pid| Ok::<_, anyhow::Error>((host::open_descriptors(pid)?, host::resident_kib(pid)?));
    Ok(host::descendants(own)?
        .iter()
        .filter_map(|process| Some((process.pid, size(process.pid).ok()?)))
        .collect())
}

fn many_processes_in_one_container(test: &Test) -> Result<()> {
    let count = if test.full { 300 } else { 60 };
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let exec = || {
        test.runtime
            .exec_probe(&bundle.id, "exit", &["0"])
            .succeed()
    };
    for _ in 0..10 {
        exec()?;
    }
    let before = sizes()?;
    for _ in 0..count {
        exec()?;
    }
    let after = sizes()?;
    ensure!(
        after.contains_key(&test.runtime.pid(&bundle.id)?.as_raw_nonzero().get()),
        "the container's own process is not among {after:?}"
    );
    for (pid, (descriptors, memory)) in &before {
        let Some((descriptors_after, memory_after)) = after.get(pid) else {
            continue;
        };
        ensure!(
            descriptors == descriptors_after && *memory_after <= memory + GROWTH_MAX_KIB,
            "descriptors and memory in KiB by pid: {before:?}, then {after:?}"
        );
    }
    test.runtime.destroy(&bundle.id)
}
