//! Devices and hidden paths: what is in `/dev`, which devices can be used, and which paths a
//! container cannot read or write.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::errors::check;
use super::shell::{ENOENT, ENOSPC, EPERM, EROFS, commands, perform_in};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    loop_device::LoopDevice,
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
    case!(default_device_as_listed).only(NO_CRUN, "crun makes its own first"),
    case!(devices_outside_of_dev),
    case!(device_where_something_else_is)
        .only(LAZARET, "the reference runtimes take it for the device")
        .covers(&["config-linux#devices-3"])
        .right("lazaret: the specification demands an error"),
    case!(devices_in_a_user_namespace).only(
        LAZARET,
        "the reference runtimes bind the host's of that name",
    ),
    case!(disks_of_the_host).covers(&["config-linux#devices-1"]),
    case!(disks_without_sectors).only(LAZARET, "about what no disk of a VM can be"),
    case!(devices_the_guest_has_not).only(LAZARET, "about what a VM cannot have"),
];

const LAZARET: &[Kind] = &[Kind::Lazaret];
const NO_CRUN: &[Kind] = &[Kind::Runc, Kind::Lazaret];

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
            { "path": "/dev/disk", "type": "b", "major": 1, "minor": 5, "fileMode": 0o640 },
            { "path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2 },
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
            // No disk of this machine, and nothing behind it.
            ("device /dev/disk", json!("b 1:5 640 0:0")),
            ("link /dev/ptmx", json!("pts/ptmx")),
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

fn default_device_as_listed(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    let listed = json!({ "path": "/dev/null", "type": "c", "major": 1, "minor": 3,
                       "fileMode": 0o646, "uid": 5, "gid": 6 });
    bundle.set("/linux/devices", json!([listed]));
    // runc allows a default device by itself only where nobody lists it.
    let rules = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm" },
    ]);
    bundle.set("/linux/resources/devices", rules);
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /dev/null", json!("c 1:3 646 5:6")),
            ("device /dev/zero", json!("c 1:5 666 0:0")),
        ],
    )
}

fn devices_outside_of_dev(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    let device = |path: &str| json!({ "path": path, "type": "c", "major": 1, "minor": 3, "fileMode": 0o666 });
    let devices = json!([device("/work/null"), device("/new/below/null")]);
    bundle.set("/linux/devices", devices);
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /work/null", json!("c 1:3 666 0:0")),
            ("device /new/below/null", json!("c 1:3 666 0:0")),
        ],
    )
}

/// The runtime-spec wants an error; the very device may be there.
fn device_where_something_else_is(test: &Test) -> Result<()> {
    let device = json!([{ "path": "/work/file", "type": "c", "major": 1, "minor": 3 }]);
    let mut bundle = test.idle_bundle()?;
    bundle.set("/linux/devices", device);
    std::fs::write(bundle.rootfs().join("work/file"), "")?;
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &["device /work/file: file exists"])?;
    let mut bundle = commands(test, &[])?;
    let device = json!([{ "path": "/work/null", "type": "c", "major": 1, "minor": 3 }]);
    bundle.set("/linux/devices", device);
    for _ in 0..2 {
        let expected = [("device /work/null", json!("c 1:3 666 0:0"))];
        perform_in(test, &mut bundle, &expected)?;
    }
    Ok(())
}

fn devices_in_a_user_namespace(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
    let mappings = json!([{ "containerID": 0, "hostID": 0, "size": 1000 }]);
    bundle.set("/linux/uidMappings", mappings.clone());
    bundle.set("/linux/gidMappings", mappings);
    bundle.set(
        "/linux/devices",
        json!([
            { "path": "/dev/nothing", "type": "c", "major": 1, "minor": 3 },
            { "path": "/dev/disk", "type": "b", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 10, "gid": 11 },
        ]),
    );
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /dev/disk", json!("b 1:5 640 10:11")),
            ("device /dev/nothing", json!("c 1:3 666 0:0")),
            ("read /dev/nothing", json!("")),
        ],
    )
}

fn disks_of_the_host(test: &Test) -> Result<()> {
    let file = test.directory.join("disk");
    std::fs::write(&file, "a".repeat(8192))?;
    let disk = LoopDevice::attach(&file)?;
    let (major, minor) = disk.numbers()?;
    let mut bundle = commands(test, &[])?;
    bundle.set(
        "/linux/devices",
        json!([{ "path": "/dev/disk", "type": "b", "major": major, "minor": minor, "gid": 6 }]),
    );
    let mut perform = |access: &str, expected: &[(&str, Value)]| {
        let allowed =
            json!({ "allow": true, "type": "b", "major": major, "minor": minor, "access": access });
        let rules = json!([{ "allow": false, "access": "rwm" }, allowed]);
        bundle.set("/linux/resources/devices", rules);
        perform_in(test, &mut bundle, expected)
    };
    perform("rw", &[("write /dev/disk new", json!("done"))])?;
    let content = format!("new{}", "a".repeat(8189));
    ensure!(
        std::fs::read_to_string(&file)? == content,
        "nothing was written"
    );
    perform(
        "r",
        &[
            ("read /dev/disk", json!(content)),
            ("write /dev/disk more", json!(EPERM)),
        ],
    )?;
    perform("m", &[("read /dev/disk", json!(EPERM))])
}

fn disks_without_sectors(test: &Test) -> Result<()> {
    let file = test.directory.join("empty");
    std::fs::write(&file, "")?;
    let disk = LoopDevice::attach(&file)?;
    let (major, minor) = disk.numbers()?;
    let mut bundle = test.idle_bundle()?;
    let device = json!({ "path": "/dev/disk", "type": "b", "major": major, "minor": minor });
    bundle.set("/linux/devices", json!([device]));
    let words = format!(
        "linux.devices[0]: cannot open the host's block device {major}:{minor}: it has no sector"
    );
    check(test, test.runtime.create(&bundle)?.output()?, &[&words])
}

fn devices_the_guest_has_not(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let device = json!({ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 });
    bundle.set("/linux/devices", json!([device]));
    let words = "linux.devices[0]: character device 10:232, which the guest kernel has not, is not supported";
    check(test, test.runtime.create(&bundle)?.output()?, &[words])
}
