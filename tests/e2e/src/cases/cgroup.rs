//! The host's cgroup of a container and the size of its VM: where it is, what is in it, what it
//! allows, and that it goes. The host may have cgroup v1, v2 or both.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{
    errors::check,
    vm::{LAZARET, REASON},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    host::{self, has_cgroup_v1},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "cgroup",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(path_is_absolute).covers(&["config-linux#cgroups-path-2..3"]),
    case!(path_is_relative).covers(&["config-linux#cgroups-path-3"]),
    case!(path_is_empty).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun goes by another rule without a path",
    ),
    case!(limits_are_the_hosts_too).covers(&["runtime#create-5"]),
    case!(limits_have_room_for_the_machine).only(LAZARET, REASON),
    case!(device_of_a_limit_is_missing).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun names the value and not the file",
    ),
    case!(everything_of_a_sandbox_is_inside).only(LAZARET, REASON),
    case!(sandbox_needs_too_much_memory).only(LAZARET, REASON),
    case!(processes_were_there_before).only(LAZARET, "runc's delete fails for them"),
    case!(cgroup_is_frozen)
        .only(LAZARET, "runc waits for the empty cgroup to freeze")
        .covers(&["config-linux#control-groups-1"])
        .right("lazaret: a container whose cgroup is frozen could not start"),
    case!(killed_and_deleted).only(LAZARET, REASON),
    case!(systemd_is_missing).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun asks the bus, and says something else",
    ),
    case!(container_sees_its_limits).only(LAZARET, REASON),
];

const PROBES: &[(&str, Probe)] = &[("eat", eat)];

/// Where the hierarchy is mounted, or several are by the names of their controllers.
const TOP: &str = "/sys/fs/cgroup";

/// Fills that many MiB of memory after a line came, and says so.
fn eat(arguments: &[String]) -> Result<u8> {
    let mib: usize = arguments.first().map_or(Ok(64), |word| word.parse())?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let bytes = vec![1_u8; mib << 20];
    println!("{}", bytes.len());
    Ok(0)
}

/// The path of a process in the hierarchy, which must be the same in all if there are several.
fn path_of(pid: Pid) -> Result<String> {
    let pid = pid.as_raw_nonzero();
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    // Of a hierarchy that is not mounted nobody knows the directories.
    let unified = Path::new(TOP).join("unified").exists() || !has_cgroup_v1();
    let lines = text
        .lines()
        .filter(|line| unified || !line.starts_with("0:"));
    let mut paths: Vec<&str> = lines
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .collect();
    paths.dedup();
    ensure!(paths.len() == 1, "it is in different cgroups: {text}");
    Ok(paths[0].to_owned())
}

/// Launches, demands the path, deletes, and demands that it is gone.
fn is_at(test: &Test, bundle: &Bundle, path: &str) -> Result<()> {
    test.runtime.launch(bundle)?;
    let found = path_of(test.runtime.pid(&bundle.id)?)?;
    ensure!(found == path, "it is at {found}, expected {path}");
    test.runtime.destroy(&bundle.id)?;
    is_gone(bundle)
}

/// Demands that nothing of a container's cgroup is left, in any hierarchy.
fn is_gone(bundle: &Bundle) -> Result<()> {
    let left = host::cgroups(&bundle.id);
    ensure!(left.is_empty(), "{left:?} is left");
    Ok(())
}

/// What relative paths begin at, without the last slash: the cgroup above the suite's own, as none
/// with processes in it can pass controllers on; with cgroup v1 the suite's own.
fn parent() -> Result<String> {
    let own = path_of(rustix::process::getpid())?;
    let (parent, _) = own.rsplit_once('/').unwrap_or_default();
    let parent = if has_cgroup_v1() {
        own.trim_end_matches('/')
    } else {
        parent
    };
    Ok(parent.to_owned())
}

