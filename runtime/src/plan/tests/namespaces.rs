//! Namespaces of a plan: new, left out, and those of another container of the sandbox.

use lazaret_protocol::container::{Namespace, NamespaceKind};
use serde_json::{Value, json};

use super::*;

const JOINED: &str = "/proc/7/ns/";

/// The plan of a container with these namespaces, where pid 7 is that of the container `first`.
fn joined(namespaces: Value) -> Result<Plan, String> {
    let bundle = bundle(|config| {
        config.as_object_mut().unwrap().remove("hostname");
        set(config, "/linux/namespaces", namespaces);
    });
    let joins = ["ipc", "net", "mnt", "user", "uts", "pid"].map(|link| Join {
        path: format!("{JOINED}{link}").into(),
        container: "first".to_owned(),
    });
    let circumstances = Circumstances {
        joins: &joins,
        ..circumstances()
    };
    plan(&bundle, &Config::default(), circumstances).map_err(|error| error.to_string())
}

fn new(kind: NamespaceKind) -> Namespace {
    Namespace { kind, of: None }
}

fn of_first(kind: NamespaceKind) -> Namespace {
    Namespace {
        kind,
        of: Some("first".to_owned()),
    }
}

/// Its own network namespace is what gives a user namespace the right to mount sysfs.
#[test]
fn a_user_namespace_has_its_own_network() {
    let kinds = |namespaces: Value| -> Vec<NamespaceKind> {
        let plan = planned(|config| {
            config.as_object_mut().unwrap().remove("hostname");
            set(config, "/linux/namespaces", namespaces);
        })
        .unwrap();
        let namespaces = plan.container.namespaces.iter();
        namespaces.map(|namespace| namespace.kind).collect()
    };
    use NamespaceKind::{Mount, Network, User};
    let (user, network) = (json!({"type": "user"}), json!({"type": "network"}));
    assert_eq!(kinds(json!([user, network])), [Mount, Network, User]);
    assert_eq!(kinds(json!([user])), [Mount, User]);
    assert_eq!(kinds(json!([network])), [Mount]);
}

#[test]
fn a_path_joins_the_namespace_of_a_container() {
    use NamespaceKind::{Ipc, Mount, Network, Uts};
    let plan = joined(json!([
        {"type": "mount"},
        {"type": "ipc", "path": "/proc/7/ns/ipc"},
        {"type": "network", "path": "/proc/7/ns/net"},
        {"type": "uts", "path": "/proc/7/ns/uts"},
    ]));
    let plan = plan.unwrap();
    assert_eq!(
        plan.container.namespaces,
        [of_first(Ipc), new(Mount), of_first(Network), of_first(Uts)]
    );
    // The network is not the guest's any more than the first container's.
    assert_eq!(plan.warnings.len(), 1);
    assert!(plan.warnings[0].contains("no pid namespace"));
}

#[test]
fn a_further_container_of_a_sandbox_has_its_own_network_if_it_wants_a_new_one() {
    use NamespaceKind::{Ipc, Mount, Network, Pid};
    let network = |network: Value| {
        let mut namespaces = json!([
            {"type": "pid"},
            {"type": "ipc", "path": "/proc/7/ns/ipc"},
        ]);
        namespaces.as_array_mut().unwrap().push(network);
        joined(namespaces).unwrap().container.namespaces
    };
    assert_eq!(
        network(json!({"type": "network"})),
        [of_first(Ipc), new(Mount), new(Network), new(Pid)]
    );
    assert_eq!(
        network(json!({"type": "network", "path": "/run/netns/a"})),
        [of_first(Ipc), new(Mount), new(Pid)]
    );
}

#[test]
fn a_path_that_cannot_be_joined_is_refused() {
    for (namespace, message) in [
        (
            json!({"type": "mount", "path": "/proc/7/ns/mnt"}),
            "linux.namespaces[0].path: joining the namespace /proc/7/ns/mnt is not supported",
        ),
        (
            json!({"type": "user", "path": "/proc/7/ns/user"}),
            "linux.namespaces[0].path: joining the namespace /proc/7/ns/user is not supported",
        ),
        (
            json!({"type": "ipc", "path": "/proc/7/ns/uts"}),
            "linux.namespaces[0].path: /proc/7/ns/uts is no ipc namespace",
        ),
        (
            json!({"type": "ipc", "path": "/proc/8/ns/ipc"}),
            "linux.namespaces[0].path: joining the namespace /proc/8/ns/ipc is not supported",
        ),
    ] {
        assert_eq!(joined(json!([namespace])).unwrap_err(), message);
    }
}
