//! The sandbox's cgroup on this machine, whichever version its cgroups are: who is in it, and that it
//! goes with the container, however that ended.

use std::{fs, path::PathBuf};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{Place, signal};

/// A path that no other test has, below the top of each hierarchy.
fn own_path(place: &Place, name: &str) -> String {
    let directory = place.path().file_name().unwrap().to_str().unwrap();
    format!("/lazaret-session-own/{directory}/{name}")
}

/// The paths in `/proc/PID/cgroup`, one for each hierarchy.
fn paths_of(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = |line: &str| line.splitn(3, ':').nth(2).unwrap().to_owned();
    text.lines().map(path).collect()
}

/// The directories that the state says were made.
fn recorded(place: &Place, id: &str) -> Vec<PathBuf> {
    let path = place.path().join(format!("state/{id}/cgroup.json"));
    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let groups = record["groups"].as_array().unwrap();
    let paths = groups.iter().map(|group| group["path"].as_str().unwrap());
    paths.map(PathBuf::from).collect()
}

#[test]
fn monitor_and_vmm_are_in_it() {
    let place = Place::new();
    let path = own_path(&place, "a/b");
    place.bundle(&["sleep", "1000"], |config| {
        config["linux"]["cgroupsPath"] = json!(path);
        config["linux"]["resources"] = json!({
            "pids": {"limit": 5},
            "cpu": {"shares": 512, "cpus": "0", "mems": "0", "quota": 50_000, "period": 100_000},
            "memory": {"limit": 1 << 28, "swappiness": 10},
        });
    });
    place.create("c");
    let directories = recorded(&place, "c");
    assert!(!directories.is_empty());
    for pid in [place.pid("c"), place.vmm("c")] {
        // Hierarchies that are not mounted have no part in it.
        let inside = paths_of(pid).iter().filter(|found| **found == path).count();
        assert_eq!(inside, directories.len(), "{:?}", paths_of(pid));
    }
    let value = |name: &str| {
        let mut files = directories.iter().map(|directory| directory.join(name));
        let text = files.find_map(|file| fs::read_to_string(file).ok());
        text.map(|text| text.trim_end().to_owned())
    };
    assert_eq!(value("pids.max").as_deref(), Some("133"));
    assert_eq!(value("cpuset.cpus").as_deref(), Some("0"));
    let quota = value("cpu.max")
        .or_else(|| value("cpu.cfs_quota_us"))
        .unwrap();
    assert!(
        ["50000", "50000 100000"].contains(&quota.as_str()),
        "{quota}"
    );
    let memory = value("memory.max")
        .or_else(|| value("memory.limit_in_bytes"))
        .unwrap();
    // A VM of 256 + 64 + 5 MiB, half of that, and 64.
    assert_eq!(memory, (551_u64 << 20).to_string());
    place.ok(&["delete", "--force", "c"]);
    for directory in directories {
        assert!(!directory.exists(), "{}", directory.display());
        assert!(directory.parent().unwrap().is_dir());
        // As runc, the ones above are left; they are this test's alone.
        fs::remove_dir(directory.parent().unwrap()).unwrap();
        fs::remove_dir(directory.ancestors().nth(2).unwrap()).unwrap();
    }
}

#[test]
fn a_relative_path_and_none_are_near_the_callers() {
    let place = Place::new();
    let name = own_path(&place, "").replace('/', "");
    let own = paths_of(i32::try_from(std::process::id()).unwrap());
    for (id, path) in [("c", format!("../{name}")), (name.as_str(), String::new())] {
        place.bundle(&["sleep", "1000"], |config| {
            config["linux"]["cgroupsPath"] = json!(path);
        });
        place.create(id);
        let found = paths_of(place.pid(id));
        assert!(found.iter().any(|path| path.ends_with(&name)), "{found:?}");
        for (found, own) in found.iter().zip(&own) {
            let below = format!("{}/{name}", own.trim_end_matches('/'));
            let (parent, _) = own.rsplit_once('/').unwrap();
            let beside = format!("{parent}/{name}");
            assert!([&below, &beside, own].contains(&found), "{found} for {own}");
        }
        place.ok(&["delete", "--force", id]);
    }
}

#[test]
fn it_goes_when_everybody_was_killed() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |_| {});
    place.create("c");
    let directories = recorded(&place, "c");
    // Both are asked for first: a container whose VMM has ended has no pid.
    for pid in [place.vmm("c"), place.pid("c")] {
        signal(pid, Signal::SIGKILL);
    }
    place.ok(&["delete", "--force", "c"]);
    for directory in directories {
        assert!(!directory.exists(), "{}", directory.display());
    }
}

#[test]
fn it_goes_when_the_guest_does_not_come() {
    let place = Place::with("silent", "boot_timeout_ms = 300");
    let path = own_path(&place, "gone");
    place.bundle(&["true"], |config| {
        config["linux"]["cgroupsPath"] = json!(path);
    });
    place.fails(1, &["create", "c"]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let top = line.split(' ').nth(4).unwrap();
        assert!(!PathBuf::from(format!("{top}{path}")).exists(), "{top}");
    }
}

#[test]
fn processes_that_were_there_before_are_said_and_left() {
    let place = Place::new();
    let path = own_path(&place, "shared");
    place.bundle(&["sleep", "1000"], |config| {
        config["linux"]["cgroupsPath"] = json!(path);
    });
    place.create("c");
    let directories = recorded(&place, "c");
    let mut command = place.command(&["create", "d"]);
    let log = place.path().join("log");
    let status = command.stderr(fs::File::create(&log).unwrap()).status();
    assert!(status.unwrap().success());
    let log = fs::read_to_string(log).unwrap();
    let warning = "container's cgroup is not empty: 2 process(es) found";
    assert_eq!(log.matches(warning).count(), 1, "{log}");
    // Neither takes the other along.
    place.ok(&["delete", "--force", "c"]);
    assert_eq!(place.status("d"), "created");
    place.ok(&["delete", "--force", "d"]);
    for directory in directories {
        assert!(!directory.exists(), "{}", directory.display());
    }
}

#[test]
fn a_limit_that_the_kernel_refuses_leaves_nothing() {
    let place = Place::new();
    let path = own_path(&place, "refused");
    place.bundle(&["true"], |config| {
        config["linux"]["cgroupsPath"] = json!(path);
        config["linux"]["resources"] = json!({"cpu": {"cpus": "1022"}});
    });
    let message = place.fails(1, &["create", "c"]);
    let start = "linux.resources.cpu.cpus: cannot write \"1022\" to ";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn there_is_no_systemd_to_ask() {
    let place = Place::new();
    if PathBuf::from("/run/systemd/system").is_dir() {
        return;
    }
    assert_eq!(
        place.fails(1, &["--systemd-cgroup", "create", "c"]),
        "systemd not running on this host, cannot use systemd cgroups manager"
    );
}
