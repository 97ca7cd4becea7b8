//! Golden plans: what a bundle becomes is compared with the files in `tests/golden/`, word by word.
//! After a wanted change, `LAZARET_BLESS=1 cargo test -p lazaret golden` writes them anew; review
//! the difference as code.

use std::path::Path;

use lazaret_protocol::container::Rlimit;
use serde_json::{Value, json};

use super::*;

/// The bundle that `spec` makes, with `change` applied.
fn bundle(change: impl FnOnce(&mut Value)) -> Bundle {
    let mut config: Value = serde_json::from_str(include_str!("../verbs/spec.json")).unwrap();
    change(&mut config);
    Bundle {
        path: "/bundle".into(),
        file: "/bundle/config.json".into(),
        spec: serde_json::from_value(config).unwrap(),
        warnings: Vec::new(),
    }
}

static CALLER: Caller = Caller {
    limits: Vec::new(),
    host_name: String::new(),
};

fn circumstances() -> Circumstances<'static> {
    Circumstances {
        id: "box",
        stdio: [Stdio::Null, Stdio::Output, Stdio::Output],
        preserved: &[],
        terminal_size: TerminalSize {
            rows: 24,
            columns: 80,
        },
        host_memory_mib: 4096,
        host_cpus: 4,
        host_cgroup_v1: false,
        host_has_block_device: |major, _| matches!(major, 7 | 8),
        systemd_cgroup: false,
        caller: &CALLER,
        joins: &[],
    }
}

fn planned(change: impl FnOnce(&mut Value)) -> Result<Plan, String> {
    plan(&bundle(change), &Config::default(), circumstances()).map_err(|error| error.to_string())
}

fn set(config: &mut Value, pointer: &str, value: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    config.pointer_mut(parent).unwrap()[key] = value;
}

/// The error when `value` is put at `pointer` of the default bundle.
fn error(pointer: &str, value: Value) -> String {
    planned(|config| set(config, pointer, value)).unwrap_err()
}

/// The warnings when `value` is put at `pointer`.
fn warnings(pointer: &str, value: Value) -> Vec<String> {
    planned(|config| set(config, pointer, value))
        .unwrap()
        .warnings
}

fn golden(name: &str, change: impl FnOnce(&mut Value)) {
    let plan = planned(change).unwrap();
    let text = serde_json::to_string_pretty(&plan).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    if std::env::var_os("LAZARET_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    assert!(
        text == expected,
        "the plan differs from {}: bless it if that is wanted\n{text}",
        path.display()
    );
}

#[test]
fn golden_default() {
    golden("default", |_| {});
}

