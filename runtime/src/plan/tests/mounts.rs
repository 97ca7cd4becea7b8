//! Mounts whose ids are mapped, overlays, and whose files lie below `/dev`.

use super::*;

/// The plan of one mount.
fn mounted(mount: Value) -> Result<Plan, String> {
    planned(|config| set(config, "/mounts", json!([mount])))
}

fn mapping(container_id: u32, host_id: u32, size: u32) -> IdMapping {
    IdMapping {
        container_id,
        host_id,
        size,
    }
}

#[test]
fn ids_are_mapped_as_the_mount_says() {
    let plan = mounted(json!({
        "destination": "/d", "type": "bind", "source": "/s", "options": ["rbind", "ridmap"],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 20}],
    }));
    let expected = IdMap {
        uids: vec![mapping(0, 1000, 10)],
        gids: vec![mapping(0, 2000, 20)],
        recursive: true,
    };
    assert_eq!(plan.unwrap().host.shares[1].id_map, Some(expected));
}

#[test]
fn ids_are_mapped_as_the_user_namespace_does() {
    let plan = planned(|config| {
        set(
            config,
            "/mounts",
            json!([{"destination": "/d", "type": "bind", "source": "/s", "options": ["idmap"]}]),
        );
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({"type": "user"}));
        let mappings = json!([{"containerID": 1, "hostID": 2, "size": 3}]);
        set(config, "/linux/uidMappings", mappings.clone());
        set(config, "/linux/gidMappings", mappings);
    });
    let expected = IdMap {
        uids: vec![mapping(1, 2, 3)],
        gids: vec![mapping(1, 2, 3)],
        recursive: false,
    };
    assert_eq!(plan.unwrap().host.shares[1].id_map, Some(expected));
}

#[test]
fn an_overlay_is_the_hosts() {
    let plan = mounted(json!({
        "destination": "/d", "type": "overlay", "source": "overlay",
        "options": ["lowerdir=/a:/b", "upperdir=/u", "workdir=/w", "ro", "nosuid"],
    }))
    .unwrap();
    let share = &plan.host.shares[1];
    assert_eq!(
        share.overlay.as_deref(),
        Some("lowerdir=/a:/b,upperdir=/u,workdir=/w")
    );
    assert!(share.readonly);
    let mount = &plan.container.mounts[0];
    assert_eq!(
        mount.flags,
        libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID
    );
    assert_eq!(mount.data, "");
}

#[test]
fn shared_memory_of_the_host_is_no_device() {
    for (source, is_shared) in [
        ("/dev/shm/a", true),
        ("/dev/shm", true),
        ("/dev/shmx", false),
    ] {
        let plan = mounted(json!({
            "destination": "/d", "type": "bind", "source": source, "options": ["bind"],
        }));
        assert_eq!(plan.unwrap().host.shares.len() == 2, is_shared, "{source}");
    }
}

#[test]
fn mistakes_are_named() {
    let mappings = json!([{"containerID": 0, "hostID": 0, "size": 1}]);
    for (mount, message) in [
        (
            json!({"destination": "/d", "type": "tmpfs", "uidMappings": mappings}),
            "mounts[0]: id-mapped mounts are only supported for bind-mounts",
        ),
        (
            json!({"destination": "/d", "type": "bind", "source": "/s", "gidMappings": mappings}),
            "mounts[0]: id-mapped mounts must have both uid and gid mappings specified",
        ),
        (
            json!({"destination": "/d", "type": "bind", "source": "/s", "options": ["idmap"]}),
            "mounts[0]: id-mapped mounts must have both uid and gid mappings specified",
        ),
        (
            json!({"destination": "/d", "type": "bind", "source": "/dev/null",
                   "uidMappings": mappings, "gidMappings": mappings}),
            "mounts[0].source: mapping the ids of the guest's own /dev/null is not supported",
        ),
        (
            json!({"destination": "/d", "type": "overlay", "options": ["lowerdir=a"]}),
            "mounts[0].options: lowerdir must be an absolute path",
        ),
    ] {
        assert_eq!(mounted(mount).unwrap_err(), message);
    }
}