fn path_is_absolute(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let path = format!("/lazaret-e2e/deep/er/{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    is_at(test, &bundle, &path)
}

fn path_is_relative(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let path = format!("lazaret-e2e/../lazaret-e2e/{}", bundle.id);
    bundle.set("/linux/cgroupsPath", json!(path));
    let path = format!("{}/lazaret-e2e/{}", parent()?, bundle.id);
    is_at(test, &bundle, &path)
}

fn path_is_empty(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    if let Some(linux) = bundle.config["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
    let path = format!("{}/{}", parent()?, bundle.id);
    is_at(test, &bundle, &path)
}

/// The directory with a container's files of a controller.
fn directory(bundle: &Bundle, controller: &str) -> PathBuf {
    let path = bundle.config["linux"]["cgroupsPath"].as_str();
    let path = path.unwrap_or_default();
    PathBuf::from(match has_cgroup_v1() {
        true => format!("{TOP}/{controller}{path}"),
        false => format!("{TOP}{path}"),
    })
}

/// Picks what belongs to the host's version of cgroups.
fn by_version<T>(v1: T, v2: T) -> T {
    if has_cgroup_v1() { v1 } else { v2 }
}

/// The content of a file, which is named after its controller.
fn value(bundle: &Bundle, name: &str) -> Result<String> {
    let controller = name.split('.').next().unwrap_or_default();
    let path = directory(bundle, controller).join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
    Ok(text?.trim_end().to_owned())
}

fn limited(test: &Test) -> Result<Bundle> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(
        "/linux/resources",
        json!({
            "cpu": { "shares": 512, "quota": 80_000, "period": 100_000, "cpus": "0", "mems": "0" },
            "memory": { "limit": 256 << 20, "reservation": 64 << 20 },
            "pids": { "limit": 20 },
        }),
    );
    Ok(bundle)
}

/// Linux 6.12 takes `memory.soft_limit_in_bytes` and forgets it.
const LIMITS_V1: &[(&str, &str)] = &[
    ("cpu.cfs_quota_us", "80000"),
    ("cpu.cfs_period_us", "100000"),
    ("cpu.shares", "512"),
    ("cpuset.cpus", "0"),
    ("cpuset.mems", "0"),
];
const LIMITS_V2: &[(&str, &str)] = &[
    ("cpu.max", "80000 100000"),
    ("cpu.weight", "20"),
    ("cpuset.cpus", "0"),
    ("cpuset.mems", "0"),
    ("memory.low", "67108864"),
];
const CHANGED_V1: &[(&str, &str)] = &[
    ("cpu.cfs_quota_us", "60000"),
    ("cpu.cfs_period_us", "120000"),
    ("cpu.shares", "1024"),
];
const CHANGED_V2: &[(&str, &str)] = &[
    ("cpu.max", "60000 120000"),
    ("cpu.weight", "39"),
    ("memory.low", "33554432"),
];

fn has_values(bundle: &Bundle, expected: &[(&str, &str)]) -> Result<()> {
    for (name, expected) in expected {
        let found = value(bundle, name)?;
        ensure!(found == *expected, "{name} is {found}, expected {expected}");
    }
    Ok(())
}

/// The files that limit memory and processes.
fn maxima() -> [&'static str; 2] {
    [
        by_version("memory.limit_in_bytes", "memory.max"),
        "pids.max",
    ]
}

fn limits_are_the_hosts_too(test: &Test) -> Result<()> {
    let bundle = limited(test)?;
    test.runtime.launch(&bundle)?;
    has_values(&bundle, by_version(LIMITS_V1, LIMITS_V2))?;
    for (name, least) in maxima().into_iter().zip([256 << 20, 20]) {
        let found: u64 = value(&bundle, name)?.parse()?;
        ensure!(found >= least, "{name} is {found}, less than {least}");
    }
    let update = test.runtime.verb("update", &[&bundle.id]).option(&[
        "--cpu-share=1024",
        "--cpu-quota=60000",
        "--cpu-period=120000",
        "--memory-reservation=33554432",
    ]);
    update.succeed()?;
    has_values(&bundle, by_version(CHANGED_V1, CHANGED_V2))?;
    test.runtime.destroy(&bundle.id)
}

/// docs/resources.md has the rules.
fn limits_have_room_for_the_machine(test: &Test) -> Result<()> {
    let mut bundle = limited(test)?;
    let swap = json!(320_u64 << 20);
    bundle.set("/linux/resources/memory/swap", swap);
    test.runtime.launch(&bundle)?;
    let [memory, pids] = maxima();
    // A VM of 256 + 64 + 5 MiB, half of that, and 64.
    let found = value(&bundle, memory)?;
    ensure!(found == (551_u64 << 20).to_string(), "{memory} is {found}");
    let (swap, expected) = by_version(
        ("memory.memsw.limit_in_bytes", 551_u64 + 64),
        ("memory.swap.max", 64),
    );
    let found = value(&bundle, swap)?;
    ensure!(found == (expected << 20).to_string(), "{swap} is {found}");
    let found = value(&bundle, pids)?;
    ensure!(found == "148", "{pids} is {found}");
    test.runtime.destroy(&bundle.id)
}

fn device_of_a_limit_is_missing(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let throttle = json!([{ "major": 999, "minor": 0, "rate": 1000 }]);
    bundle.set("/linux/resources/blockIO/throttleReadBpsDevice", throttle);
    let file = by_version("blkio.throttle.read_bps_device", "io.max");
    check(test, test.runtime.create(&bundle)?.output()?, &[file])?;
    is_gone(&bundle)
}

/// Processes of ours, below this case.
fn ours() -> Result<Vec<Pid>> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let all = host::descendants(own)?;
    let ours = all.iter().filter(|process| {
        // The kernel keeps 15 characters of a name.
        process.name.starts_with("lazaret-vmm") || process.name.starts_with("lazaret-monitor")
    });
    Ok(ours
        .filter(|process| process.state != 'Z')
        .filter_map(|process| Pid::from_raw(process.pid))
        .collect())
}