#[test]
fn golden_everything() {
    golden("everything", |config| {
        set(config, "/process/terminal", json!(false));
        set(
            config,
            "/process/user",
            json!({"uid": 1, "gid": 2, "umask": 63, "additionalGids": [3, 4]}),
        );
        set(config, "/process/oomScoreAdj", json!(-500));
        set(
            config,
            "/process/scheduler",
            json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 2_000_000,
                   "period": 3_000_000, "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"]}),
        );
        set(
            config,
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_RT", "priority": 3}),
        );
        set(config, "/root", json!({"path": "/abs/rootfs"}));
        set(config, "/domainname", json!("example.org"));
        set(
            config,
            "/annotations",
            json!({"io.lazaret.vm.memory_mib": "512", "other.tool/x": "1"}),
        );
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.truncate(2);
        mounts.extend([
            json!({"destination": "/data", "type": "bind", "source": "data",
                   "options": ["rbind", "ro", "rslave", "nosuid"]}),
            json!({"destination": "/etc/hosts", "type": "bind", "source": "/srv/../srv/./hosts",
                   "options": ["bind", "rro"]}),
            json!({"destination": "/host-null", "type": "bind", "source": "/dev/null",
                   "options": ["bind"]}),
            json!({"destination": "/t", "type": "tmpfs", "source": "x",
                   "options": ["tmpcopyup", "size=1m", "rnoatime"]}),
        ]);
        set(
            config,
            "/linux",
            json!({
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "mount"}, {"type": "cgroup"}, {"type": "user"}, {"type": "time"},
                ],
                "timeOffsets": {"boottime": {"secs": -1}, "monotonic": {"nanosecs": 7}},
                "personality": {"domain": "LINUX32"},
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ERRNO",
                    "defaultErrnoRet": 38,
                    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
                    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
                    "syscalls": [
                        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 3, "args": [
                            {"index": 1, "value": 9, "op": "SCMP_CMP_EQ"},
                            {"index": 0, "value": 1, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"},
                        ]},
                    ],
                },
                "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
                "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 20}],
                "devices": [
                    {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
                     "fileMode": 432, "uid": 5, "gid": 6},
                    {"path": "/dev/pipe", "type": "p"},
                ],
                "sysctl": {"net.ipv4.ip_forward": "1", "kernel.msgmax": "8192"},
                "rootfsPropagation": "rslave",
                "cgroupsPath": "/a/../engine/box",
                "resources": {
                    "devices": [
                        {"allow": false, "access": "rwm"},
                        {"allow": true, "type": "c", "major": 10, "minor": -1, "access": "rw"},
                        {"allow": true, "type": "b", "major": 8},
                    ],
                    "memory": {"limit": 1_073_741_824, "reservation": 536_870_912,
                               "swap": 2_147_483_648_u64},
                    "cpu": {"shares": 1024, "quota": 150_000, "period": 100_000, "cpus": "0-1,3"},
                    "pids": {"limit": 100},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 4_194_304}],
                    "unified": {"memory.high": "1000000", "cpu.weight.nice": "5",
                                "io.latency": "8:0 target=1", "cpuset.mems": "0"},
                    "blockIO": {
                        "weight": 500,
                        "weightDevice": [{"major": 8, "minor": 16, "weight": 10}],
                        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
                        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 20}],
                    },
                },
            }),
        );
    });
}

