//! How a process is scheduled, what its clocks show, and which machine it believes in.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    errors,
    process::{expect, status},
};
use crate::{
    bundle::{Bundle, probe_args},
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "scheduling",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(policies).only(LAZARET, NEW),
    case!(io_priority).only(LAZARET, NEW),
    case!(exec_inherits_the_policy).only(LAZARET, NEW),
    case!(exec_runs_on_some_cpus)
        .only(LAZARET, NEW)
        .covers(&["config#linux-process-7"])
        .right("lazaret: the field is newer than the others"),
    case!(personality).only(LAZARET, NEW),
    case!(clocks)
        .only(LAZARET, NEW)
        .covers(&["config-linux#namespaces-2"])
        .right("lazaret: time is one of the namespaces"),
    case!(a_clock_cannot_go_below_zero).only(LAZARET, NEW),
    case!(memory_policy_is_warned_of).only(LAZARET, NEW),
];

const LAZARET: &[Kind] = &[Kind::Lazaret];
const NEW: &str = "newer than Debian's runc and crun, which pass over it";

const PROBES: &[(&str, Probe)] = &[];

/// Numbers of system calls on 64-bit x86.
const PERSONALITY: &str = "135";
const IOPRIO_GET: &str = "252";

/// Nice value, real-time priority and policy: fields 19, 40 and 41 of `/proc/pid/stat`.
pub(super) fn scheduling(stat: &str) -> Result<[i64; 3]> {
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| -> Result<i64> {
        let text = fields.get(number - 3).context("stat is short")?;
        Ok(text.parse()?)
    };
    Ok([field(19)?, field(40)?, field(41)?])
}

const STAT: &str = "/proc/self/stat";

fn file<'a>(report: &'a Value, path: &str) -> Result<&'a str> {
    report["files"][path].as_str().context("no such file")
}

fn policies(test: &Test) -> Result<()> {
    for (scheduler, expected) in [
        (json!({ "policy": "SCHED_OTHER", "nice": 7 }), [7, 0, 0]),
        (json!({ "policy": "SCHED_OTHER", "nice": -5 }), [-5, 0, 0]),
        (json!({ "policy": "SCHED_BATCH", "nice": 3 }), [3, 0, 3]),
        (json!({ "policy": "SCHED_IDLE" }), [0, 0, 5]),
        (
            json!({ "policy": "SCHED_FIFO", "priority": 10 }),
            [0, 10, 1],
        ),
        (
            json!({ "policy": "SCHED_RR", "priority": 20, "flags": ["SCHED_RESET_ON_FORK"] }),
            [0, 20, 2],
        ),
        (
            json!({
                "policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 30_000_000,
                "period": 40_000_000, "flags": ["SCHED_FLAG_DL_OVERRUN"],
            }),
            [0, 0, 6],
        ),
    ] {
        let mut bundle = test.bundle("report", &[STAT])?;
        bundle.set("/process/scheduler", scheduler.clone());
        let report = test.runtime.run(&bundle)?.succeed()?.json()?;
        let found = scheduling(file(&report, STAT)?)?;
        ensure!(found == expected, "{scheduler}: {found:?}");
    }
    Ok(())
}

/// The result of a system call in a container, or of an exec in it.
fn result(output: &crate::invocation::Output) -> Result<i64> {
    output.json()?["result"].as_i64().context("no result")
}

fn io_priority(test: &Test) -> Result<()> {
    for (class, number) in [
        ("IOPRIO_CLASS_RT", 1),
        ("IOPRIO_CLASS_BE", 2),
        ("IOPRIO_CLASS_IDLE", 3),
    ] {
        let mut bundle = test.bundle("call", &[IOPRIO_GET, "1", "0"])?;
        let priority = json!({ "class": class, "priority": 6 });
        bundle.set("/process/ioPriority", priority);
        let found = result(&test.runtime.run(&bundle)?.succeed()?)?;
        ensure!(found == number << 13 | 6, "{class}: {found:#x}");
    }
    Ok(())
}

/// Starts `probe` in a container by a process file with `more` in it.
fn exec_file(
    test: &Test,
    bundle: &Bundle,
    probe: &[String],
    more: &Value,
) -> Result<crate::invocation::Output> {
    let mut process = json!({
        "args": probe, "cwd": "/", "env": [], "user": { "uid": 0, "gid": 0 },
    });
    if let (Some(process), Some(more)) = (process.as_object_mut(), more.as_object()) {
        process.extend(more.clone());
    }
    let path = test.directory.join("process.json");
    fs::write(&path, process.to_string())?;
    let call = test.runtime.exec(&bundle.id, &[]);
    call.option(&["--process", &path.to_string_lossy()])
        .succeed()
}

