//! The host's cgroup as a scope of systemd's (`--systemd-cgroup`): a real systemd is process 1 where
//! these cases run the runtime, and says what it was asked for.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SIGTERM, SigSet};
use serde_json::json;

use super::{
    engines::docker::Daemon,
    sandbox::{join, lives},
    vm::{LAZARET, REASON},
};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    host::has_cgroup_v1,
    room::ASSETS,
    runtime::Kind,
};

mod booted;

use booted::Booted;

pub(crate) const TOPIC: Topic = Topic {
    name: "systemd",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(unit_has_the_limits)
        .userland()
        .only(RUNC, "crun sets other properties"),
    case!(path_is_empty).userland(),
    case!(failed_creation_leaves_no_unit)
        .userland()
        .not_on_legacy(UNTOLD),
    case!(wrong_unit_is_refused)
        .userland()
        .only(RUNC, "crun takes any path"),
    case!(systemd_ends_the_container)
        .userland()
        .not_on_legacy(UNTOLD),
    case!(unit_goes_with_the_container)
        .userland()
        .not_on_legacy(UNTOLD)
        .only(RUNC, "crun wants a slice"),
    case!(sandbox_of_two).userland().only(LAZARET, REASON),
    case!(bus_is_missing)
        .userland()
        .not_on_legacy(UNTOLD)
        .only(LAZARET, "runc asks systemd directly, crun has other words"),
    case!(annotations_are_properties)
        .userland()
        .only(RUNC, "crun reads lists in another way"),
    case!(podman_asks_for_units)
        .userland()
        .not_on_legacy(UNTOLD)
        .timeout_s(300)
        .only(RUNC, "runc is proof enough, and engines take long"),
    case!(docker_asks_for_units)
        .userland()
        .not_on_legacy(UNTOLD)
        .timeout_s(300)
        .only(RUNC, "runc is proof enough, and engines take long"),
];

const PROBES: &[(&str, Probe)] = &[("farewell", farewell)];

/// Waits for SIGTERM, answers, and exits with 7.
fn farewell(_: &[String]) -> Result<u8> {
    let mut signals = SigSet::empty();
    signals.add(SIGTERM);
    signals.thread_block()?;
    println!("ready");
    signals.wait()?;
    println!("farewell");
    Ok(7)
}

/// The kernel tells of the end of processes by a program that it starts outside of any namespace.
const UNTOLD: &str =
    "with cgroup v1 alone, a systemd in a namespace is not told when a unit is empty";

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];

/// What is the same under every runtime, for the limits of the first case.
const PROPERTIES: &[(&str, &str)] = &[
    ("ActiveState", "active"),
    ("SubState", "running"),
    ("Transient", "yes"),
    ("Slice", "e2e-deep.slice"),
    ("Delegate", "yes"),
    ("DefaultDependencies", "no"),
    ("CPUAccounting", "yes"),
    ("MemoryAccounting", "yes"),
    ("TasksAccounting", "yes"),
    ("CPUQuotaPerSecUSec", "800ms"),
    ("CPUQuotaPeriodUSec", "200ms"),
    ("AllowedCPUs", "0"),
    ("AllowedMemoryNodes", "0"),
    ("CollectMode", "inactive"),
    ("KillMode", "control-group"),
];

/// What differs between the versions of cgroups.
struct Version {
    properties: &'static [(&'static str, &'static str)],
    /// After the update: properties, and files.
    changed: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, &'static str)],
    /// Property and file of the limit of memory.
    memory: (&'static str, &'static str),
}

const V1: Version = Version {
    properties: &[("BlockIOAccounting", "yes"), ("CPUShares", "512")],
    changed: &[
        ("CPUShares", "1024"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
    ],
    files: &[
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.shares", "1024"),
        ("cpuset.cpus", "0"),
    ],
    memory: ("MemoryLimit", "memory.limit_in_bytes"),
};

const V2: Version = Version {
    properties: &[
        ("IOAccounting", "yes"),
        ("CPUWeight", "20"),
        ("MemoryLow", "67108864"),
        ("MemorySwapMax", "67108864"),
    ],
    changed: &[
        ("CPUWeight", "39"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
        ("MemoryLow", "33554432"),
        ("MemorySwapMax", "67108864"),
    ],
    files: &[
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "39"),
        ("memory.low", "33554432"),
        ("cpuset.cpus", "0"),
    ],
    memory: ("MemoryMax", "memory.max"),
};

/// The host's.
fn version() -> &'static Version {
    if has_cgroup_v1() { &V1 } else { &V2 }
}