#[test]
fn every_refusal_names_its_field() {
    for (pointer, value, message) in [
        (
            "/ociVersion",
            json!("2.0.0"),
            "ociVersion: version \"2.0.0\" is not supported",
        ),
        ("/ociVersion", json!(""), "ociVersion: must not be empty"),
        ("/root/path", json!(""), "root.path: must not be empty"),
        (
            "/process/args",
            json!([]),
            "process.args: args must not be empty",
        ),
        (
            "/process/args",
            json!(["a", "b\0"]),
            "process.args[1]: must not contain a NUL character",
        ),
        (
            "/process/cwd",
            json!("relative"),
            "process.cwd: Cwd must be an absolute path",
        ),
        (
            "/process/cwd",
            json!(""),
            "process.cwd: Cwd property must not be empty",
        ),
        (
            "/process/user/umask",
            json!(512),
            "process.user.umask: must be a number from 0 to 511 (0777)",
        ),
        (
            "/process/oomScoreAdj",
            json!(1001),
            "process.oomScoreAdj: must be a number from -1000 to 1000",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "process.ioPriority.priority: must be a number from 0 to 7",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_ISO"}),
            "process.scheduler.policy: SCHED_ISO, which Linux has never had, is not supported",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "nice": 20}),
            "process.scheduler.nice: must be a number from -20 to 19",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_FIFO"}),
            "process.scheduler.priority: must be a number from 1 to 99 for SCHED_FIFO",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_BATCH", "priority": 1}),
            "process.scheduler.priority: is only for SCHED_FIFO and SCHED_RR",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_RR", "priority": 1, "deadline": 5}),
            "process.scheduler.deadline: is only for SCHED_DEADLINE",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MAX"]}),
            "process.scheduler.flags: SCHED_FLAG_UTIL_CLAMP_MAX, whose value the runtime-spec has no field for, is not supported",
        ),
        (
            "/process/execCPUAffinity",
            json!({"final": "3-1"}),
            "process.execCPUAffinity.final: \"3-1\" is not a list of CPUs",
        ),
        (
            "/process/execCPUAffinity",
            json!({"initial": "0,1024"}),
            "process.execCPUAffinity.initial: \"0,1024\" is not a list of CPUs",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]),
            "process.rlimits[0]: soft exceeds hard",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_CPU"}, {"type": "RLIMIT_CPU"}]),
            "process.rlimits[1]: RLIMIT_CPU is listed twice",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        (
            "/linux/intelRdt",
            json!({}),
            "linux.intelRdt: cache and bandwidth allocation is not supported",
        ),
        (
            "/linux/netDevices",
            json!({"eth0": {}}),
            "linux.netDevices: moving network devices is not supported",
        ),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1}}),
            "linux.timeOffsets: needs a new time namespace in linux.namespaces",
        ),
        (
            "/linux/timeOffsets",
            json!({"realtime": {"secs": 1}}),
            "linux.timeOffsets[realtime]: must be \"monotonic\" or \"boottime\"",
        ),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"nanosecs": 1_000_000_000}}),
            "linux.timeOffsets[monotonic].nanosecs: must be a number from 0 to 999999999",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND"}),
            "linux.memoryPolicy.nodes: must not be empty for MPOL_BIND",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_LOCAL", "nodes": "0"}),
            "linux.memoryPolicy.nodes: must be empty for MPOL_LOCAL",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0",
                   "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}),
            "linux.memoryPolicy.flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other",
        ),
        (
            "/linux/rootfsPropagation",
            json!("up"),
            "linux.rootfsPropagation: \"up\" is not a propagation",
        ),
        (
            "/linux/maskedPaths",
            json!(["/a", "b"]),
            "linux.maskedPaths[1]: must be an absolute path",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "uts", "path": "/proc/1/ns/uts"}]),
            "linux.namespaces[0].path: joining /proc/1/ns/uts, which is no namespace of a running \
             container of this runtime, is not supported",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "network"}, {"type": "network"}, {"type": "uts"}]),
            "linux.namespaces[1]: \"network\" is listed twice",
        ),
        (
            "/mounts",
            json!([{"destination": "/a", "type": "bind"}]),
            "mounts[0].source: must not be empty for a bind mount",
        ),
        (
            "/mounts",
            json!([{"destination": "/a"}]),
            "mounts[0].type: must not be empty",
        ),
        (
            "/mounts",
            json!([{"destination": "", "type": "tmpfs"}]),
            "mounts[0].destination: must not be empty",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/nvidia0", "type": "c", "major": 195, "minor": 0}]),
            "linux.devices[0]: character device 195:0, which the guest kernel has not, is not supported",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "a", "major": 1, "minor": 3}]),
            "linux.devices[0].type: must be one of c, b, u, p",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": -1, "minor": 3}]),
            "linux.devices[0].major: must be a device number",
        ),
        (
            "/linux/devices",
            json!([{"path": "dev/x", "type": "c", "major": 1, "minor": 3}]),
            "linux.devices[0].path: must be an absolute path",
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "type": "p"}]),
            "linux.resources.devices[0].type: must be one of a, b, c",
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "type": "c", "major": 1, "minor": -2}]),
            "linux.resources.devices[0].minor: must be a device number or -1",
        ),
        (
            "/linux/resources/devices",
            json!([{"allow": true, "access": "rx"}]),
            "linux.resources.devices[0].access: must consist of r, w and m",
        ),
        (
            "/linux/resources/memory",
            json!({"swap": 1}),
            "linux.resources.memory.swap: cannot be limited without linux.resources.memory.limit",
        ),
        (
            "/linux/resources/memory",
            json!({"swap": 1, "limit": 2}),
            "linux.resources.memory.swap: must not be less than linux.resources.memory.limit",
        ),
        (
            "/linux/resources/cpu",
            json!({"shares": 1}),
            "linux.resources.cpu.shares: must be a number from 2 to 262144",
        ),
        (
            "/linux/resources/cpu",
            json!({"cpus": "3-1"}),
            "linux.resources.cpu.cpus: \"3-1\" is not a list of CPUs",
        ),
        (
            "/linux/resources/unified",
            json!({"../x": "1"}),
            "linux.resources.unified[../x]: must be the name of a controller's file",
        ),
        (
            "/linux/resources/unified",
            json!({"memory.swap.max": "much"}),
            "linux.resources.unified[memory.swap.max]: must be max or a number of bytes",
        ),
        (
            "/linux/resources/memory",
            json!({"limit": -2}),
            "linux.resources.memory.limit: must be -1 or a number of bytes",
        ),
        (
            "/linux/resources/memory",
            json!({"swappiness": 101}),
            "linux.resources.memory.swappiness: must be a number from 0 to 100",
        ),
        (
            "/linux/resources/blockIO",
            json!({"weight": 9}),
            "linux.resources.blockIO.weight: must be a number from 10 to 1000",
        ),
        (
            "/linux/resources/blockIO",
            json!({"weightDevice": [{"major": 8, "minor": 0, "weight": 1001}]}),
            "linux.resources.blockIO.weightDevice[0].weight: must be a number from 10 to 1000",
        ),
        (
            "/linux/resources/blockIO",
            json!({"throttleReadIOPSDevice": [{"major": -1, "minor": 0, "rate": 1}]}),
            "linux.resources.blockIO.throttleReadIOPSDevice[0]: is not the number of a device",
        ),
        (
            "/linux/cgroupsPath",
            json!("/"),
            "linux.cgroupsPath: \"/\" is no cgroup of its own",
        ),
        (
            "/annotations",
            json!({"io.kubernetes.cri.sandbox-memory": "1Gi"}),
            "annotations[io.kubernetes.cri.sandbox-memory]: must be a number",
        ),
        (
            "/annotations",
            json!({"io.lazaret.vm.memry": "1"}),
            "annotations[io.lazaret.vm.memry]: this annotation is not supported",
        ),
        (
            "/annotations",
            json!({"io.lazaret.vm.console": "/x"}),
            "annotations[io.lazaret.vm.console]: is not allowed: add \"vm.console\" to `annotations` in the configuration",
        ),
        (
            "/annotations",
            json!({"io.lazaret.vm.vcpus": "65"}),
            "annotations[io.lazaret.vm.vcpus]: must be a number from 1 to 64",
        ),
    ] {
        assert_eq!(error(pointer, value), message);
    }
}