fn exec_inherits_the_policy(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let scheduler = json!({ "policy": "SCHED_BATCH", "nice": 4 });
    bundle.set("/process/scheduler", scheduler);
    bundle.set("/process/oomScoreAdj", json!(123));
    bundle.set("/process/user/umask", json!(0o077));
    bundle.set(
        "/process/rlimits",
        json!([{ "type": "RLIMIT_NOFILE", "soft": 199, "hard": 199 }]),
    );
    test.runtime.launch(&bundle)?;
    let report = test.runtime.exec_probe(&bundle.id, "report", &[STAT]);
    let by_options = report.succeed()?.json()?;
    let probe = probe_args("report", &[STAT]);
    let by_file = exec_file(test, &bundle, &probe, &json!({}))?.json()?;
    for report in [by_options, by_file] {
        let found = scheduling(file(&report, STAT)?)?;
        ensure!(found == [4, 0, 3], "{found:?}");
        expect(&report, "/oom_score_adj", &json!("123"))?;
        let found = (status(&report, "Umask")?, status(&report, "CapBnd")?);
        ensure!(
            found == ("0077".to_owned(), "00000000080000e1".to_owned()),
            "{found:?}"
        );
        let limits = report["limits"].to_string();
        ensure!(limits.contains("199                  199"), "{limits}");
    }
    let other = json!({ "scheduler": { "policy": "SCHED_OTHER" } });
    let report = exec_file(test, &bundle, &probe, &other)?.json()?;
    let found = scheduling(file(&report, STAT)?)?;
    ensure!(found == [0, 0, 0], "{found:?}");
    test.runtime.destroy(&bundle.id)
}

fn exec_runs_on_some_cpus(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/annotations", json!({ "io.lazaret.vm.vcpus": "2" }));
    test.runtime.launch(&bundle)?;
    let probe = probe_args("report", &[]);
    for (affinity, expected) in [
        (json!({}), "0-1"),
        (json!({ "initial": "0" }), "0"),
        (json!({ "final": "1" }), "1"),
        (json!({ "initial": "0", "final": "0-1" }), "0-1"),
    ] {
        let more = json!({ "execCPUAffinity": affinity });
        let report = exec_file(test, &bundle, &probe, &more)?.json()?;
        let found = status(&report, "Cpus_allowed_list")?;
        ensure!(found == expected, "{affinity}: {found}");
    }
    test.runtime.destroy(&bundle.id)
}

fn personality(test: &Test) -> Result<()> {
    let query = [PERSONALITY, "4294967295"];
    for (domain, number) in [("LINUX", 0), ("LINUX32", 8)] {
        let mut bundle = test.idle_bundle()?;
        bundle.set("/linux/personality", json!({ "domain": domain }));
        test.runtime.launch(&bundle)?;
        let call = test.runtime.exec_probe(&bundle.id, "call", &query);
        let found = result(&call.succeed()?)?;
        ensure!(found == number, "exec, {domain}: {found:#x}");
        test.runtime.destroy(&bundle.id)?;
        bundle.probe("call", &query);
        let found = result(&test.runtime.run(&bundle)?.succeed()?)?;
        ensure!(found == number, "{domain}: {found:#x}");
    }
    Ok(())
}

/// Gives the bundle a time namespace with these offsets.
fn offset(bundle: &mut Bundle, offsets: Value) {
    bundle.set("/linux/timeOffsets", offsets);
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "time" }));
    }
}

const OFFSETS: &str = "/proc/self/timens_offsets";
const UPTIME: &str = "/proc/uptime";

fn clocks(test: &Test) -> Result<()> {
    let offsets = json!({
        "monotonic": { "secs": 86400, "nanosecs": 5 },
        "boottime": { "secs": 604_800 },
    });
    for user in [false, true] {
        let mut bundle = test.idle_bundle()?;
        offset(&mut bundle, offsets.clone());
        if user {
            let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            bundle.set("/linux/uidMappings", mapping.clone());
            bundle.set("/linux/gidMappings", mapping);
            if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
                namespaces.push(json!({ "type": "user" }));
            }
        }
        test.runtime.launch(&bundle)?;
        let files = [OFFSETS, UPTIME];
        let report = test.runtime.exec_probe(&bundle.id, "report", &files);
        let of_exec = report.succeed()?.json()?;
        test.runtime.destroy(&bundle.id)?;
        bundle.probe("report", &files);
        let of_run = test.runtime.run(&bundle)?.succeed()?.json()?;
        for report in [of_exec, of_run] {
            let lines = file(&report, OFFSETS)?.split_whitespace();
            let words: Vec<&str> = lines.collect();
            ensure!(
                words == ["monotonic", "86400", "5", "boottime", "604800", "0"],
                "{words:?}"
            );
            let uptime = file(&report, UPTIME)?;
            let uptime: f64 = uptime.split(' ').next().unwrap_or_default().parse()?;
            ensure!((604_800.0..605_800.0).contains(&uptime), "{uptime}");
        }
    }
    Ok(())
}

fn a_clock_cannot_go_below_zero(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    offset(&mut bundle, json!({ "boottime": { "secs": -1_000_000 } }));
    let output = test.runtime.create(&bundle)?.output()?;
    errors::check(test, output, &["linux.timeOffsets"])
}

fn memory_policy_is_warned_of(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("report", &[])?;
    let policy = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    bundle.set("/linux/memoryPolicy", policy);
    let output = test.runtime.run(&bundle)?.succeed()?;
    ensure!(
        output
            .stderr
            .contains("linux.memoryPolicy: MPOL_BIND is not applied"),
        "said {:?}",
        output.stderr
    );
    Ok(())
}
