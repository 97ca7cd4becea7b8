//! Namespaces of a plan: new, left out, and those of another container of the sandbox.

use lazaret_protocol::container::{IdMapping, Namespace, NamespaceKind};
use serde_json::{Value, json};

use super::*;

const JOINED: &str = "/proc/7/ns/";

/// The plan of a container with these namespaces, where pid 7 is that of the container `first`.
fn joined(namespaces: Value) -> Result<Plan, String> {
    joined_with(None, |config| {
        set(config, "/linux/namespaces", namespaces);
    })
}

/// The plan of a container changed by `change`, where pid 7 is that of the container `first`, which
/// is in this user namespace.
fn joined_with(
    user_namespace: Option<UserNamespace>,
    change: impl FnOnce(&mut Value),
) -> Result<Plan, String> {
    let bundle = bundle(|config| {
        config.as_object_mut().unwrap().remove("hostname");
        change(config);
    });
    let joins = ["ipc", "net", "mnt", "user", "uts", "pid"].map(|link| Join {
        path: format!("{JOINED}{link}").into(),
        container: "first".to_owned(),
        user_namespace: user_namespace.clone(),
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

/// The user namespace of the container `first`, when it has one.
fn of_users() -> UserNamespace {
    let mapping = |host_id| IdMapping {
        container_id: 0,
        host_id,
        size: 10,
    };
    UserNamespace {
        uids: vec![mapping(1000)],
        gids: vec![mapping(2000)],
    }
}

/// The mappings of [`of_users`] in a configuration.
fn map_as_first(config: &mut Value) {
    for (field, host_id) in [("uidMappings", 1000), ("gidMappings", 2000)] {
        let mappings = json!([{"containerID": 0, "hostID": host_id, "size": 10}]);
        set(config, &format!("/linux/{field}"), mappings);
    }
}

fn join_user(config: &mut Value) {
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user", "path": "/proc/7/ns/user"}));
}

/// Where they are not given they are those of the container that is joined; engines give them.
#[test]
fn a_joined_user_namespace_has_its_mappings() {
    let with = joined_with(Some(of_users()), |config| {
        join_user(config);
        map_as_first(config);
    });
    let without = joined_with(Some(of_users()), join_user);
    for plan in [with.unwrap(), without.unwrap()] {
        let namespaces = &plan.container.namespaces;
        assert!(namespaces.contains(&of_first(NamespaceKind::User)));
        assert_eq!(plan.container.uid_mappings, of_users().uids);
        assert_eq!(plan.container.gid_mappings, of_users().gids);
        // It has rights over a network of its own only.
        assert!(namespaces.contains(&new(NamespaceKind::Network)));
    }
}

#[test]
fn a_mount_maps_ids_as_the_joined_user_namespace_does() {
    let plan = joined_with(Some(of_users()), |config| {
        join_user(config);
        let mount = json!({
            "destination": "/d", "type": "bind", "source": "/s", "options": ["idmap"],
        });
        set(config, "/mounts", json!([mount]));
    });
    let UserNamespace { uids, gids } = of_users();
    let expected = IdMap {
        uids,
        gids,
        recursive: false,
    };
    assert_eq!(plan.unwrap().host.shares[1].id_map, Some(expected));
}

#[test]
fn a_joined_user_namespace_has_no_other_mappings() {
    let path = "linux.namespaces[6].path";
    let message = format!(
        "{path}: user namespaces enabled, but both namespace path and non-matching mapping \
         specified -- you may only provide one"
    );
    for field in ["uidMappings", "gidMappings"] {
        let others = joined_with(Some(of_users()), |config| {
            join_user(config);
            map_as_first(config);
            set(config, &format!("/linux/{field}/0/size"), json!(11));
        });
        assert_eq!(others.unwrap_err(), message);
        let half = joined_with(Some(of_users()), |config| {
            join_user(config);
            map_as_first(config);
            config["linux"].as_object_mut().unwrap().remove(field);
        });
        assert_eq!(half.unwrap_err(), message);
    }
    let none = joined_with(None, join_user);
    assert_eq!(
        none.unwrap_err(),
        format!("{path}: container \"first\" has no user namespace of its own")
    );
}

#[test]
fn a_path_that_cannot_be_joined_is_refused() {
    for (namespace, message) in [
        (
            json!({"type": "mount", "path": "/proc/7/ns/mnt"}),
            "linux.namespaces[0].path: a container's root file system is mounted in a mount namespace \
             of its own: joining /proc/7/ns/mnt is not supported",
        ),
        (
            json!({"type": "mount", "path": "/proc/8/ns/mnt"}),
            "linux.namespaces[0].path: a container's root file system is mounted in a mount namespace \
             of its own: joining /proc/8/ns/mnt is not supported",
        ),
        (
            json!({"type": "user", "path": "/proc/8/ns/user"}),
            "linux.namespaces[0].path: joining /proc/8/ns/user, which is no namespace of a running \
             container of this runtime, is not supported",
        ),
        (
            json!({"type": "ipc", "path": "/proc/7/ns/uts"}),
            "linux.namespaces[0].path: /proc/7/ns/uts is no ipc namespace",
        ),
        (
            json!({"type": "ipc", "path": "/proc/8/ns/ipc"}),
            "linux.namespaces[0].path: joining /proc/8/ns/ipc, which is no namespace of a running \
             container of this runtime, is not supported",
        ),
    ] {
        assert_eq!(joined(json!([namespace])).unwrap_err(), message);
    }
}