#[test]
fn missing_objects_are_named() {
    for (key, message) in [
        ("process", "process: must not be empty"),
        ("root", "root: must not be empty"),
    ] {
        let error = planned(|config| {
            config.as_object_mut().unwrap().remove(key);
        });
        assert_eq!(error.unwrap_err(), message);
    }
}

#[test]
fn what_is_not_done_is_said() {
    assert!(warnings("/hostname", json!("x")).is_empty());
    assert!(warnings("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW"})).is_empty());
    for (pointer, value, message) in [
        (
            "/process/apparmorProfile",
            json!("x"),
            "process.apparmorProfile: not applied, the guest kernel has no AppArmor",
        ),
        (
            "/process/selinuxLabel",
            json!("x"),
            "process.selinuxLabel: not applied, the guest kernel has no SELinux",
        ),
        (
            "/process/user/username",
            json!("x"),
            "process.user.username: ignored, this is a Linux container",
        ),
        (
            "/process/commandLine",
            json!("x"),
            "process.commandLine: ignored, this is a Linux container",
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": ["X"]}),
            "linux.personality.flags: \"X\" is unknown, ignored",
        ),
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_PREFERRED", "nodes": "0"}),
            "linux.memoryPolicy: MPOL_PREFERRED is not applied, the guest has one memory node",
        ),
        (
            "/linux/mountLabel",
            json!("x"),
            "linux.mountLabel: not applied, the guest kernel has no SELinux",
        ),
        (
            "/mounts",
            json!([{"destination": "a", "type": "tmpfs"}]),
            "mounts[0].destination: \"a\" is not absolute, using \"/a\"",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}]),
            "linux.namespaces: the host's network cannot be shared with the guest, which has only \
             loopback",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network", "path": "/run/netns/a"}]),
            "linux.namespaces: the interfaces of network namespace /run/netns/a are not brought into \
             the guest, which has only loopback",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "uts"}, {"type": "network"}]),
            "linux.namespaces: no ipc namespace, the container shares the guest's and not the host's",
        ),
    ] {
        assert_eq!(warnings(pointer, value), [message]);
    }
}

