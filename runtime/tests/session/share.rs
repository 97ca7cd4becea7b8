//! What the guest sees of the host's files, and that read-only is the host's doing.

use serde_json::json;

use crate::harness::Place;

#[test]
fn the_share_holds_what_the_plan_says_and_no_more() {
    let place = Place::new();
    let path = place.path();
    std::fs::write(path.join("bundle/rootfs/in-root"), "").unwrap();
    std::fs::create_dir(path.join("data")).unwrap();
    std::fs::write(path.join("data/in-data"), "").unwrap();
    std::fs::write(path.join("file"), "content").unwrap();
    let script = r#"
        cd $SHARE
        ls; ls c; ls c/rootfs; ls c/mounts; ls c/mounts/0; cat c/mounts/1; echo
        touch c/x 2>/dev/null || echo top is read-only
        touch c/rootfs/x 2>/dev/null || echo root is read-only
        touch c/mounts/0/x && echo data is writable
        (echo > c/mounts/1) 2>/dev/null || echo file is read-only
    "#;
    place.bundle(&["sh", "-c", script], |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": "/data", "type": "bind",
            "source": path.join("data"), "options": ["rbind"]}));
        mounts.push(json!({"destination": "/file", "type": "bind",
            "source": path.join("file"), "options": ["bind", "ro"]}));
    });
    assert_eq!(
        place.ok(&["run", "c"]),
        "c\nmounts\nrootfs\nin-root\n0\n1\nin-data\ncontent\ntop is read-only\n\
         root is read-only\ndata is writable\nfile is read-only\n"
    );
    assert!(path.join("data/x").exists());
}

#[test]
fn a_writable_root_is_writable() {
    let place = Place::new();
    place.bundle(&["sh", "-c", "touch $SHARE/c/rootfs/x"], |config| {
        config["root"]["readonly"] = json!(false);
    });
    place.ok(&["run", "c"]);
    assert!(place.path().join("bundle/rootfs/x").exists());
}

#[test]
fn mounts_below_a_source_come_with_rbind_only() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    let place = Place::new();
    let below = place.path().join("data/below");
    std::fs::create_dir_all(&below).unwrap();
    mount("none", &below, "tmpfs", MountFlags::empty(), None).unwrap();
    std::fs::write(below.join("file"), "").unwrap();
    let mut seen = Vec::new();
    for option in ["bind", "rbind"] {
        place.bundle(&["sh", "-c", "ls $SHARE/c/mounts/0/below"], |config| {
            config["mounts"] = json!([{"destination": "/data", "type": "bind",
                "source": place.path().join("data"), "options": [option]}]);
        });
        seen.push(place.call(&["run", "c"]).stdout);
    }
    unmount(&below, UnmountFlags::DETACH).unwrap();
    assert_eq!(seen, [b"".to_vec(), b"file\n".to_vec()]);
}

#[test]
fn missing_sources_are_named() {
    let place = Place::new();
    place.bundle(&["true"], |config| {
        config["mounts"] = json!([{"destination": "/data", "type": "bind",
            "source": "/no/such/source"}]);
    });
    assert_eq!(
        place.fails(1, &["create", "c"]),
        "mounts[0].source: cannot share /no/such/source: no such file or directory"
    );
    place.bundle(&["true"], |config| {
        config["root"]["path"] = json!("nothing")
    });
    let message = place.fails(1, &["create", "c"]);
    assert!(message.starts_with("root.path: cannot share "), "{message}");
    place.bundle(&["true"], |config| {
        config["root"]["path"] = json!("config.json")
    });
    let message = place.fails(1, &["create", "c"]);
    assert!(
        message.ends_with("/bundle/config.json: not a directory"),
        "{message}"
    );
}

#[test]
fn the_host_sees_no_mounts_of_ours() {
    let place = Place::new();
    place.run_detached(&["sleep", "1000"]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.path().to_str().unwrap()), "{mounts}");
    place.ok(&["delete", "-f", "c"]);
}
