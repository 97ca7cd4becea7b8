//! The host's cgroup as a scope of systemd's (`--systemd-cgroup`): a real systemd is process 1 where
//! these cases run the runtime, and says what it was asked for.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SIGTERM, SigSet};
use serde_json::json;

use super::{
    sandbox::{join, lives},
    vm::{LAZARET, REASON},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    host::has_cgroup_v1,
    invocation::Invocation,
    room::{ASSETS, Room},
    runtime::Kind,
};

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
    case!(failed_creation_leaves_no_unit).userland(),
    case!(wrong_unit_is_refused)
        .userland()
        .only(RUNC, "crun takes any path"),
    case!(systemd_ends_the_container).userland(),
    case!(unit_goes_with_the_container)
        .userland()
        .only(RUNC, "crun wants a slice"),
    case!(sandbox_of_two).userland().only(LAZARET, REASON),
    case!(bus_is_missing)
        .userland()
        .only(LAZARET, "runc asks systemd directly, crun has other words"),
    case!(annotations_are_properties)
        .userland()
        .only(RUNC, "crun reads lists in another way"),
    case!(podman_asks_for_units)
        .userland()
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

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];

/// A systemd, and the runtime beside it.
struct Booted {
    test: Test,
    room: Room,
}

impl Booted {
    fn new(test: &Test) -> Result<Self> {
        let room = Room::with_systemd(test)?;
        let test = Test {
            runtime: room.runtime(test),
            directory: test.directory.clone(),
            tag: test.tag.clone(),
            assets: test.assets.clone(),
            probe: test.probe.clone(),
            bundles: test.bundles.clone(),
            ..*test
        };
        Ok(Self { test, room })
    }

    /// An idle container of this slice.
    fn bundle(&self, slice: &str) -> Result<Bundle> {
        let mut bundle = self.test.idle_bundle()?;
        let path = format!("{slice}:e2e:{}", bundle.id);
        bundle.set("/linux/cgroupsPath", json!(path));
        Ok(bundle)
    }

    fn create(&self, bundle: &Bundle) -> Result<Invocation> {
        let create = self.test.runtime.create(bundle)?;
        Ok(create.global(&["--systemd-cgroup"]))
    }

    fn launch(&self, bundle: &Bundle) -> Result<()> {
        self.create(bundle)?.succeed()?;
        self.start(&bundle.id)
    }

    fn start(&self, id: &str) -> Result<()> {
        self.test.runtime.start(id).succeed()?;
        Ok(())
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.test.runtime.delete_force(id).succeed()?;
        Ok(())
    }

    /// Properties of a unit, by name.
    fn show(&self, unit: &str) -> Result<BTreeMap<String, String>> {
        let output = self.room.command(&["systemctl", "show", unit]).succeed()?;
        let pairs = output.stdout.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Ok(pairs.collect())
    }

    /// Demands that properties of a unit have these values.
    fn shows(&self, unit: &str, expected: &[(&str, &str)]) -> Result<()> {
        let found = self.show(unit)?;
        for (name, value) in expected {
            let found = found.get(*name).with_context(|| format!("no {name}"))?;
            ensure!(found == value, "{name} is {found}, expected {value}");
        }
        Ok(())
    }

    /// Demands that systemd knows no such unit, and that no cgroup of it is left.
    fn has_no(&self, unit: &str) -> Result<()> {
        self.shows(
            unit,
            &[("LoadState", "not-found"), ("ActiveState", "inactive")],
        )?;
        let left = crate::host::cgroups(unit);
        ensure!(left.is_empty(), "{left:?} is left");
        Ok(())
    }

    /// A file of a unit's cgroup, which is at that path for systemd. With cgroup v1 it is in the
    /// hierarchy of the controller that it is named after.
    fn file(&self, path: &str, name: &str) -> Result<String> {
        let group = self.test.tag.trim_end_matches('-');
        let controller = match name.split_once('.') {
            Some((controller, _)) if has_cgroup_v1() => controller.replace("cgroup", "systemd"),
            _ => String::new(),
        };
        let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}/{group}{path}/{name}"));
        let text = fs::read_to_string(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim_end().to_owned())
    }

    /// Demands that nothing is left in the room, and takes it away.
    fn end(self) -> Result<()> {
        let units = ["systemctl", "list-units", "--all", "--plain", "--no-legend"];
        let units = self.room.command(&[&units[..], &["--type=scope"]].concat());
        let units = units.succeed()?.stdout;
        let left = units.lines().find(|line| !line.starts_with("init.scope"));
        ensure!(
            left.is_none(),
            "a unit is left: {}",
            left.unwrap_or_default()
        );
        let mounts = self.room.command(&["cat", "/proc/1/mountinfo"]).succeed()?;
        let root = self.test.runtime.root.to_string_lossy();
        let left = mounts.stdout.lines().find(|line| line.contains(&*root));
        ensure!(
            left.is_none(),
            "a mount is left: {}",
            left.unwrap_or_default()
        );
        self.room.dissolve()
    }
}

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
    let podman = |words: &[&str]| booted.room.command(&[&["podman"], words].concat());
    let archive = format!("{ASSETS}/busybox.tar");
    podman(&["load", "-q", "-i", &archive]).succeed()?;
    let run = ["run", "--detach", "--name=box", "--network=none"];
    let limits = ["--memory=64m", "--cpu-shares=512", "busybox"];
    let sleep = ["sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"];
    let ran = podman(&[&run[..], &limits, &sleep].concat()).succeed()?;
    let shares = match has_cgroup_v1() {
        true => [("CPUShares", "512"), ("CPUShares", "1024")],
        false => [("CPUWeight", "20"), ("CPUWeight", "39")],
    };
    let unit = format!("libpod-{}.scope", ran.stdout.trim_end());
    booted.shows(
        &unit,
        &[
            ("ActiveState", "active"),
            ("Slice", "machine.slice"),
            shares[0],
        ],
    )?;
    let path = format!("/machine.slice/{unit}");
    let (_, file) = version().memory;
    let memory: u64 = booted.file(&path, file)?.parse()?;
    ensure!(memory >= 64 << 20, "{file} is {memory}");
    podman(&["exec", "box", "true"]).succeed()?;
    podman(&["update", "--cpu-shares=1024", "box"]).succeed()?;
    booted.shows(&unit, &shares[1..])?;
    podman(&["stop", "--time=60", "box"]).succeed()?;
    let ended = podman(&["wait", "box"]).succeed()?;
    ensure!(ended.stdout == "3\n", "it ended with {}", ended.stdout);
    podman(&["rm", "box"]).succeed()?;
    booted.has_no(&unit)?;
    booted.end()
}
