//! `features`: what of the runtime-spec this runtime can do (runtime-spec, features.md). The words
//! are the spec's; which of them are listed, a plan decides (`plan::accepts`).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::{VerbError, print, version};
use crate::plan::{self, Verdict};

/// `hooks` of the spec, in the order in which they run (config.md, "POSIX-platform Hooks").
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// `linux.namespaces[].type` of the spec.
const NAMESPACES: [&str; 8] = [
    "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
];

/// `linux.seccomp.defaultAction` of the spec.
const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// `linux.seccomp.syscalls[].args[].op` of the spec.
const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// `linux.seccomp.architectures` of the spec.
const ARCHITECTURES: [&str; 22] = [
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
];

/// `linux.seccomp.flags` of the spec.
const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// `linux.memoryPolicy.mode` of the spec.
const MEMORY_POLICY_MODES: [&str; 7] = [
    "MPOL_BIND",
    "MPOL_DEFAULT",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

/// `linux.memoryPolicy.flags` of the spec.
const MEMORY_POLICY_FLAGS: [&str; 3] = [
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: Vec<&'static str>,
    mount_options: Vec<&'static str>,
    linux: Linux,
    annotations: BTreeMap<&'static str, &'static str>,
    potentially_unsafe_config_annotations: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<&'static str>,
    capabilities: Vec<String>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: Enabled,
    memory_policy: MemoryPolicy,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Cgroup {
    v1: bool,
    v2: bool,
    systemd: bool,
    systemd_user: bool,
    rdma: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: Vec<&'static str>,
    operators: Vec<&'static str>,
    archs: Vec<&'static str>,
    known_flags: Vec<&'static str>,
    supported_flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Enabled {
    enabled: bool,
}

#[derive(Debug, Serialize)]
struct MemoryPolicy {
    modes: Vec<&'static str>,
    flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct MountExtensions {
    idmap: Enabled,
}

/// # Errors
/// [`VerbError::Io`].
pub(super) fn run() -> Result<u8, VerbError> {
    let text = serde_json::to_string_pretty(&features()).expect("texts are valid JSON");
    print(&(text + "\n"))?;
    Ok(0)
}

fn features() -> Features {
    let mount_options = plan::mount_options();
    let idmap = mount_options.contains(&"idmap");
    Features {
        oci_version_min: "1.0.0",
        oci_version_max: version::SPEC,
        hooks: done(HOOKS, |name| {
            let hook = json!([{ "path": "/bin/true" }]);
            vec![("/hooks", json!({ name: hook }))]
        }),
        mount_options,
        linux: Linux {
            namespaces: done(NAMESPACES, |name| {
                vec![("/linux/namespaces", json!([{ "type": name }]))]
            }),
            capabilities: plan::capabilities(),
            cgroup: cgroup(),
            seccomp: seccomp(),
            apparmor: enabled("/process/apparmorProfile", json!("unconfined-profile")),
            selinux: enabled("/process/selinuxLabel", json!("a_u:a_r:a_t:s0")),
            intel_rdt: enabled("/linux/intelRdt", json!({ "closID": "x" })),
            memory_policy: MemoryPolicy {
                modes: done(MEMORY_POLICY_MODES, |mode| memory_policy(mode, &[])),
                flags: done(MEMORY_POLICY_FLAGS, |flag| {
                    memory_policy("MPOL_BIND", &[flag])
                }),
            },
            mount_extensions: MountExtensions {
                idmap: Enabled { enabled: idmap },
            },
            net_devices: enabled("/linux/netDevices", json!({ "eth0": { "name": "eth0" } })),
        },
        annotations: BTreeMap::from([
            // What engines take for the presence of runc's own features.
            ("org.opencontainers.runc.checkpoint.enabled", "false"),
            ("io.lazaret.version", env!("CARGO_PKG_VERSION")),
        ]),
        // They change the VM that a container gets.
        potentially_unsafe_config_annotations: vec![plan::ANNOTATION_PREFIX.to_owned()],
    }
}

/// The words whose fields a plan does, or at least does not refuse.
fn done<const N: usize>(
    words: [&'static str; N],
    fields: impl Fn(&'static str) -> Vec<(&'static str, Value)>,
) -> Vec<&'static str> {
    let words = words.into_iter();
    words
        .filter(|word| plan::verdict(&fields(word)) != Verdict::Refused)
        .collect()
}

fn enabled(pointer: &str, value: Value) -> Enabled {
    let enabled = plan::verdict(&[(pointer, value)]) == Verdict::Done;
    Enabled { enabled }
}

fn memory_policy(mode: &str, flags: &[&str]) -> Vec<(&'static str, Value)> {
    // The first two take no nodes.
    let nodes = if matches!(mode, "MPOL_DEFAULT" | "MPOL_LOCAL") {
        ""
    } else {
        "0"
    };
    let policy = json!({ "mode": mode, "nodes": nodes, "flags": flags });
    vec![("/linux/memoryPolicy", policy)]
}

/// Version 2 is the guest's. The others are the host's, where `linux.cgroupsPath` is.
fn cgroup() -> Cgroup {
    let path = [("/linux/cgroupsPath", json!("/x"))];
    let host = plan::verdict(&path) == Verdict::Done;
    let rdma = json!({ "mlx5_0": { "hcaHandles": 1 } });
    Cgroup {
        v1: host,
        v2: true,
        systemd: host,
        systemd_user: false,
        rdma: plan::verdict(&[("/linux/resources/rdma", rdma)]) == Verdict::Done,
    }
}

fn seccomp() -> Seccomp {
    let rule = |action: &str, args: Value| json!([{ "names": ["getcwd"], "action": action, "args": args }]);
    let profile = |architectures: Value, flags: Value, rules: Value| {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "flags": flags,
            "syscalls": rules,
        });
        vec![("/linux/seccomp", profile)]
    };
    let refusing = || rule("SCMP_ACT_ERRNO", json!([]));
    let actions = done(ACTIONS, |action| {
        profile(json!([]), json!([]), rule(action, json!([])))
    });
    let enabled = actions.contains(&"SCMP_ACT_ERRNO");
    let flags = || done(FLAGS, |flag| profile(json!([]), json!([flag]), refusing()));
    Seccomp {
        enabled,
        operators: done(OPERATORS, |op| {
            let args = json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": op }]);
            profile(json!([]), json!([]), rule("SCMP_ACT_ERRNO", args))
        }),
        archs: done(ARCHITECTURES, |arch| {
            profile(json!([arch]), json!([]), refusing())
        }),
        known_flags: if enabled { FLAGS.to_vec() } else { Vec::new() },
        supported_flags: flags(),
        actions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plan_refuses_is_not_listed() {
        let features = features();
        assert!(features.mount_options.contains(&"ro"));
        assert_eq!(features.linux.namespaces, NAMESPACES);
        assert!(
            features
                .linux
                .capabilities
                .contains(&"CAP_SYS_ADMIN".to_owned())
        );
        assert!(features.linux.cgroup.v2);
        assert!(!features.linux.apparmor.enabled);
        assert!(!features.linux.intel_rdt.enabled);
        for hook in HOOKS {
            let hooks = [("/hooks", json!({ hook: [{ "path": "/bin/true" }] }))];
            let refused = plan::verdict(&hooks) == Verdict::Refused;
            assert_eq!(features.hooks.contains(&hook), !refused, "{hook}");
        }
        let errno = features.linux.seccomp.actions.contains(&"SCMP_ACT_ERRNO");
        assert_eq!(features.linux.seccomp.enabled, errno);
    }
}
