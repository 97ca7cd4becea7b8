//! Which kernel parameters a container may set.

use super::*;

fn refusal(name: &str, namespaces: &[&str]) -> Option<String> {
    let namespaces: Vec<Value> = namespaces
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    planned(|config| {
        config.as_object_mut().unwrap().remove("hostname");
        set(config, "/linux/namespaces", json!(namespaces));
        set(config, "/linux/sysctl", json!({name: "1"}));
    })
    .err()
}

#[test]
fn parameters_of_own_namespaces_are_taken() {
    for (name, namespace) in [
        ("kernel.msgmax", "ipc"),
        ("kernel/shm_rmid_forced", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("fs/mqueue/msg_max", "ipc"),
        ("net.ipv4.ip_forward", "network"),
        ("net/ipv4/conf/eth0.1/forwarding", "network"),
        ("kernel.domainname", "uts"),
    ] {
        assert_eq!(refusal(name, &["mount", namespace]), None, "{name}");
        let refused = refusal(name, &["mount"]);
        assert!(refused.is_some(), "{name} without a {namespace} namespace");
    }
}

#[test]
fn refusals_are_those_of_runc() {
    for (name, namespaces, message) in [
        (
            "kernel.sem",
            &["mount"][..],
            "linux.sysctl: sysctl \"kernel.sem\" is not allowed in the hosts ipc namespace",
        ),
        (
            "net/core/somaxconn",
            &["ipc"],
            "linux.sysctl: sysctl \"net.core.somaxconn\" not allowed in host network namespace",
        ),
        (
            "kernel.hostname",
            &["uts"],
            "linux.sysctl: sysctl \"kernel.hostname\" is not allowed as it conflicts with the OCI \"hostname\" field",
        ),
        (
            "vm.swappiness",
            &["ipc", "network", "uts"],
            "linux.sysctl: sysctl \"vm.swappiness\" is not in a separate kernel namespace",
        ),
        (
            "kernel.domainname",
            &["ipc"],
            "linux.sysctl: sysctl \"kernel.domainname\" is not in a separate kernel namespace",
        ),
        (
            "",
            &["ipc"],
            "linux.sysctl: sysctl \"\" is not in a separate kernel namespace",
        ),
    ] {
        assert_eq!(refusal(name, namespaces).as_deref(), Some(message));
    }
}

#[test]
fn names_need_a_namespace() {
    for field in ["hostname", "domainname"] {
        let error = planned(|config| {
            config.as_object_mut().unwrap().remove("hostname");
            set(config, "/linux/namespaces", json!([{"type": "pid"}]));
            config[field] = json!("x");
        });
        assert_eq!(
            error.unwrap_err(),
            format!("{field}: unable to set {field} without a private UTS namespace")
        );
    }
}
