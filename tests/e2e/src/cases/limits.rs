//! Figures and limits of a container that runs: `events`, `update`, and where they hold.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::process::expect;
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "limits",
    cases: CASES,
    probes: PROBES,
};

const EVENTS: &[Kind] = &[Kind::Runc, Kind::Lazaret];
const NO_EVENTS: &str = "crun has no events";
const LAZARET: &[Kind] = &[Kind::Lazaret];

/// Why the reference runtimes are left out on hosts with cgroup v1.
pub(super) const SEES_V1: &str = "without a VM, a container sees the host's cgroups of version 1";

const CASES: &[Case] = &[
    case!(figures_once)
        .only(EVENTS, NO_EVENTS)
        .on_v1(LAZARET, SEES_V1),
    case!(figures_until_the_end).only(EVENTS, NO_EVENTS),
    case!(shortage_of_memory_is_told).only(EVENTS, NO_EVENTS),
    case!(figures_of_a_stopped_container).only(EVENTS, NO_EVENTS),
    case!(limits_change).on_v1(LAZARET, SEES_V1),
    case!(limits_come_from_standard_input).on_v1(LAZARET, SEES_V1),
    case!(quota_and_period_are_kept_apart)
        .only(EVENTS, "crun wants both")
        .on_v1(LAZARET, SEES_V1),
    case!(a_limit_that_is_refused_changes_nothing)
        .only(
            LAZARET,
            "the reference runtimes write some files before they fail",
        )
        .covers(&["runtime#errors-1"])
        .right("lazaret: an error leaves everything as it was"),
    case!(a_limit_beyond_the_machine_is_warned_of).only(LAZARET, super::vm::REASON),
    case!(limits_of_a_stopped_container).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun writes to the cgroup that is left",
    ),
];

const PROBES: &[(&str, Probe)] = &[("hog", hog)];

/// Bytes of memory that the containers of these cases may use.
const LIMIT: u64 = 32 << 20;

/// Uses twice as much memory as the container may.
fn hog(_: &[String]) -> Result<u8> {
    let mut pages = Vec::new();
    for number in 0..2 * LIMIT / 4096 {
        pages.push([number as u8 | 1; 4096]);
    }
    println!("{}", pages.iter().filter(|page| page[7] != 0).count());
    Ok(0)
}

/// A running, idle container with a limit of memory and of processes.
fn running(test: &Test) -> Result<Bundle> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(
        "/linux/resources/memory",
        json!({ "limit": LIMIT, "swap": LIMIT }),
    );
    bundle.set("/linux/resources/pids", json!({ "limit": 50 }));
    test.runtime.launch(&bundle)?;
    Ok(bundle)
}

/// What the container sees of its own cgroup.
fn cgroup(test: &Test, id: &str, file: &str) -> Result<String> {
    let path = format!("/sys/fs/cgroup/{file}");
    let report = test
        .runtime
        .exec_probe(id, "report", &[&path])
        .succeed()?
        .json()?;
    let text = report["files"][&path].as_str();
    Ok(text.context("no such file in the report")?.to_owned())
}

fn expect_cgroup(test: &Test, id: &str, file: &str, expected: &str) -> Result<()> {
    let found = cgroup(test, id, file)?;
    ensure!(found == expected, "{file} is {found:?}, not {expected:?}");
    Ok(())
}

fn number(event: &Value, pointer: &str) -> Result<u64> {
    let value = event.pointer(pointer).and_then(Value::as_u64);
    value.with_context(|| format!("{pointer} is no number: {event}"))
}