/// The file with the memory that is used.
fn usage() -> &'static str {
    by_version("memory.usage_in_bytes", "memory.current")
}

fn everything_of_a_sandbox_is_inside(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let all = ours()?;
    ensure!(all.len() == 2, "{} processes", all.len());
    let expected = bundle.config["linux"]["cgroupsPath"].clone();
    for pid in all {
        let path = path_of(pid)?;
        ensure!(expected == path.as_str(), "{path}");
    }
    // What callers read.
    let current: u64 = value(&bundle, usage())?.parse()?;
    ensure!(current > 8 << 20, "the VM's memory is not there: {current}");
    match has_cgroup_v1() {
        true => ensure!(value(&bundle, "cpuacct.usage")? != "0"),
        false => ensure!(value(&bundle, "cpu.stat")?.contains("usage_usec ")),
    }
    test.runtime.destroy(&bundle.id)
}

fn sandbox_needs_too_much_memory(test: &Test) -> Result<()> {
    let bundle = test.bundle("eat", &["100"])?;
    let (input, mut writer) = std::io::pipe()?;
    let (output, stdout) = std::io::pipe()?;
    let running = test.runtime.run(&bundle)?.stdin(input).stdout(stdout);
    let running = running.spawn()?;
    Dialogue::from(output).expect("ready\n")?;
    let directory = directory(&bundle, "memory");
    let current: u64 = value(&bundle, usage())?.parse()?;
    let limit = (current + (16 << 20)).to_string();
    let [memory, _] = maxima();
    fs::write(directory.join(memory), &limit)?;
    let (swap, limit) = by_version(
        ("memory.memsw.limit_in_bytes", limit.as_str()),
        ("memory.swap.max", "0"),
    );
    fs::write(directory.join(swap), limit)?;
    std::io::Write::write_all(&mut writer, b"\n")?;
    running.wait()?.fails(
        255,
        &[
            "sandbox lost",
            "needs more memory than its cgroup",
            &directory.to_string_lossy(),
        ],
    )?;
    Ok(())
}

