//! Devices and hidden paths: what is in `/dev`, which devices can be used, and which paths a
//! container cannot read or write.

use anyhow::{Result, ensure};
use serde_json::json;

use super::shell::{ENOENT, ENOSPC, EPERM, EROFS, commands, perform_in};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "devices",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(terminals_are_its_own).covers(&["config-linux#default-devices-1"]),
    case!(masked_paths).only(
        &[Kind::Runc, Kind::Lazaret],
        "what crun puts over a directory is writable",
    ),
    case!(read_only_paths),
    case!(default_devices).covers(&["config-linux#default-devices-1"]),
    case!(more_devices).covers(&["config-linux#devices-1"]),
    case!(devices_are_denied),
    case!(links_in_dev).covers(&["runtime-linux#dev-symbolic-links-1"]),
];

const PROBES: &[(&str, Probe)] = &[];

fn terminals_are_its_own(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    perform_in(
        test,
        &mut bundle,
        &[
            ("list /dev/pts", json!(["ptmx"])),
            ("link /dev/ptmx", json!("pts/ptmx")),
            ("write /dev/mqueue/queue", json!("done")),
            ("list /dev/mqueue", json!(["queue"])),
            ("write /dev/shm/file x", json!("done")),
        ],
    )
}

fn masked_paths(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.set(
        "/linux/maskedPaths",
        json!([
            "/proc/version",
            "/proc/sys/kernel",
            "/etc/passwd",
            "/not/there"
        ]),
    );
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /proc/version", json!("")),
            ("list /proc/sys/kernel", json!([])),
            ("write /proc/sys/kernel/x x", json!(EROFS)),
            ("read /etc/passwd", json!("")),
            ("read /not/there", json!(ENOENT)),
        ],
    )
}

fn read_only_paths(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.set(
        "/linux/readonlyPaths",
        json!(["/proc/sys", "/etc", "/work", "/not/there"]),
    );
    perform_in(
        test,
        &mut bundle,
        &[
            ("write /proc/sys/kernel/msgmax 8192", json!(EROFS)),
            ("write /etc/passwd x", json!(EROFS)),
            ("write /work/file x", json!(EROFS)),
            ("write /data/file x", json!("done")),
        ],
    )
}

fn default_devices(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /dev/null", json!("c 1:3 666 0:0")),
            ("device /dev/zero", json!("c 1:5 666 0:0")),
            ("device /dev/full", json!("c 1:7 666 0:0")),
            ("device /dev/random", json!("c 1:8 666 0:0")),
            ("device /dev/urandom", json!("c 1:9 666 0:0")),
            ("device /dev/tty", json!("c 5:0 666 0:0")),
            ("read /dev/null", json!("")),
            ("write /dev/null x", json!("done")),
            ("take /dev/zero 1000", json!(0)),
            ("write /dev/full x", json!(ENOSPC)),
        ],
    )?;
    bundle.probe("sh", &["take /dev/urandom 1000"]);
    let said = test.runtime.run(&bundle)?.succeed()?.json()?;
    ensure!(
        said[0].as_u64().is_some_and(|set| set > 900),
        "urandom gave {said}"
    );
    Ok(())
}

fn more_devices(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.set(
        "/linux/devices",
        json!([
            { "path": "/dev/empty", "type": "c", "major": 1, "minor": 3, "fileMode": 0o644, "uid": 3, "gid": 4 },
            { "path": "/dev/below/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666 },
            { "path": "/dev/pipe", "type": "p", "major": 0, "minor": 0, "fileMode": 0o600 },
        ]),
    );
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /dev/empty", json!("c 1:3 644 3:4")),
            ("read /dev/empty", json!("")),
            ("device /dev/below/zero", json!("c 1:5 666 0:0")),
            ("device /dev/pipe", json!("p 0:0 600 0:0")),
        ],
    )
}

/// The default rules of the bundle deny every device but the standard ones.
fn devices_are_denied(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.set(
        "/linux/devices",
        json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o666 }]),
    );
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /dev/kmsg", json!(EPERM)),
            ("mknod /work/disk", json!("done")),
            ("read /work/disk", json!(EPERM)),
        ],
    )
}

fn links_in_dev(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    perform_in(
        test,
        &mut bundle,
        &[
            ("link /dev/fd", json!("/proc/self/fd")),
            ("link /dev/stdin", json!("/proc/self/fd/0")),
            ("link /dev/stdout", json!("/proc/self/fd/1")),
            ("link /dev/stderr", json!("/proc/self/fd/2")),
        ],
    )
}