fn figures_once(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let output = test
        .runtime
        .verb("events", &[&bundle.id])
        .option(&["--stats"])
        .succeed()?;
    ensure!(
        output
            .stdout
            .starts_with(&format!(r#"{{"type":"stats","id":"{}","#, bundle.id)),
        "{}",
        output.stdout
    );
    let event = output.json()?;
    expect(&event, "/data/memory/usage/limit", &json!(LIMIT))?;
    expect(&event, "/data/pids/limit", &json!(50))?;
    for pointer in [
        "/data/memory/usage/usage",
        "/data/memory/raw/anon",
        "/data/pids/current",
        "/data/cpu/usage/total",
    ] {
        ensure!(number(&event, pointer)? > 0, "{pointer} is 0: {event}");
    }
    for pointer in ["/data/hugetlb", "/data/blkio", "/data/intel_rdt"] {
        ensure!(
            event.pointer(pointer).is_some_and(Value::is_object),
            "{pointer}: {event}"
        );
    }
    test.runtime.destroy(&bundle.id)
}

fn figures_until_the_end(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let (reader, writer) = std::io::pipe()?;
    let events = test
        .runtime
        .verb("events", &[&bundle.id])
        .option(&["--interval", "200ms"])
        .stdout(writer)
        .spawn()?;
    let mut lines = Dialogue::from(reader);
    for _ in 0..3 {
        lines.expect(&format!(r#"{{"type":"stats","id":"{}","#, bundle.id))?;
    }
    test.runtime.delete_force(&bundle.id).succeed()?;
    events.wait()?.code(0)?;
    lines.rest()?;
    Ok(())
}

fn shortage_of_memory_is_told(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let (reader, writer) = std::io::pipe()?;
    let events = test
        .runtime
        .verb("events", &[&bundle.id])
        .option(&["--interval", "100ms"])
        .stdout(writer)
        .spawn()?;
    let mut lines = Dialogue::from(reader);
    // Now it listens.
    lines.expect(r#"{"type":"stats""#)?;
    test.runtime
        .exec_probe(&bundle.id, "hog", &[])
        .output()?
        .code(137)?;
    lines.expect(&format!("{{\"type\":\"oom\",\"id\":\"{}\"}}\n", bundle.id))?;
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)?;
    events.wait()?.code(0)?;
    Ok(())
}

fn figures_of_a_stopped_container(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["0"])?;
    test.runtime.launch(&bundle)?;
    test.runtime.wait_for_end(&bundle.id)?;
    let output = test.runtime.verb("events", &[&bundle.id]).output()?;
    output.fails(1, &["is not running"])?;
    let output = test
        .runtime
        .verb("events", &["no-such-container"])
        .output()?;
    output.fails(1, &["does not exist"])?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn limits_change(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    expect_cgroup(test, &bundle.id, "pids.max", "50")?;
    for (options, file, value) in [
        (
            &["--memory", "50331648", "--memory-swap", "50331648"][..],
            "memory.max",
            "50331648",
        ),
        (
            &["--memory-reservation", "16777216"],
            "memory.low",
            "16777216",
        ),
        (&["--pids-limit", "20"], "pids.max", "20"),
        (&["--cpu-share", "2048"], "cpu.weight", ""),
        (
            &["--cpu-quota", "50000", "--cpu-period", "100000"],
            "cpu.max",
            "50000 100000",
        ),
        (&["--pids-limit", "-1"], "pids.max", "max"),
    ] {
        test.runtime
            .verb("update", &[&bundle.id])
            .option(options)
            .succeed()
            .with_context(|| format!("{options:?}"))?;
        if value.is_empty() {
            let weight: u32 = cgroup(test, &bundle.id, file)?.parse()?;
            ensure!(weight > 1 && weight != 100, "{file} is {weight}");
        } else {
            expect_cgroup(test, &bundle.id, file, value)?;
        }
    }
    test.runtime.destroy(&bundle.id)
}

fn limits_come_from_standard_input(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let path = test.directory.join("limits.json");
    let limits = json!({
        "memory": { "limit": 40 << 20, "swap": 40 << 20 },
        "cpu": { "quota": 70_000, "period": 140_000 },
        "pids": { "limit": 33 },
    });
    fs::write(&path, limits.to_string())?;
    test.runtime
        .verb("update", &[&bundle.id])
        .option(&["--resources", "-"])
        .stdin(fs::File::open(&path)?)
        .succeed()?;
    expect_cgroup(test, &bundle.id, "memory.max", &(40 << 20).to_string())?;
    expect_cgroup(test, &bundle.id, "cpu.max", "70000 140000")?;
    expect_cgroup(test, &bundle.id, "pids.max", "33")?;
    fs::write(&path, r#"{"pids": {"limit": 34}}"#)?;
    test.runtime
        .verb("update", &[&bundle.id])
        .option(&["--resources", &path.to_string_lossy()])
        .succeed()?;
    expect_cgroup(test, &bundle.id, "pids.max", "34")?;
    test.runtime.destroy(&bundle.id)
}

fn quota_and_period_are_kept_apart(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    for (option, value, expected) in [
        ("--cpu-quota", "60000", "60000 100000"),
        ("--cpu-period", "90000", "60000 90000"),
        ("--cpu-quota", "-1", "max 90000"),
    ] {
        test.runtime
            .verb("update", &[&bundle.id])
            .option(&[option, value])
            .succeed()?;
        expect_cgroup(test, &bundle.id, "cpu.max", expected)?;
    }
    test.runtime.destroy(&bundle.id)
}

fn a_limit_that_is_refused_changes_nothing(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let path = test.directory.join("limits.json");
    // The kernel takes the first two and refuses the third.
    let limits = json!({
        "memory": { "reservation": 1 << 20 },
        "pids": { "limit": 7 },
        "unified": { "cpu.weight.nice": "much" },
    });
    fs::write(&path, limits.to_string())?;
    let update = |options: &[&str]| {
        test.runtime
            .verb("update", &[&bundle.id])
            .option(options)
            .output()
    };
    update(&["--resources", &path.to_string_lossy()])?
        .fails(1, &["cpu.weight.nice", "invalid argument"])?;
    expect_cgroup(test, &bundle.id, "pids.max", "50")?;
    expect_cgroup(test, &bundle.id, "memory.low", "0")?;
    update(&["--pids-limit", "8", "--cpu-share", "1"])?.fails(1, &["cpu.shares"])?;
    expect_cgroup(test, &bundle.id, "pids.max", "50")?;
    test.runtime.destroy(&bundle.id)
}

fn a_limit_beyond_the_machine_is_warned_of(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let output = test
        .runtime
        .verb("update", &[&bundle.id])
        .option(&[
            "--memory",
            "1G",
            "--memory-swap",
            "1G",
            "--cpu-quota",
            "900000",
        ])
        .succeed()?;
    for words in [
        "linux.resources.memory.limit: the VM has ",
        "beyond which the limit has no effect",
    ] {
        ensure!(output.stderr.contains(words), "{}", output.stderr);
    }
    test.runtime.destroy(&bundle.id)
}

fn limits_of_a_stopped_container(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["0"])?;
    test.runtime.launch(&bundle)?;
    test.runtime.wait_for_end(&bundle.id)?;
    let output = test
        .runtime
        .verb("update", &[&bundle.id])
        .option(&["--pids-limit", "3"])
        .output()?;
    ensure!(!output.status.success(), "a stopped container took limits");
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}