fn unit_has_the_limits(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.bundle("e2e-deep.slice")?;
    bundle.set(
        "/linux/resources",
        json!({
            "cpu": { "shares": 512, "quota": 160_000, "period": 200_000, "cpus": "0", "mems": "0" },
            "memory": { "limit": 256 << 20, "reservation": 64 << 20, "swap": 320 << 20 },
            "pids": { "limit": 20 },
        }),
    );
    booted.launch(&bundle)?;
    let unit = format!("e2e-{}.scope", bundle.id);
    let path = format!("/e2e.slice/e2e-deep.slice/{unit}");
    booted.shows(&unit, PROPERTIES)?;
    booted.shows(&unit, version().properties)?;
    booted.shows(&unit, &[("ControlGroup", &path), ("Id", &unit)])?;
    booted.shows("e2e-deep.slice", &[("ActiveState", "active")])?;
    let room = is_enough(&booted, &unit, &path, 256 << 20, 20)?;
    let processes = booted.file(&path, "cgroup.procs")?.lines().count();
    let expected = if test.runtime.kind == Kind::Lazaret {
        2
    } else {
        1
    };
    ensure!(processes == expected, "{processes} processes are in it");

    let update = booted.test.runtime.verb("update", &[&bundle.id]).option(&[
        "--cpu-share=1024",
        "--cpu-quota=50000",
        "--cpu-period=100000",
        "--memory-reservation=33554432",
        "--pids-limit=30",
    ]);
    update.succeed()?;
    booted.shows(&unit, version().changed)?;
    ensure!(is_enough(&booted, &unit, &path, 256 << 20, 30)? == room);
    // Systemd writes all it knows again, and must not undo anything.
    booted
        .room
        .command(&["systemctl", "daemon-reload"])
        .succeed()?;
    booted.shows(&unit, version().changed)?;
    for (name, value) in version().files {
        let found = booted.file(&path, name)?;
        ensure!(found == *value, "{name} is {found}, expected {value}");
    }
    is_enough(&booted, &unit, &path, 256 << 20, 30)?;
    booted.delete(&bundle.id)?;
    booted.has_no(&unit)?;
    booted.end()
}

/// Demands that systemd and the kernel allow at least as much memory and as many tasks, and both
/// the same; tells how much more memory.
fn is_enough(booted: &Booted, unit: &str, path: &str, memory: u64, tasks: u64) -> Result<u64> {
    let found = booted.show(unit)?;
    let (property, file) = version().memory;
    let mut more = 0;
    for (name, file, least) in [(property, file, memory), ("TasksMax", "pids.max", tasks)] {
        let said = found.get(name).with_context(|| format!("no {name}"))?;
        let written = booted.file(path, file)?;
        ensure!(*said == written, "{name} is {said}, {file} is {written}");
        let number: u64 = written.parse()?;
        let exact = booted.test.runtime.kind != Kind::Lazaret;
        ensure!(
            number >= least && (!exact || number == least),
            "{name} is {number}, expected {least}"
        );
        more = more.max(number - least);
    }
    Ok(more)
}

fn path_is_empty(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.test.idle_bundle()?;
    bundle.set("/linux/cgroupsPath", json!(""));
    booted.launch(&bundle)?;
    let unit = format!("{}-{}.scope", test.runtime.kind.name(), bundle.id);
    booted.shows(
        &unit,
        &[("ActiveState", "active"), ("Slice", "system.slice")],
    )?;
    booted.delete(&bundle.id)?;
    booted.has_no(&unit)?;
    booted.end()
}

