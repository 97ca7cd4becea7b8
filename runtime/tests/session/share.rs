//! What the guest sees of the host's files, and that read-only is the host's doing.

use std::{
    fs::Permissions,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

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

/// The flags of the host's mounts count in the guest, too; what the bind says itself is stronger,
/// but for what the host does not let anybody write to.
#[test]
fn binds_keep_the_flags_of_their_sources() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    let place = Place::new();
    let data = place.path().join("data");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOATIME;
    std::fs::create_dir(&data).unwrap();
    mount("none", &data, "tmpfs", flags, None).unwrap();
    std::fs::create_dir(data.join("below")).unwrap();
    std::fs::create_dir(data.join("locked")).unwrap();
    mount(
        "none",
        data.join("below"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )
    .unwrap();
    mount(
        "none",
        data.join("locked"),
        "tmpfs",
        MountFlags::RDONLY,
        None,
    )
    .unwrap();
    let binds: [(&str, &[&str]); 5] = [
        ("", &["bind"]),
        ("", &["bind", "suid", "exec", "dev", "relatime"]),
        ("locked", &["bind", "rw"]),
        ("", &["rbind", "ro"]),
        ("", &["rbind", "rro"]),
    ];
    let script = r#"
        echo "$MOUNTS"
        cd $SHARE/c/mounts
        touch 3/x 2>/dev/null || echo top is read-only
        touch 3/below/x && echo below is writable
        touch 4/below/y 2>/dev/null || echo below is read-only
    "#;
    place.bundle(&["sh", "-c", script], |config| {
        let mounts = binds.iter().enumerate().map(|(at, (path, options))| {
            json!({"destination": format!("/{at}"), "type": "bind", "source": data.join(path),
                "options": options})
        });
        config["mounts"] = mounts.collect();
    });
    let said = place.call(&["run", "c"]);
    unmount(&data, UnmountFlags::DETACH).unwrap();
    let (bind, all) = (libc::MS_BIND, libc::MS_BIND | libc::MS_REC);
    let secure = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_NOATIME;
    let expected = [
        ("/0", bind | secure),
        ("/1", bind | libc::MS_RELATIME),
        ("/2", bind | libc::MS_RDONLY),
        ("/3", all | secure | libc::MS_RDONLY),
        ("/3//below", 0),
        ("/3//locked", libc::MS_RDONLY),
        ("/4", all | secure),
        ("/4//below", 0),
        ("/4//locked", libc::MS_RDONLY),
    ]
    .map(|(path, flags)| format!("{path}={flags:#x}"))
    .join(" ");
    assert_eq!(
        String::from_utf8(said.stdout).unwrap(),
        format!("{expected}\ntop is read-only\nbelow is writable\nbelow is read-only\n")
    );
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

/// A pseudo file system of the kernel's maps no ids.
#[test]
fn ids_that_cannot_be_mapped_are_told() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    let place = Place::new();
    let source = place.path().join("source");
    std::fs::create_dir(&source).unwrap();
    mount("none", &source, "ramfs", MountFlags::empty(), None).unwrap();
    let mappings = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    place.bundle(&["true"], |config| {
        config["mounts"] = json!([{"destination": "/data", "type": "bind", "source": source,
            "uidMappings": mappings, "gidMappings": mappings}]);
    });
    let message = place.fails(1, &["create", "c"]);
    unmount(&source, UnmountFlags::DETACH).unwrap();
    let source = source.display();
    assert_eq!(
        message,
        format!("mounts[0].source: cannot map the ids of {source}: invalid argument")
    );
    assert_eq!(place.leftovers(), [""; 0]);
}

#[test]
fn the_host_sees_no_mounts_of_ours() {
    let place = Place::new();
    place.run_detached(&["sleep", "1000"]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.path().to_str().unwrap()), "{mounts}");
    place.ok(&["delete", "-f", "c"]);
}

#[test]
fn an_overlay_is_mounted_by_the_host() {
    let place = Place::new();
    let path = place.path();
    // The file system of the test's directory may be one that overlays cannot use.
    let top = path.join("layers");
    std::fs::create_dir(&top).unwrap();
    rustix::mount::mount(
        "none",
        &top,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir(top.join(name)).unwrap();
    }
    std::fs::write(top.join("lower/below"), "").unwrap();
    let script = "cd $SHARE/c/mounts/0; ls; touch above";
    place.bundle(&["sh", "-c", script], |config| {
        let (lower, upper) = (top.join("lower"), top.join("upper"));
        let options = [
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", top.join("work").display()),
        ];
        config["mounts"] = json!([{"destination": "/data", "type": "overlay",
            "source": "overlay", "options": options}]);
    });
    let said = place.call(&["run", "c"]);
    let (above, mistaken) = (
        top.join("upper/above").exists(),
        top.join("lower/above").exists(),
    );
    place.bundle(&["true"], |config| {
        config["mounts"] = json!([{"destination": "/data", "type": "overlay",
            "source": "overlay", "options": ["lowerdir=/no/such"]}]);
    });
    let error = place.fails(1, &["create", "c"]);
    rustix::mount::unmount(&top, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(said.stdout, b"below\n", "{said:?}");
    assert!(above && !mistaken);
    assert!(
        error.starts_with("mounts[0]: cannot mount overlay (lowerdir=/no/such): "),
        "{error}"
    );
}

#[test]
fn ids_of_a_mount_are_mapped_by_the_host() {
    let place = Place::new();
    let source = place.path().join("source");
    std::fs::create_dir(&source).unwrap();
    rustix::mount::mount(
        "none",
        &source,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    std::fs::write(source.join("file"), "").unwrap();
    std::os::unix::fs::chown(source.join("file"), Some(3), Some(4)).unwrap();
    std::fs::set_permissions(&source, Permissions::from_mode(0o777)).unwrap();
    let script = "cd $SHARE/c/mounts/0; stat -c %u:%g file; \
                  setpriv --reuid 1005 --regid 2006 --clear-groups touch made";
    place.bundle(&["sh", "-c", script], |config| {
        let mapping = |host: u32| json!([{"containerID": 0, "hostID": host, "size": 10}]);
        config["mounts"] = json!([{"destination": "/data", "type": "bind", "source": source,
            "options": ["bind"], "uidMappings": mapping(1000), "gidMappings": mapping(2000)}]);
    });
    let said = place.call(&["run", "c"]);
    let made = std::fs::metadata(source.join("made"));
    rustix::mount::unmount(&source, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(said.stdout, b"1003:2004\n", "{said:?}");
    let made = made.unwrap();
    assert_eq!((made.uid(), made.gid()), (5, 6));
}

#[test]
fn a_root_behind_a_link_is_refused() {
    let place = Place::new();
    let link = place.path().join("link");
    std::os::unix::fs::symlink(place.path().join("bundle"), &link).unwrap();
    let root = link.join("rootfs");
    place.bundle(&["true"], |config| config["root"]["path"] = json!(root));
    assert_eq!(
        place.fails(1, &["create", "c"]),
        format!(
            "root.path: invalid rootfs: {}: not an absolute path, or a symlink",
            root.display()
        )
    );
}