/// A process that stays in a cgroup.
fn stay_in(directory: &Path) -> Result<Child> {
    fs::create_dir_all(directory)?;
    let child = Command::new("sleep").arg("1000").spawn()?;
    fs::write(directory.join("cgroup.procs"), child.id().to_string())?;
    Ok(child)
}

fn processes_were_there_before(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["0"])?;
    let directory = directory(&bundle, "memory");
    let mut stranger = stay_in(&directory)?;
    let output = test.runtime.run(&bundle)?.output()?.code(0)?;
    let warning = "container's cgroup is not empty: 1 process(es) found";
    ensure!(output.stderr.contains(warning), "{}", output.stderr);
    ensure!(stranger.try_wait()?.is_none(), "the stranger was killed");
    stranger.kill()?;
    stranger.wait()?;
    Ok(fs::remove_dir(directory)?)
}

fn cgroup_is_frozen(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let directory = directory(&bundle, "freezer");
    fs::create_dir_all(&directory)?;
    let (file, value) = by_version(("freezer.state", "FROZEN"), ("cgroup.freeze", "1"));
    fs::write(directory.join(file), value)?;
    // It is not lazaret's, and stays as it is.
    for _ in 0..2 {
        let output = test.runtime.create(&bundle)?.output()?;
        check(test, output, &["container's cgroup unexpectedly frozen"])?;
    }
    Ok(fs::remove_dir(directory)?)
}

/// Whatever is killed when, the cgroup goes with the state; the leak check looks for it.
fn killed_and_deleted(test: &Test) -> Result<()> {
    for victims in [&[0][..], &[1], &[0, 1], &[1, 0]] {
        let bundle = test.idle_bundle()?;
        test.runtime.launch(&bundle)?;
        let all = ours()?;
        ensure!(all.len() == 2, "{} processes", all.len());
        for &victim in victims {
            kill_process(all[victim], Signal::KILL)?;
        }
        test.runtime.delete_force(&bundle.id).succeed()?;
        is_gone(&bundle)?;
    }
    Ok(())
}

fn systemd_is_missing(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/linux/cgroupsPath", json!("system.slice:e2e:missing"));
    let create = test.runtime.create(&bundle)?.global(&["--systemd-cgroup"]);
    let words = ["systemd not running on this host, cannot use systemd cgroups manager"];
    check(test, create.output()?, &words)
}

/// Guest memory is a little above the limit, and there are as many CPUs as the limits keep busy.
fn container_sees_its_limits(test: &Test) -> Result<()> {
    for limit_mib in [64_u64, 200, 1024] {
        let mut bundle = test.bundle("machine", &[])?;
        bundle.set(
            "/linux/resources/memory",
            json!({ "limit": limit_mib << 20 }),
        );
        let said = test.runtime.run(&bundle)?.succeed()?.json()?;
        let kib = said["memory_kib"].as_u64().context("no memory")?;
        let limit_kib = limit_mib << 10;
        let most = limit_kib + limit_kib / 16 + (64 << 10);
        ensure!(
            (limit_kib..most).contains(&kib),
            "{kib} KiB for a limit of {limit_kib} KiB"
        );
    }
    for (cpus, annotation) in [(1, None), (2, Some("2"))] {
        let mut bundle = test.bundle("machine", &[])?;
        let quota = json!({ "quota": 90_000, "period": 100_000, "cpus": "0" });
        bundle.set("/linux/resources/cpu", quota);
        if let Some(number) = annotation {
            bundle.set("/annotations", json!({ "io.lazaret.vm.vcpus": number }));
        }
        let found = test.runtime.run(&bundle)?.succeed()?.json()?["processors"].clone();
        ensure!(found == cpus, "{found} CPUs, expected {cpus}");
    }
    Ok(())
}
