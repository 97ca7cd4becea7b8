//! Limits as files, and directories in a plain directory that plays a hierarchy of cgroup v1.

use proptest::prelude::*;

use super::{files, make, *};
use crate::plan::{HostLimits, IoThrottle, IoThrottleKind};

fn everything() -> HostLimits {
    HostLimits {
        memory_bytes: Some(1 << 30),
        swap_bytes: Some(1 << 20),
        reservation_bytes: Some(1 << 29),
        swappiness: Some(10),
        cpu_shares: Some(1024),
        cpu_quota_us: Some(50_000),
        cpu_period_us: Some(200_000),
        cpu_burst_us: Some(1_000),
        cpu_idle: Some(1),
        cpus: "0-1".to_owned(),
        mems: "0".to_owned(),
        pids: Some(228),
        io_weight: Some(500),
        io_weight_devices: vec![("8:0".to_owned(), 10)],
        io_throttles: vec![
            IoThrottle {
                device: "8:0".to_owned(),
                kind: IoThrottleKind::ReadBps,
                rate: 1_000,
            },
            IoThrottle {
                device: "8:16".to_owned(),
                kind: IoThrottleKind::WriteIops,
                rate: 0,
            },
        ],
        unified: Vec::new(),
    }
}

fn text(files: &[LimitFile]) -> Vec<String> {
    let choice = |(name, value): &(String, String)| format!("{name}={value}");
    let text = |file: &LimitFile| {
        file.choices
            .iter()
            .map(choice)
            .collect::<Vec<_>>()
            .join(" or ")
    };
    files.iter().map(text).collect()
}

#[test]
fn files_of_version_2() {
    let limits = everything();
    let expected = [
        "memory.swap.max=1048576",
        "memory.max=1073741824",
        "memory.low=536870912",
        "io.bfq.weight=500 or io.weight=4950",
        "io.bfq.weight=8:0 10 or io.weight=8:0 1",
        "io.max=8:0 rbps=1000",
        "io.max=8:16 wiops=max",
        "cpu.weight=39",
        "cpu.idle=1",
        "pids.max=228",
        "cpuset.cpus=0-1",
        "cpuset.mems=0",
    ];
    assert_eq!(text(&files::of(&limits, false)), expected);
    let time = ["cpu.max=50000 200000", "cpu.max.burst=1000"];
    assert_eq!(text(&files::cpu_time(&limits, false)), time);
}

#[test]
fn files_of_version_1() {
    let limits = everything();
    let expected = [
        "memory.limit_in_bytes=1073741824",
        "memory.memsw.limit_in_bytes=1074790400",
        "memory.soft_limit_in_bytes=536870912",
        "memory.swappiness=10",
        "blkio.weight=500 or blkio.bfq.weight=500",
        "blkio.weight_device=8:0 10 or blkio.bfq.weight_device=8:0 10",
        "blkio.throttle.read_bps_device=8:0 1000",
        "blkio.throttle.write_iops_device=8:16 0",
        "cpu.shares=1024",
        "pids.max=228",
        "cpuset.cpus=0-1",
        "cpuset.mems=0",
    ];
    assert_eq!(text(&files::of(&limits, true)), expected);
    let time = ["cpu.cfs_period_us=200000", "cpu.cfs_quota_us=50000"];
    assert_eq!(text(&files::cpu_time(&limits, true)), time);
}

#[test]
fn no_limits_are_no_files() {
    for is_v1 in [false, true] {
        assert!(files::of(&HostLimits::default(), is_v1).is_empty());
        assert!(files::cpu_time(&HostLimits::default(), is_v1).is_empty());
    }
}

#[test]
fn explicitly_unlimited() {
    let limits = HostLimits {
        memory_bytes: Some(-1),
        swap_bytes: Some(-1),
        pids: Some(-1),
        cpu_quota_us: Some(-1),
        ..HostLimits::default()
    };
    let v2 = ["memory.swap.max=max", "memory.max=max", "pids.max=max"];
    assert_eq!(text(&files::of(&limits, false)), v2);
    let time = files::cpu_time(&limits, false);
    assert_eq!(text(&time), ["cpu.max=max 100000"]);
    let v1 = [
        "memory.limit_in_bytes=-1",
        "memory.memsw.limit_in_bytes=-1",
        "pids.max=max",
    ];
    assert_eq!(text(&files::of(&limits, true)), v1);
}