#[test]
fn the_vm_follows_the_limits() {
    let size = |resources: Value| {
        let plan = planned(|config| set(config, "/linux/resources", resources)).unwrap();
        (plan.vm.memory_mib, plan.vm.vcpus)
    };
    assert_eq!(size(json!({})), (256, 1));
    assert_eq!(
        size(json!({"memory": {"limit": 1 << 30}})),
        (1024 + 64 + 21, 1)
    );
    assert_eq!(size(json!({"memory": {"limit": 1 << 20}})), (96, 1));
    // More than the machine has, as container engines write "no limit".
    assert_eq!(size(json!({"memory": {"limit": i64::MAX}})), (256, 1));
    assert_eq!(size(json!({"memory": {"limit": -1}})), (256, 1));
    assert_eq!(
        size(json!({"cpu": {"quota": 250_000, "period": 100_000}})),
        (256, 3)
    );
    assert_eq!(
        size(json!({"cpu": {"quota": 900_000, "period": 100_000}})),
        (256, 4)
    );
    assert_eq!(size(json!({"cpu": {"quota": -1}})), (256, 1));
    // A list of CPUs is a limit, too, and the lower one counts.
    assert_eq!(size(json!({"cpu": {"cpus": "0,2-3"}})), (256, 3));
    let both = json!({"cpu": {"cpus": "0,2-3", "quota": 150_000, "period": 100_000}});
    assert_eq!(size(both), (256, 2));
    let both = json!({"cpu": {"cpus": "1", "quota": 400_000, "period": 100_000}});
    assert_eq!(size(both), (256, 1));
    let unified = json!({"unified": {"memory.max": "1073741824", "cpu.max": "200000 100000"},
        "memory": {"limit": 1 << 28}});
    assert_eq!(size(unified), (1024 + 64 + 21, 2));
    assert_eq!(
        size(json!({"unified": {"memory.max": "1G"}})),
        (1024 + 64 + 21, 1)
    );
}

#[test]
fn unified_bounds_the_sandbox_as_the_fields_do() {
    let limits = |resources: Value| {
        let bundle = bundle(|config| set(config, "/linux/resources", resources));
        let plan = plan(&bundle, &Config::default(), circumstances()).unwrap();
        (plan.host.cgroup.limits, plan.container.cgroup.files)
    };
    let (unified, guest) = limits(json!({
        "cpu": {"shares": 3333, "quota": 40_000},
        "unified": {"cpu.weight": "42", "cpu.max": "5000 50000", "cpu.max.burst": "7",
            "cpu.idle": "0", "memory.low": "4096", "memory.swap.max": "1M"},
    }));
    assert_eq!(unified.cpu_quota_us, Some(5_000));
    assert_eq!(unified.cpu_period_us, Some(50_000));
    assert_eq!(unified.cpu_burst_us, Some(7));
    assert_eq!(unified.cpu_idle, Some(0));
    assert_eq!(unified.reservation_bytes, Some(4_096));
    assert_eq!(unified.swap_bytes, Some(1 << 20));
    // A guest has no swap, and no file for its limit.
    assert!(guest.iter().all(|(name, _)| name != "memory.swap.max"));
    assert!(guest.contains(&("memory.low".to_owned(), "4096".to_owned())));
    // Weights come out as they went in.
    for weight in [1, 2, 42, 100, 9_999, 10_000] {
        let (limits, _) = limits(json!({"unified": {"cpu.weight": weight.to_string()}}));
        let shares = limits.cpu_shares.unwrap();
        assert_eq!(1 + (shares - 2) * 9_999 / 262_142, weight);
    }
}

/// The first container of a pod has next to no limits; what the pod has comes with it.
#[test]
fn the_vm_follows_the_limits_of_the_pod() {
    let size = |annotations: Value| {
        let plan = planned(|config| {
            set(config, "/annotations", annotations);
            set(
                config,
                "/linux/resources",
                json!({"cpu": {"shares": 2}, "memory": {"limit": 1 << 26}}),
            );
        });
        let plan = plan.unwrap();
        (plan.vm.memory_mib, plan.vm.vcpus)
    };
    let memory = "io.kubernetes.cri.sandbox-memory";
    let quota = "io.kubernetes.cri.sandbox-cpu-quota";
    let period = "io.kubernetes.cri.sandbox-cpu-period";
    let shares = "io.kubernetes.cri.sandbox-cpu-shares";
    assert_eq!(size(json!({})), (64 + 64 + 1, 1));
    assert_eq!(
        size(json!({memory: "1073741824", quota: "250000", period: "100000", shares: "256"})),
        (1024 + 64 + 21, 3)
    );
    // Without a limit, as containerd and the kubelet write it.
    assert_eq!(
        size(json!({memory: "0", quota: "-1", period: "100000"})),
        (64 + 64 + 1, 1)
    );
    assert_eq!(
        size(json!({memory: "1073741824", "io.lazaret.vm.memory_mib": "512"})),
        (512, 1)
    );
}