fn failed_creation_leaves_no_unit(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.bundle("system.slice")?;
    bundle.set("/process/args", json!(["/no/such/program"]));
    let output = booted.create(&bundle)?.output()?;
    output.fails(1, &["/no/such/program"])?;
    booted.has_no(&format!("e2e-{}.scope", bundle.id))?;
    booted.end()
}

fn annotations_are_properties(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.bundle("system.slice")?;
    bundle.set(
        "/annotations",
        json!({
            "org.systemd.property.TimeoutStopSec": "7",
            "org.systemd.property.RuntimeMaxUSec": "uint64 90000000",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "org.systemd.property.KillSignal": "10",
            "org.systemd.property.SendSIGHUP": "true",
            "org.systemd.property.Wants": "['e2e.target', 'dbus.socket']",
        }),
    );
    booted.launch(&bundle)?;
    let unit = format!("e2e-{}.scope", bundle.id);
    let expected = [
        ("TimeoutStopUSec", "7s"),
        ("RuntimeMaxUSec", "1min 30s"),
        ("CollectMode", "inactive-or-failed"),
        ("KillSignal", "10"),
        ("SendSIGHUP", "yes"),
    ];
    booted.shows(&unit, &expected)?;
    let wants = booted.show(&unit)?.remove("Wants").unwrap_or_default();
    ensure!(
        wants.contains("e2e.target") && wants.contains("dbus.socket"),
        "Wants is {wants}"
    );
    booted.delete(&bundle.id)?;
    booted.has_no(&unit)?;
    for (name, value, word) in [
        ("KillSignal", "TERM", "KillSignal"),
        ("no", "1", "org.systemd.property.no"),
        ("NoSuchThing", "1", "NoSuchThing"),
    ] {
        let mut bundle = booted.bundle("system.slice")?;
        let name = format!("org.systemd.property.{name}");
        bundle.set("/annotations", json!({ name: value }));
        booted.create(&bundle)?.output()?.fails(1, &[word])?;
        booted.has_no(&format!("e2e-{}.scope", bundle.id))?;
    }
    booted.end()
}

fn wrong_unit_is_refused(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.bundle("")?;
    for (path, words) in [
        ("/a/b", "slice:prefix:name"),
        ("no-slice:e2e:name", "invalid slice name: no-slice"),
        ("a--b.slice:e2e:name", "invalid slice name: a--b.slice"),
        // Nobody but systemd knows what it takes for the name of a unit.
        ("system.slice:e2e:na me", "na me"),
    ] {
        bundle.set("/linux/cgroupsPath", json!(path));
        booted.create(&bundle)?.output()?.fails(1, &[words])?;
    }
    booted.end()
}

/// As when the machine shuts down, or an operator stops the unit: the process gets its SIGTERM, and
/// what it answers.
fn systemd_ends_the_container(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.bundle("system.slice")?;
    bundle.probe("farewell", &[]);
    let (reader, writer) = std::io::pipe()?;
    let run = booted.test.runtime.run(&bundle)?;
    let run = run.global(&["--systemd-cgroup"]).stdout(writer).spawn()?;
    let mut said = Dialogue::from(reader);
    said.expect("ready\n")?;
    let unit = format!("e2e-{}.scope", bundle.id);
    booted
        .room
        .command(&["systemctl", "stop", &unit])
        .succeed()?;
    said.expect("farewell\n")?;
    run.wait()?.code(7)?;
    booted.has_no(&unit)?;
    booted.end()
}

fn unit_goes_with_the_container(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let mut bundle = booted.bundle("")?;
    bundle.probe("exit", &["3"]);
    let run = booted.test.runtime.run(&bundle)?;
    run.global(&["--systemd-cgroup"]).output()?.code(3)?;
    booted.has_no(&format!("e2e-{}.scope", bundle.id))?;
    booted.end()
}