#[test]
fn a_limit_that_cannot_be_set_names_its_field() {
    let directory = tempfile::tempdir().unwrap();
    let limits = HostLimits {
        pids: Some(1),
        ..HostLimits::default()
    };
    let error = files::of(&limits, false)[0]
        .write(directory.path())
        .unwrap_err();
    let path = directory.path().join("pids.max");
    assert_eq!(
        error.to_string(),
        format!(
            "linux.resources.pids: cannot write \"1\" to {}",
            path.display()
        )
    );
}

#[test]
fn the_first_file_there_is_gets_its_value() {
    let directory = tempfile::tempdir().unwrap();
    let limits = HostLimits {
        io_weight: Some(1000),
        ..HostLimits::default()
    };
    let file = directory.path().join("io.weight");
    std::fs::write(&file, "").unwrap();
    files::of(&limits, false)[0]
        .write(directory.path())
        .unwrap();
    assert_eq!(std::fs::read_to_string(file).unwrap(), "10000");
}

fn group(top: &Path, path: &str, controllers: &[&str]) -> Group {
    Group {
        controllers: controllers.iter().map(|&name| name.to_owned()).collect(),
        top: top.to_owned(),
        path: top.join(path),
        is_secondary: false,
    }
}

#[test]
fn what_was_made_goes_when_the_rest_fails() {
    let top = tempfile::tempdir().unwrap();
    // No file of the controller is there to be filled in.
    let group = group(top.path(), "a/b", &["cpuset"]);
    let error = make::make(&group, &HostLimits::default()).unwrap_err();
    assert!(error.to_string().starts_with("cannot read "), "{error}");
    assert!(!top.path().join("a").exists());
}

#[test]
fn directories_above_are_made_and_an_old_one_is_told_from_a_new_one() {
    let top = tempfile::tempdir().unwrap();
    let group = group(top.path(), "a/b/c", &["memory"]);
    assert!(make::make(&group, &HostLimits::default()).unwrap());
    assert!(!make::make(&group, &HostLimits::default()).unwrap());
    assert!(group.path.is_dir());
    remove::remove(&group.path).unwrap();
    assert!(!group.path.exists() && top.path().join("a/b").exists());
    remove::remove(&group.path).unwrap();
}

#[test]
fn a_frozen_cgroup_is_refused() {
    let top = tempfile::tempdir().unwrap();
    let group = group(top.path(), "a", &["freezer"]);
    make::check_thawed(&group).unwrap();
    make::make(&group, &HostLimits::default()).unwrap();
    make::check_thawed(&group).unwrap();
    std::fs::write(group.path.join("freezer.state"), "FROZEN\n").unwrap();
    let error = make::check_thawed(&group).unwrap_err();
    assert_eq!(error.to_string(), "container's cgroup unexpectedly frozen");
}

proptest! {
    /// Weights keep their order and stay in the range of cgroup v2.
    #[test]
    fn weights_keep_their_order(a in 2_u64..=262_144, b in 2_u64..=262_144) {
        let (low, high) = (a.min(b), a.max(b));
        let (low, high) = (files::cpu_weight(low), files::cpu_weight(high));
        prop_assert!(1 <= low && low <= high && high <= 10_000);
    }

    #[test]
    fn device_weights_keep_their_order(a in 10_u16..=1_000, b in 10_u16..=1_000) {
        let weight = |weight| {
            let limits = HostLimits { io_weight: Some(weight), ..HostLimits::default() };
            let value = files::of(&limits, false)[0].choices[1].1.clone();
            value.parse::<u64>().unwrap()
        };
        let (low, high) = (weight(a.min(b)), weight(a.max(b)));
        prop_assert!(1 <= low && low <= high && high <= 10_000);
    }
}