/// Each limit that is neither applied nor refused is said, and nothing else is.
#[test]
fn limits_without_effect_are_said() {
    const GUEST: &str = "the guest's cgroups are version 2, which has no such limit";
    const TRAFFIC: &str = "a guest's traffic carries no marks of the host's cgroups";
    for (object, value, text) in [
        (
            "memory",
            json!({"kernel": 1}),
            format!("memory.kernel: not applied, {GUEST}"),
        ),
        (
            "memory",
            json!({"kernelTCP": 1}),
            format!("memory.kernelTCP: not applied, {GUEST}"),
        ),
        (
            "memory",
            json!({"swappiness": 1}),
            format!("memory.swappiness: not applied, {GUEST}"),
        ),
        (
            "memory",
            json!({"disableOOMKiller": true}),
            format!("memory.disableOOMKiller: not applied, {GUEST}"),
        ),
        (
            "memory",
            json!({"useHierarchy": false}),
            "memory.useHierarchy: not applied, cgroups are hierarchical".to_owned(),
        ),
        (
            "cpu",
            json!({"realtimeRuntime": 1}),
            format!("cpu.realtimeRuntime: not applied, {GUEST}"),
        ),
        (
            "cpu",
            json!({"realtimePeriod": 1}),
            format!("cpu.realtimePeriod: not applied, {GUEST}"),
        ),
        (
            "blockIO",
            json!({"leafWeight": 10}),
            "blockIO.leafWeight: not applied, no kernel has it any more".to_owned(),
        ),
        (
            "network",
            json!({"classID": 1}),
            format!("network.classID: not applied, {TRAFFIC}"),
        ),
        (
            "network",
            json!({"priorities": [{"name": "lo", "priority": 1}]}),
            format!("network.priorities: not applied, {TRAFFIC}"),
        ),
        (
            "rdma",
            json!({"mlx5_1": {"hcaHandles": 3}}),
            "rdma: not applied, a guest has no RDMA device".to_owned(),
        ),
    ] {
        let warnings = warnings(&format!("/linux/resources/{object}"), value);
        assert_eq!(warnings, [format!("linux.resources.{text}")]);
    }
    for (object, value) in [
        (
            "memory",
            json!({"kernel": -1, "kernelTCP": 0, "swappiness": u64::MAX, "disableOOMKiller": false}),
        ),
        (
            "memory",
            json!({"useHierarchy": true, "checkBeforeUpdate": true, "limit": 1 << 28}),
        ),
        (
            "cpu",
            json!({"realtimeRuntime": 0, "realtimePeriod": 0, "burst": 1, "idle": 0, "mems": "0"}),
        ),
        ("blockIO", json!({"weight": 10, "leafWeight": 0})),
        ("network", json!({"classID": 0, "priorities": []})),
        ("rdma", json!({})),
        ("pids", json!({"limit": 0})),
    ] {
        let warnings = warnings(&format!("/linux/resources/{object}"), value.clone());
        assert!(warnings.is_empty(), "{value}: {warnings:?}");
    }
}

/// What the plan of a host with cgroup v1 says that others do not.
#[test]
fn a_host_with_version_1() {
    let planned = |resources: Value| {
        let circumstances = Circumstances {
            host_cgroup_v1: true,
            ..circumstances()
        };
        let bundle = bundle(|config| set(config, "/linux/resources", resources));
        plan(&bundle, &Config::default(), circumstances).map_err(|error| error.to_string())
    };
    let plan = planned(json!({"memory": {"swappiness": 60}})).unwrap();
    assert_eq!(plan.host.cgroup.limits.swappiness, Some(60));
    assert!(plan.warnings.is_empty());
    let warnings = planned(json!({"cpu": {"burst": 1, "idle": 1}}))
        .unwrap()
        .warnings;
    let text = |field| {
        format!(
            "linux.resources.cpu.{field}: not applied, to the sandbox: the host's cgroups are \
             version 1, which has no such limit"
        )
    };
    assert_eq!(warnings, ["burst", "idle"].map(text));
    assert_eq!(
        planned(json!({"unified": {"io.max": "8:0 rbps=1"}})).unwrap_err(),
        "linux.resources.unified[io.max]: concerns devices of the host, whose cgroups are version 1"
    );
}

