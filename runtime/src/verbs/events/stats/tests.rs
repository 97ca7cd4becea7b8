//! From the files of a cgroup to runc's JSON.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn files(contents: &[(&str, &str)]) -> Files {
    let contents = contents.iter();
    Files(
        contents
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
    )
}

#[test]
fn figures_are_where_runc_has_them() {
    let stats = stats(&files(&[
        (
            "cpu.stat",
            "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n",
        ),
        ("cpuset.cpus.effective", "0-2,5\n"),
        ("cpuset.mems.effective", "0\n"),
        ("memory.stat", "anon 10\nfile 20\n"),
        ("memory.current", "4096\n"),
        ("memory.max", "8192\n"),
        ("memory.peak", "5000\n"),
        ("memory.swap.current", "1\n"),
        ("memory.swap.max", "max\n"),
        ("pids.current", "2\n"),
        ("pids.max", "20\n"),
        (
            "io.stat",
            "254:1 rbytes=1 wbytes=2 rios=3 wios=0 dbytes=0\n7:0 \n",
        ),
        ("hugetlb.2MB.current", "0\n"),
        ("hugetlb.2MB.events", "max 4\n"),
        (
            "cpu.pressure",
            "some avg10=1.50 avg60=0.00 avg300=0.25 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
    ]));
    let empty = json!({"limit": 0, "failcnt": 0});
    assert_eq!(
        serde_json::to_value(stats).unwrap(),
        json!({
            "cpu": {
                "usage": {"total": 5000, "kernel": 2000, "user": 3000},
                "throttling": {"periods": 7, "throttledPeriods": 1, "throttledTime": 9000},
                "psi": {
                    "some": {"avg10": 1.5, "avg60": 0.0, "avg300": 0.25, "total": 12},
                    "full": {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0},
                },
            },
            "cpuset": {
                "cpus": [0, 1, 2, 5], "cpu_exclusive": 0, "mems": [0], "mem_hardwall": 0,
                "mem_exclusive": 0, "memory_migrate": 0, "memory_spread_page": 0,
                "memory_spread_slab": 0, "memory_pressure": 0, "sched_load_balance": 0,
                "sched_relax_domain_level": 0,
            },
            "memory": {
                "cache": 20,
                "usage": {"limit": 8192, "usage": 4096, "max": 5000, "failcnt": 0},
                "swap": {"limit": u64::MAX, "usage": 4097, "failcnt": 0},
                "kernel": empty, "kernelTCP": empty,
                "raw": {"anon": 10, "file": 20},
            },
            "pids": {"current": 2, "limit": 20},
            "blkio": {
                "ioServiceBytesRecursive": [
                    {"major": 254, "minor": 1, "op": "Read", "value": 1},
                    {"major": 254, "minor": 1, "op": "Write", "value": 2},
                ],
                "ioServicedRecursive": [
                    {"major": 254, "minor": 1, "op": "Read", "value": 3},
                    {"major": 254, "minor": 1, "op": "Write"},
                ],
            },
            "hugetlb": {"2MB": {"failcnt": 4}},
            "intel_rdt": {},
            "network_interfaces": null,
        })
    );
}

#[test]
fn no_limit_of_processes_is_none_at_all() {
    let stats = stats(&files(&[("pids.current", "3\n"), ("pids.max", "max\n")]));
    assert_eq!(
        serde_json::to_value(stats.pids).unwrap(),
        json!({"current": 3})
    );
}

#[test]
fn a_guest_without_figures_has_none() {
    let stats = stats(&Files::default());
    assert_eq!(stats.cpu, Cpu::default());
    assert_eq!(stats.blkio, Blkio::default());
    assert!(stats.hugetlb.is_empty());
}

proptest! {
    #[test]
    fn whatever_a_guest_says_is_no_panic(text in "(?s).{0,200}", numbers in "[0-9:=,\\- \n]{0,80}") {
        for text in [text, numbers] {
            let all: Vec<(&str, &str)> = FILES.iter().map(|&name| (name, text.as_str())).collect();
            let _ = serde_json::to_string(&stats(&files(&all))).unwrap();
        }
    }
}
