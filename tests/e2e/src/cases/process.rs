//! Attributes of the process: what `config.json` says about it is what it finds.

use std::{collections::BTreeMap, fs, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
};

pub(crate) const TOPIC: Topic = Topic {
    name: "process",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(is_the_first_process),
    case!(users_and_groups).covers(&["runtime#lifecycle-1"]),
    case!(umask),
    case!(arguments).covers(&["config#process-5"]),
    case!(environment),
    case!(working_directory),
    case!(resource_limits).covers(&[
        "config#posix-process-3",
        "config#posix-process-5",
        "config#posix-process-7",
    ]),
    case!(capability_sets).covers(&["runtime#lifecycle-1"]),
    case!(no_capabilities),
    case!(capabilities_of_another_user),
    case!(no_new_privileges),
    case!(oom_score).covers(&["config#linux-process-3"]),
    case!(host_name).covers(&["runtime#create-5"]),
    case!(namespaces).covers(&["config-linux#namespaces-2", "config-linux#namespaces-6"]),
    case!(user_namespace).covers(&["config-linux#namespaces-2"]),
    case!(only_the_standard_descriptors),
    case!(kernel_parameters),
    case!(cgroup_limits).covers(&["runtime#lifecycle-1", "config-linux#unified-1"]),
    case!(program_is_found_on_path).covers(&["config#process-5"]),
];

const PROBES: &[(&str, Probe)] = &[("report", report)];

/// Prints all attributes of this process as one JSON object.
fn report(arguments: &[String]) -> Result<u8> {
    let status = fs::read_to_string("/proc/self/status")?;
    let status: BTreeMap<&str, &str> = status
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .collect();
    let limits = fs::read_to_string("/proc/self/limits")?;
    let names = nix::sys::utsname::uname()?;
    let environment: Vec<String> = fs::read_to_string("/proc/self/environ")?
        .split_terminator('\0')
        .map(str::to_owned)
        .collect();
    let files = |paths: &[String]| -> BTreeMap<String, String> {
        let read =
            |path: &String| fs::read_to_string(path).unwrap_or_else(|error| error.to_string());
        paths
            .iter()
            .map(|path| (path.clone(), read(path).trim_end().to_owned()))
            .collect()
    };
    let all = json!({
        "pid": std::process::id(),
        "parent": std::os::unix::process::parent_id(),
        "arguments": arguments,
        "environment": environment,
        "cwd": std::env::current_dir()?,
        "status": status,
        "limits": limits.lines().collect::<Vec<_>>(),
        "oom_score_adj": fs::read_to_string("/proc/self/oom_score_adj")?.trim_end(),
        "hostname": names.nodename().to_string_lossy(),
        "domainname": names.domainname().to_string_lossy(),
        "namespaces": links("/proc/self/ns")?,
        "descriptors": links("/proc/self/fd")?,
        "cgroup": fs::read_to_string("/proc/self/cgroup")?.trim_end(),
        "uid_map": fs::read_to_string("/proc/self/uid_map")?.trim(),
        "files": files(arguments),
    });
    std::io::stdout().write_all(&serde_json::to_vec(&all)?)?;
    Ok(0)
}