#[test]
fn systemds_units() {
    let planned = |path: &str, annotations: Value| {
        let circumstances = Circumstances {
            systemd_cgroup: true,
            ..circumstances()
        };
        let bundle = bundle(|config| {
            set(config, "/linux/cgroupsPath", json!(path));
            set(config, "/annotations", annotations);
        });
        plan(&bundle, &Config::default(), circumstances).map_err(|error| error.to_string())
    };
    let plan = planned("a-b.slice:p:n", json!({})).unwrap();
    assert_eq!(
        plan.host.cgroup.place,
        Place::Unit {
            slice: "a-b.slice".to_owned(),
            slice_path: "/a.slice/a-b.slice".to_owned(),
            unit: "p-n.scope".to_owned(),
        }
    );
    assert_eq!(
        planned("/x", json!({})).unwrap_err(),
        "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd \
         cgroups, got \"/x\" instead"
    );
    let plan = planned(
        "",
        json!({"org.systemd.property.TimeoutStopUSec": "uint64 1"}),
    )
    .unwrap();
    let timeout = UnitProperty {
        name: "TimeoutStopUSec".to_owned(),
        value: UnitValue::U64(1),
    };
    assert_eq!(plan.host.cgroup.properties, [timeout]);
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let wrong = json!({"org.systemd.property.KillSignal": "TERM"});
    assert_eq!(
        planned("", wrong).unwrap_err(),
        "annotations[org.systemd.property.KillSignal]: must be a boolean, a number, a text in \
         quotes, or a list of such texts"
    );
}

#[test]
fn shares_become_weights_as_in_runc() {
    for (shares, weight) in [(2, "1"), (1024, "39"), (262_144, "10000")] {
        let plan = planned(|config| {
            set(config, "/linux/resources/cpu", json!({"shares": shares}));
        });
        let files = plan.unwrap().container.cgroup.files;
        assert_eq!(files, [("cpu.weight".to_owned(), weight.to_owned())]);
    }
}

#[test]
fn console_size_counts_before_the_callers_terminal() {
    let terminal = |size: Value| {
        let plan = planned(|config| set(config, "/process/consoleSize", size)).unwrap();
        let size = plan.container.process.terminal.unwrap();
        (size.rows, size.columns)
    };
    assert_eq!(terminal(json!({"height": 10, "width": 20})), (10, 20));
    assert_eq!(terminal(json!({"height": 0, "width": 0})), (24, 80));
    assert_eq!(
        terminal(json!({"height": 1_000_000, "width": 1})),
        (65_535, 1)
    );
}

#[test]
fn a_console_is_a_device_and_a_kernel_parameter() {
    let config = Config {
        console: Some("/tmp/console".into()),
        kernel_parameters: "initcall_debug".to_owned(),
        ..Config::default()
    };
    let plan = plan(&bundle(|_| {}), &config, circumstances()).unwrap();
    assert!(
        plan.vm
            .command_line
            .ends_with(" console=hvc0 initcall_debug")
    );
    assert_eq!(plan.vm.devices.len(), 3);
    assert_eq!(
        plan.host.console.as_deref(),
        Some(Path::new("/tmp/console"))
    );
}

mod devices;
mod hooks;
mod kernel_parameters;
mod mounts;
mod namespaces;

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever a mount says, its share stays below the container's own directory, and what
        /// is the kernel's never comes from the host.
        #[test]
        fn shares_stay_in_their_directory(
            source in "(/|\\.\\./|proc|sys|dev|a|\\.|b/){0,8}",
            options in prop::collection::vec("(r?bind|ro|rro|r?shared|x)", 0..4),
        ) {
            let mount = json!([{"destination": "/d", "type": "bind", "source": source, "options": options}]);
            if let Ok(plan) = planned(|config| set(config, "/mounts", mount)) {
                for share in &plan.host.shares {
                    prop_assert!(share.share_path.starts_with("box/"));
                    prop_assert!(!share.share_path.contains(".."));
                    prop_assert!(share.source.is_absolute());
                    for tree in ["/proc", "/sys", "/dev"] {
                        prop_assert!(!share.source.starts_with(tree));
                    }
                }
            }
        }

        #[test]
        fn no_list_of_cpus_panics(list in "[0-9,\\- ]{0,20}") {
            let _ = planned(|config| set(config, "/linux/resources/cpu", json!({"cpus": list})));
        }
    }
}