/// Each container of a sandbox has a unit, and the VM is in one of them as long as there is one.
fn sandbox_of_two(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let first = booted.bundle("")?;
    booted.launch(&first)?;
    let mut second = booted.bundle("e2e.slice")?;
    join(&booted.test, &mut second, &first.id, &["ipc", "uts"])?;
    booted.launch(&second)?;
    let units = [&first, &second].map(|bundle| format!("e2e-{}.scope", bundle.id));
    let path = format!("/e2e.slice/{}", units[1]);
    booted.shows(&units[0], &[("ActiveState", "active")])?;
    booted.shows(&units[1], &[("ControlGroup", &path)])?;
    booted.delete(&first.id)?;
    booted.has_no(&units[0])?;
    lives(&booted.test, &second.id)?;
    let processes = booted.file(&path, "cgroup.procs")?.lines().count();
    ensure!(processes == 2, "{processes} processes are in it");
    booted.delete(&second.id)?;
    booted.has_no(&units[1])?;
    booted.end()
}

/// Without the bus nothing is made; what was made before goes all the same.
fn bus_is_missing(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let bundle = booted.bundle("")?;
    booted.launch(&bundle)?;
    let stop = ["systemctl", "stop", "dbus.socket", "dbus.service"];
    booted.room.command(&stop).succeed()?;
    let other = booted.bundle("")?;
    let words = ["cannot connect to the system bus"];
    booted.create(&other)?.output()?.fails(1, &words)?;
    booted.has_no(&format!("e2e-{}.scope", other.id))?;
    let update = booted.test.runtime.verb("update", &[&bundle.id]);
    let update = update.option(&["--cpu-share=1024"]).output()?;
    update.fails(1, &words)?;
    booted.delete(&bundle.id)?;
    let unit = format!("e2e-{}.scope", bundle.id);
    let left = crate::host::cgroups(&unit);
    ensure!(left.is_empty(), "{left:?} is left");
    // Nobody could tell systemd, which learns it a little later from the kernel.
    booted
        .room
        .command(&["systemctl", "stop", &unit])
        .output()?;
    booted.has_no(&unit)?;
    booted.end()
}

/// Podman as it is on machines with systemd.
fn podman_asks_for_units(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    engine_asks_for_units(&booted, "podman", "machine.slice", "libpod")?;
    booted.end()
}

fn docker_asks_for_units(test: &Test) -> Result<()> {
    let booted = Booted::new(test)?;
    let daemon = Daemon::start(&booted.room, test.runtime.kind, "systemd")?;
    engine_asks_for_units(&booted, "docker", "system.slice", "docker")?;
    daemon.end()?;
    booted.end()
}

/// An engine has a container whose unit is in `slice` and whose name begins with `prefix`.
fn engine_asks_for_units(booted: &Booted, program: &str, slice: &str, prefix: &str) -> Result<()> {
    let engine = |words: &[&str]| booted.room.command(&[&[program], words].concat());
    let archive = format!("{ASSETS}/busybox.tar");
    engine(&["load", "-q", "-i", &archive]).succeed()?;
    let run = ["run", "--detach", "--name=box", "--network=none"];
    let limits = ["--memory=64m", "--cpu-shares=512", "busybox"];
    let sleep = ["sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"];
    let ran = engine(&[&run[..], &limits, &sleep].concat()).succeed()?;
    let shares = match has_cgroup_v1() {
        true => [("CPUShares", "512"), ("CPUShares", "1024")],
        false => [("CPUWeight", "20"), ("CPUWeight", "39")],
    };
    let unit = format!("{prefix}-{}.scope", ran.stdout.trim_end());
    booted.shows(
        &unit,
        &[("ActiveState", "active"), ("Slice", slice), shares[0]],
    )?;
    let path = format!("/{slice}/{unit}");
    let (_, file) = version().memory;
    let memory: u64 = booted.file(&path, file)?.parse()?;
    ensure!(memory >= 64 << 20, "{file} is {memory}");
    engine(&["exec", "box", "true"]).succeed()?;
    engine(&["update", "--cpu-shares=1024", "box"]).succeed()?;
    booted.shows(&unit, &shares[1..])?;
    engine(&["stop", "--time=60", "box"]).succeed()?;
    let ended = engine(&["wait", "box"]).succeed()?;
    ensure!(ended.stdout == "3\n", "it ended with {}", ended.stdout);
    engine(&["rm", "box"]).succeed()?;
    booted.has_no(&unit)
}