/// Names and targets of the symbolic links in a directory.
fn links(directory: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // The descriptor that reads the directory is gone by now, or is not one of the process's.
        if let Ok(target) = fs::read_link(entry.path())
            && !target.starts_with("/proc")
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            found.insert(name, target.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Runs the report in a container.
fn reported(test: &Test, bundle: &Bundle) -> Result<Value> {
    test.runtime.run(bundle)?.succeed()?.json()
}

/// A bundle that reports.
fn reporter(test: &Test) -> Result<Bundle> {
    test.bundle("report", &[])
}

/// Demands that one place of the report has this value.
pub(super) fn expect(report: &Value, pointer: &str, expected: &Value) -> Result<()> {
    let found = report.pointer(pointer).unwrap_or(&Value::Null);
    ensure!(
        found == expected,
        "{pointer} is {found}, expected {expected}"
    );
    Ok(())
}

/// A field of `/proc/self/status`, its words separated by single spaces.
pub(super) fn status(report: &Value, field: &str) -> Result<String> {
    let text = report["status"][field]
        .as_str()
        .with_context(|| format!("no field {field}"))?;
    Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn expect_status(report: &Value, field: &str, expected: &str) -> Result<()> {
    let found = status(report, field)?;
    ensure!(found == expected, "{field} is {found}, expected {expected}");
    Ok(())
}

fn is_the_first_process(test: &Test) -> Result<()> {
    let report = reported(test, &reporter(test)?)?;
    expect(&report, "/pid", &json!(1))?;
    expect(&report, "/parent", &json!(0))
}

fn users_and_groups(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    bundle.set(
        "/process/user",
        json!({ "uid": 1000, "gid": 2000, "additionalGids": [5, 3000, 70000] }),
    );
    let report = reported(test, &bundle)?;
    expect_status(&report, "Uid", "1000 1000 1000 1000")?;
    expect_status(&report, "Gid", "2000 2000 2000 2000")?;
    expect_status(&report, "Groups", "5 3000 70000")?;

    // A number without an entry in /etc/passwd, and no further groups.
    let mut bundle = reporter(test)?;
    bundle.set("/process/user", json!({ "uid": 4_294_967, "gid": 0 }));
    let report = reported(test, &bundle)?;
    expect_status(&report, "Uid", "4294967 4294967 4294967 4294967")?;
    ensure!(
        ["", "0"].contains(&&*status(&report, "Groups")?),
        "groups: {}",
        status(&report, "Groups")?
    );
    Ok(())
}

fn umask(test: &Test) -> Result<()> {
    let report = reported(test, &reporter(test)?)?;
    expect_status(&report, "Umask", "0022")?;
    let mut bundle = reporter(test)?;
    bundle.set("/process/user/umask", json!(0o027));
    expect_status(&reported(test, &bundle)?, "Umask", "0027")
}

fn arguments(test: &Test) -> Result<()> {
    let words = [
        "",
        "two words",
        "ünïcödé",
        "new\nline",
        "--flag",
        "-",
        "\"quoted\"",
        "$HOME",
        "a=b",
    ];
    let bundle = test.bundle("report", &words)?;
    expect(&reported(test, &bundle)?, "/arguments", &json!(words))?;
    let long = "x".repeat(100_000);
    let bundle = test.bundle("report", &[&long])?;
    expect(&reported(test, &bundle)?, "/arguments", &json!([long]))
}

fn environment(test: &Test) -> Result<()> {
    let words = [
        "PATH=/bin",
        "HOME=/elsewhere",
        "EMPTY=",
        "EQUALS=a=b=c",
        "SPACES= a b ",
        "Ü=ß",
    ];
    let mut bundle = reporter(test)?;
    bundle.set("/process/env", json!(words));
    expect(&reported(test, &bundle)?, "/environment", &json!(words))
}

fn working_directory(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    bundle.set("/process/cwd", json!("/etc"));
    expect(&reported(test, &bundle)?, "/cwd", &json!("/etc"))?;
    let mut bundle = reporter(test)?;
    bundle.set("/process/cwd", json!("/work/not/there/yet"));
    expect(
        &reported(test, &bundle)?,
        "/cwd",
        &json!("/work/not/there/yet"),
    )
}

fn resource_limits(test: &Test) -> Result<()> {
    let limits: [(&str, u64, u64, &str); 8] = [
        ("RLIMIT_NOFILE", 1000, 2000, "Max open files"),
        ("RLIMIT_CORE", 0, 4096, "Max core file size"),
        ("RLIMIT_NPROC", 300, 400, "Max processes"),
        ("RLIMIT_STACK", 1 << 20, 1 << 21, "Max stack size"),
        ("RLIMIT_FSIZE", 1 << 30, 1 << 31, "Max file size"),
        ("RLIMIT_MEMLOCK", 65536, 131_072, "Max locked memory"),
        ("RLIMIT_MSGQUEUE", 10_000, 20_000, "Max msgqueue size"),
        ("RLIMIT_SIGPENDING", 77, 88, "Max pending signals"),
    ];
    let mut bundle = reporter(test)?;
    let list: Vec<Value> = limits
        .iter()
        .map(|&(kind, soft, hard, _)| json!({ "type": kind, "soft": soft, "hard": hard }))
        .collect();
    bundle.set("/process/rlimits", list.into());
    let report = reported(test, &bundle)?;
    let lines: Vec<&str> = report["limits"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (kind, soft, hard, title) in limits {
        let line = lines
            .iter()
            .find_map(|line| line.strip_prefix(title))
            .with_context(|| format!("no line {title}"))?;
        let numbers: Vec<&str> = line.split_whitespace().take(2).collect();
        ensure!(
            numbers == [soft.to_string(), hard.to_string()],
            "{kind} is {numbers:?}"
        );
    }
    Ok(())
}

/// Bits of some capabilities, as `/proc/self/status` prints them.
fn mask(bits: &[u32]) -> String {
    format!(
        "{:016x}",
        bits.iter().fold(0_u64, |all, bit| all | 1 << bit)
    )
}

fn capability_sets(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    bundle.set(
        "/process/capabilities",
        json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_CHROOT"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "inheritable": ["CAP_CHOWN", "CAP_KILL"],
            "ambient": ["CAP_KILL"],
        }),
    );
    // Not root: for root, exec computes the sets anew from the bounding set.
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let report = reported(test, &bundle)?;
    let (chown, kill, raw, chroot) = (0, 5, 13, 18);
    expect_status(&report, "CapBnd", &mask(&[chown, kill, raw, chroot]))?;
    expect_status(&report, "CapInh", &mask(&[chown, kill]))?;
    expect_status(&report, "CapAmb", &mask(&[kill]))?;
    // What exec leaves of permitted and effective for a user: the ambient ones.
    expect_status(&report, "CapPrm", &mask(&[kill]))?;
    expect_status(&report, "CapEff", &mask(&[kill]))?;

    bundle.set("/process/user", json!({ "uid": 0, "gid": 0 }));
    let report = reported(test, &bundle)?;
    expect_status(&report, "CapBnd", &mask(&[chown, kill, raw, chroot]))?;
    expect_status(&report, "CapEff", &mask(&[chown, kill, raw, chroot]))
}

fn no_capabilities(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    bundle.set("/process/capabilities", json!({}));
    let report = reported(test, &bundle)?;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        expect_status(&report, set, &mask(&[]))?;
    }
    Ok(())
}

fn capabilities_of_another_user(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let report = reported(test, &bundle)?;
    expect_status(&report, "CapEff", &mask(&[]))?;
    expect_status(&report, "CapPrm", &mask(&[]))
}

fn no_new_privileges(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    expect_status(&reported(test, &bundle)?, "NoNewPrivs", "0")?;
    bundle.set("/process/noNewPrivileges", json!(true));
    expect_status(&reported(test, &bundle)?, "NoNewPrivs", "1")
}

fn oom_score(test: &Test) -> Result<()> {
    for score in [-500, 500] {
        let mut bundle = reporter(test)?;
        bundle.set("/process/oomScoreAdj", json!(score));
        expect(
            &reported(test, &bundle)?,
            "/oom_score_adj",
            &json!(score.to_string()),
        )?;
    }
    Ok(())
}

fn host_name(test: &Test) -> Result<()> {
    let before = nix::sys::utsname::uname()?.nodename().to_owned();
    let mut bundle = reporter(test)?;
    bundle.set("/hostname", json!("a-name.of-its.own"));
    expect(
        &reported(test, &bundle)?,
        "/hostname",
        &json!("a-name.of-its.own"),
    )?;
    ensure!(
        nix::sys::utsname::uname()?.nodename() == before,
        "the host's name changed"
    );
    Ok(())
}

fn namespaces(test: &Test) -> Result<()> {
    // Inode numbers of the first namespace of each kind (include/linux/proc_ns.h of Linux): the
    // same in every kernel, so that this holds for a container in a VM as well.
    let first = [
        ("ipc", 0xefff_ffff_u32),
        ("uts", 0xefff_fffe),
        ("pid", 0xefff_fffc),
        ("cgroup", 0xefff_fffb),
    ];
    let report = reported(test, &reporter(test)?)?;
    for (kind, inode) in first {
        let found = report["namespaces"][kind]
            .as_str()
            .with_context(|| format!("no {kind}"))?;
        ensure!(
            found != format!("{kind}:[{inode}]"),
            "{kind} is the first namespace: {found}"
        );
    }
    expect(&report, "/namespaces/user", &json!("user:[4026531837]"))?;
    // A cgroup namespace shows its own group as the root.
    expect(&report, "/cgroup", &json!("0::/"))
}

fn user_namespace(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("report", &[])?;
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", mapping.clone());
    bundle.set("/linux/gidMappings", mapping);
    if let Some(namespaces) = bundle.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
    let report = reported(test, &bundle)?;
    let map: Vec<&str> = report["uid_map"]
        .as_str()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(map == ["0", "100000", "65536"], "uid_map is {map:?}");
    expect_status(&report, "Uid", "0 0 0 0")
}

fn only_the_standard_descriptors(test: &Test) -> Result<()> {
    let report = reported(test, &reporter(test)?)?;
    let names: Vec<&String> = report["descriptors"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name)
        .collect();
    ensure!(names == ["0", "1", "2"], "open: {}", report["descriptors"]);
    Ok(())
}

fn kernel_parameters(test: &Test) -> Result<()> {
    let parameters = [
        ("kernel.msgmax", "/proc/sys/kernel/msgmax", "4321"),
        ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max", "12"),
        ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward", "1"),
    ];
    let bundle = &mut test.bundle("report", &parameters.map(|(_, path, _)| path))?;
    for (name, _, value) in parameters {
        // Names have dots and must not be taken apart at slashes.
        bundle.config["linux"]["sysctl"][name] = json!(value);
    }
    let report = reported(test, bundle)?;
    for (_, path, value) in parameters {
        ensure!(
            report["files"][path] == value,
            "{path} has {}",
            report["files"][path]
        );
    }
    Ok(())
}

fn cgroup_limits(test: &Test) -> Result<()> {
    let files = ["memory.max", "pids.max", "cpu.max", "cpu.weight"];
    let paths = files.map(|name| format!("/sys/fs/cgroup/{name}"));
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let mut bundle = test.bundle("report", &paths)?;
    bundle.set("/linux/resources/memory", json!({ "limit": 64 << 20 }));
    bundle.set("/linux/resources/pids", json!({ "limit": 50 }));
    bundle.set(
        "/linux/resources/cpu",
        json!({ "quota": 50_000, "period": 100_000, "shares": 1024 }),
    );
    let report = reported(test, &bundle)?;
    // 1024 shares are weight 39: 1 + (shares - 2) * 9999 / 262142.
    let expected = ["67108864", "50", "50000 100000", "39"];
    for (path, value) in paths.iter().zip(expected) {
        ensure!(
            report["files"][path] == value,
            "{path} has {}",
            report["files"][path]
        );
    }
    Ok(())
}

fn program_is_found_on_path(test: &Test) -> Result<()> {
    let mut bundle = reporter(test)?;
    bundle.config["process"]["args"][0] = json!("probe");
    bundle.set("/process/env", json!(["PATH=/nowhere:/"]));
    expect(&reported(test, &bundle)?, "/pid", &json!(1))
}