/// What a process for `exec` leaves open comes from the container's.
#[test]
fn a_further_process_inherits() {
    let parse = |value: Value| serde_json::from_value::<oci_spec::runtime::Process>(value).unwrap();
    let container = parse(json!({
        "cwd": "/", "user": {"uid": 1, "umask": 7},
        "capabilities": {"bounding": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 2}],
        "oomScoreAdj": 5, "scheduler": {"policy": "SCHED_BATCH"},
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}, "execCPUAffinity": {"final": "0"},
        "noNewPrivileges": true, "env": ["A=1"],
    }));
    let mut expected = container.clone();
    expected.set_no_new_privileges(None).set_env(None);
    expected.user_mut().set_uid(0);
    let given = parse(json!({"cwd": "/", "user": {}}));
    assert_eq!(inherit(given, &container), expected);
    let given = parse(json!({
        "cwd": "/", "user": {"umask": 0}, "capabilities": {},
        "rlimits": [{"type": "RLIMIT_CPU", "soft": 3, "hard": 4}],
        "oomScoreAdj": 0, "scheduler": {"policy": "SCHED_OTHER"},
        "ioPriority": {"class": "IOPRIO_CLASS_BE"}, "execCPUAffinity": {"final": "1"},
    }));
    assert_eq!(inherit(given.clone(), &container), given);
}

#[test]
fn only_exec_is_bound_to_cpus() {
    let affinity = json!({"initial": "0-2,7", "final": "1"});
    let spec = json!({"cwd": "/", "user": {}, "args": ["x"], "execCPUAffinity": affinity});
    let spec: oci_spec::runtime::Process = serde_json::from_value(spec).unwrap();
    let of_exec = process(&spec, "process", circumstances(), &mut Vec::new()).unwrap();
    assert_eq!(of_exec.cpu_affinity.initial, [0, 1, 2, 7]);
    assert_eq!(of_exec.cpu_affinity.last, [1]);
    let plan = planned(|config| set(config, "/process/execCPUAffinity", affinity)).unwrap();
    assert_eq!(plan.container.process.cpu_affinity, CpuAffinity::default());
}

#[test]
fn a_process_without_capabilities_has_none() {
    let plan = planned(|config| {
        config["process"]
            .as_object_mut()
            .unwrap()
            .remove("capabilities");
    });
    let capabilities = plan.unwrap().container.process.capabilities;
    assert_eq!(
        capabilities,
        lazaret_protocol::container::Capabilities::default()
    );
}

#[test]
fn what_the_bundle_does_not_say_is_the_callers() {
    let limit = |resource, soft| Rlimit {
        resource,
        soft,
        hard: 9_000,
    };
    let caller = Caller {
        limits: vec![limit(libc::RLIMIT_NOFILE, 1), limit(libc::RLIMIT_CORE, 2)],
        host_name: "rack-7.example".to_owned(),
    };
    let planned = |caller: &Caller| {
        let circumstances = Circumstances {
            caller,
            ..circumstances()
        };
        let listed = json!([{ "type": "RLIMIT_NOFILE", "soft": 5, "hard": 9_000 }]);
        let bundle = bundle(|config| set(config, "/process/rlimits", listed));
        plan(&bundle, &Config::default(), circumstances).unwrap()
    };
    let plan = planned(&caller);
    assert_eq!(
        plan.container.process.rlimits,
        [limit(libc::RLIMIT_NOFILE, 5), limit(libc::RLIMIT_CORE, 2)]
    );
    assert!(plan.vm.command_line.ends_with(" hostname=rack-7.example"));
    let hostile = Caller {
        host_name: "x init=/bin/sh".to_owned(),
        ..Caller::default()
    };
    assert!(!planned(&hostile).vm.command_line.contains("hostname"));
}
