//! Tests of bundles: the configuration an image becomes, and that a bundle is whole or not there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use oci_spec::runtime::Spec;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::user::{self, User};
use super::{
    BundleError, ConvertError, Overrides, StagingError, UserError, default_spec, from_directory,
    from_image,
};
use crate::image::{Image, Platform};
use crate::testing::Archive;
use crate::unpack::Tree;
use crate::{Limits, Observer, Silent};

const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:33:34::/:\n7up:x:7:7::/:\n";
const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\nlog:x:50:a,web\nextra:x:40:web,b\nweb2:x:41:web2\n";

/// Writes a docker archive with these layers and this configuration.
fn image(directory: &Path, config: &Value, layers: &[Archive]) -> Image {
    let layers: Vec<Vec<u8>> = layers.iter().map(|layer| layer.clone().finish()).collect();
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("sha256:{:x}", Sha256::digest(layer)))
        .collect();
    let configuration = json!({
        "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z", "config": config,
        "author": "somebody", "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let names: Vec<String> = (0..layers.len())
        .map(|number| format!("{number}.tar"))
        .collect();
    let manifest = json!([{"Config": "config.json", "Layers": names}]);
    let mut archive = Archive::new()
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("config.json", configuration.to_string().as_bytes());
    for (name, layer) in names.iter().zip(&layers) {
        archive = archive.file(name, layer);
    }
    let path = directory.join("image.tar");
    fs::write(&path, archive.finish()).unwrap();
    Image::open(&path, None, &Platform::guest()).unwrap()
}

fn base() -> Archive {
    Archive::new()
        .file("etc/passwd", PASSWD)
        .file("etc/group", GROUP)
}

/// Makes a bundle, and returns its configuration.
fn bundle(config: &Value, layers: &[Archive], overrides: &Overrides) -> Result<Value, BundleError> {
    let directory = tempfile::tempdir().unwrap();
    let image = image(directory.path(), config, layers);
    let target = directory.path().join("bundle");
    let result = from_image(&image, &target, overrides, Limits::default(), &Silent);
    let mut left: Vec<_> = names(directory.path());
    left.retain(|name| name != "image.tar");
    assert_eq!(
        left,
        if result.is_ok() {
            vec!["bundle"]
        } else {
            vec![]
        }
    );
    result?;
    assert_eq!(names(&target), ["config.json", "rootfs"]);
    assert_eq!(target.metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(
        target.join("rootfs").metadata().unwrap().mode() & 0o7777,
        0o755
    );
    let text = fs::read(target.join("config.json")).unwrap();
    serde_json::from_slice::<Spec>(&text).unwrap();
    Ok(serde_json::from_slice(&text).unwrap())
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn convert_error(config: &Value, overrides: &Overrides) -> ConvertError {
    match bundle(config, &[base()], overrides) {
        Err(BundleError::Convert(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn default_spec_is_a_spec_with_nothing_lost() {
    let text: Value = serde_json::from_str(include_str!("default-config.json")).unwrap();
    let mut parsed = serde_json::to_value(default_spec()).unwrap();
    // Sets have no order.
    for kind in ["bounding", "effective", "permitted", "ambient"] {
        let list = parsed["process"]["capabilities"][kind]
            .as_array_mut()
            .unwrap();
        list.sort_by_key(Value::to_string);
    }
    assert_eq!(parsed, text);
}

#[test]
fn an_image_becomes_a_configuration() {
    let config = json!({
        "Entrypoint": ["/entry", "-x"], "Cmd": ["cmd"], "Env": ["A=1", "PATH=/bin", "B="],
        "WorkingDir": "/work", "User": "web", "StopSignal": "SIGQUIT",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}},
        "Labels": {
            "label": "value", "org.opencontainers.image.author": "label wins",
            "io.lazaret.memory_mib": "99999", "run.oci.hooks": "x", "org.systemd.property.X": "y",
        },
    });
    let spec = bundle(&config, &[base()], &Overrides::default()).unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["/entry", "-x", "cmd"]));
    assert_eq!(process["env"], json!(["A=1", "PATH=/bin", "B="]));
    assert_eq!(process["cwd"], "/work");
    assert_eq!(
        process["user"],
        json!({"uid": 33, "gid": 34, "additionalGids": [40, 50]})
    );
    assert_eq!(
        (&process["terminal"], &process["noNewPrivileges"]),
        (&json!(false), &json!(false))
    );
    let bounding = process["capabilities"]["bounding"].as_array().unwrap();
    assert_eq!(bounding.len(), 14);
    for none in ["ambient", "inheritable"] {
        assert!(process["capabilities"][none].is_null(), "{none}");
    }
    assert_eq!(spec["root"], json!({"path": "rootfs", "readonly": false}));
    assert_eq!(
        spec["annotations"],
        json!({
            "label": "value",
            "org.opencontainers.image.os": "linux",
            "org.opencontainers.image.architecture": "amd64",
            "org.opencontainers.image.author": "label wins",
            "org.opencontainers.image.created": "2026-01-02T03:04:05Z",
            "org.opencontainers.image.stopSignal": "SIGQUIT",
            "org.opencontainers.image.exposedPorts": "53/udp,80/tcp",
        })
    );
    assert_eq!(spec["linux"]["namespaces"].as_array().unwrap().len(), 6);
}

#[test]
fn callers_override_the_image() {
    let config = json!({
        "Entrypoint": ["/entry"], "Cmd": ["cmd"], "Env": ["A=1", "B=2"], "User": "web",
        "Labels": {"a": "image"},
    });
    let overrides = Overrides {
        args: vec!["other".into(), "command".into()],
        env: vec!["B=3".into(), "C=4".into()],
        cwd: Some("/tmp".into()),
        user: Some("1000:www".into()),
        hostname: Some("name".into()),
        terminal: true,
        read_only: true,
        annotations: vec![
            ("a".into(), "caller".into()),
            ("io.lazaret.x".into(), "y".into()),
        ],
    };
    let spec = bundle(&config, &[base()], &overrides).unwrap();
    let process = &spec["process"];
    assert_eq!(process["args"], json!(["/entry", "other", "command"]));
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        process["env"],
        json!(["A=1", "B=3", "C=4", path, "TERM=xterm"])
    );
    assert_eq!(process["user"], json!({"uid": 1000, "gid": 34}));
    assert_eq!(
        (&process["cwd"], &process["terminal"]),
        (&json!("/tmp"), &json!(true))
    );
    assert_eq!(
        (&spec["hostname"], &spec["root"]["readonly"]),
        (&json!("name"), &json!(true))
    );
    assert_eq!(spec["annotations"]["a"], "caller");
    assert_eq!(spec["annotations"]["io.lazaret.x"], "y");
}

#[test]
fn an_image_that_says_nothing_gets_defaults() {
    let overrides = Overrides {
        args: vec!["sh".into()],
        ..Overrides::default()
    };
    for config in [
        json!(null),
        json!({}),
        json!({"Cmd": null, "Env": null, "Labels": null, "User": ""}),
    ] {
        let spec = bundle(&config, &[Archive::new()], &overrides).unwrap();
        assert_eq!(spec["process"]["cwd"], "/");
        assert_eq!(spec["process"]["user"], json!({"uid": 0, "gid": 0}));
        let error = convert_error(&config, &Overrides::default());
        assert!(matches!(error, ConvertError::NoCommand), "{error:?}");
    }
}

#[test]
fn configurations_no_process_could_have_are_refused() {
    let none = Overrides::default();
    let error = |config: Value| convert_error(&config, &none);
    assert!(matches!(
        error(json!({"Cmd": [""]})),
        ConvertError::NoCommand
    ));
    assert!(matches!(
        error(json!({"Cmd": ["a\0b"]})),
        ConvertError::Argument(_)
    ));
    assert!(matches!(
        error(json!({"Cmd": ["a"], "Env": ["x"]})),
        ConvertError::Variable(_)
    ));
    assert!(matches!(
        error(json!({"Cmd": ["a"], "Env": ["=x"]})),
        ConvertError::Variable(_)
    ));
    assert!(matches!(
        error(json!({"Cmd": ["a"], "Env": ["a=\0"]})),
        ConvertError::Variable(_)
    ));
    let cwd = error(json!({"Cmd": ["a"], "WorkingDir": "relative"}));
    assert!(matches!(cwd, ConvertError::RelativeCwd(_)));
    let user = error(json!({"Cmd": ["a"], "User": "nobody"}));
    assert!(matches!(
        user,
        ConvertError::User(UserError::UnknownUser(_))
    ));
    let group = error(json!({"Cmd": ["a"], "User": "web:nobody"}));
    assert!(matches!(
        group,
        ConvertError::User(UserError::UnknownGroup(_))
    ));
}

#[test]
fn labels_that_give_orders_are_reported() {
    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);
    impl Observer for Warnings {
        fn layer(&self, _: usize, _: usize, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
        fn warning(&self, text: &str) {
            self.0.lock().unwrap().push(text.to_owned());
        }
        fn is_cancelled(&self) -> bool {
            false
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let config = json!({"Cmd": ["a"], "Labels": {"io.lazaret.vcpus": "64"}});
    let image = image(directory.path(), &config, &[]);
    let warnings = Warnings::default();
    let target = directory.path().join("bundle");
    from_image(
        &image,
        &target,
        &Overrides::default(),
        Limits::default(),
        &warnings,
    )
    .unwrap();
    let warnings = warnings.0.into_inner().unwrap();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("io.lazaret.vcpus"), "{warnings:?}");
}

#[test]
fn users_are_resolved_as_the_conversion_document_says() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("etc")).unwrap();
    fs::write(directory.path().join("etc/passwd"), PASSWD).unwrap();
    fs::write(directory.path().join("etc/group"), GROUP).unwrap();
    let tree = Tree::new(fs::File::open(directory.path()).unwrap().into());
    let user = |uid, gid, groups: &[u32]| User {
        uid,
        gid,
        additional_gids: groups.to_vec(),
    };
    let resolve = |text: &str| user::resolve(&tree, text).unwrap();
    assert_eq!(resolve(""), user(0, 0, &[]));
    assert_eq!(resolve("root"), user(0, 0, &[]));
    assert_eq!(resolve("web"), user(33, 34, &[40, 50]));
    assert_eq!(resolve("web:"), user(33, 34, &[40, 50]));
    assert_eq!(resolve("web:log"), user(33, 50, &[]));
    assert_eq!(resolve("web:7"), user(33, 7, &[]));
    assert_eq!(
        resolve("33"),
        user(33, 34, &[]),
        "numbers get no supplementary groups"
    );
    assert_eq!(resolve("1234"), user(1234, 0, &[]));
    assert_eq!(resolve(":www"), user(0, 34, &[]));
    assert_eq!(resolve("7up"), user(7, 7, &[]));
    for unknown in [
        "nobody",
        "-1",
        "+1",
        "4294967295",
        "99999999999",
        "x",
        "broken",
    ] {
        let error = user::resolve(&tree, unknown);
        assert!(
            matches!(error, Err(UserError::UnknownUser(_))),
            "{unknown}: {error:?}"
        );
    }
}

#[test]
fn passwd_files_of_hostile_images_are_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(directory.path().join("passwd"), "outside:x:1:1::/:\n").unwrap();
    let tree = Tree::new(fs::File::open(&root).unwrap().into());
    let passwd = root.join("etc/passwd");
    let resolve = |name: &str| user::resolve(&tree, name);
    for target in [
        directory.path().join("passwd"),
        PathBuf::from("../../passwd"),
    ] {
        symlink(target, &passwd).unwrap();
        assert!(matches!(resolve("outside"), Err(UserError::UnknownUser(_))));
        fs::remove_file(&passwd).unwrap();
    }
    symlink("passwd", &passwd).unwrap();
    assert!(
        matches!(resolve("x"), Err(UserError::Read { .. })),
        "a loop"
    );
    fs::remove_file(&passwd).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &passwd, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(
        matches!(resolve("x"), Err(UserError::Read { .. })),
        "no waiting for a writer"
    );
    fs::remove_file(&passwd).unwrap();
    fs::File::create(&passwd).unwrap().set_len(5 << 20).unwrap();
    assert!(matches!(resolve("x"), Err(UserError::TooLong(_))));
    fs::write(&passwd, b"\xff\xfe:::\nx:x:1:2\n").unwrap();
    assert_eq!(
        resolve("x").unwrap(),
        User {
            uid: 1,
            gid: 2,
            additional_gids: Vec::new()
        }
    );
}

#[test]
fn directories_become_bundles() {
    let directory = tempfile::tempdir().unwrap();
    let rootfs = directory.path().join("rootfs");
    fs::create_dir(&rootfs).unwrap();
    let target = directory.path().join("bundle");
    let overrides = Overrides {
        args: vec!["/bin/sh".into()],
        ..Overrides::default()
    };
    from_directory(&rootfs, &target, &overrides).unwrap();
    let spec = Spec::load(target.join("config.json")).unwrap();
    assert_eq!(
        spec.root().as_ref().unwrap().path(),
        &rootfs.canonicalize().unwrap()
    );
    assert_eq!(
        spec.process().as_ref().unwrap().args().as_ref().unwrap(),
        &["/bin/sh"]
    );
    assert!(spec.annotations().is_none());
    let error = from_directory(&directory.path().join("gone"), &target, &overrides).unwrap_err();
    assert!(matches!(error, BundleError::RootFs { .. }), "{error:?}");
    let file = target.join("config.json");
    let other = directory.path().join("other");
    let error = from_directory(&file, &other, &overrides).unwrap_err();
    assert!(matches!(error, BundleError::RootFs { .. }), "{error:?}");
    assert_eq!(names(directory.path()), ["bundle", "rootfs"]);
}

#[test]
fn what_is_there_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let overrides = Overrides {
        args: vec!["sh".into()],
        ..Overrides::default()
    };
    let make =
        |name: &str| from_directory(directory.path(), &directory.path().join(name), &overrides);
    let exists = |result| matches!(result, Err(BundleError::Staging(StagingError::Exists(_))));
    fs::write(directory.path().join("file"), "content").unwrap();
    fs::create_dir(directory.path().join("full")).unwrap();
    fs::write(directory.path().join("full/file"), "content").unwrap();
    fs::create_dir(directory.path().join("empty")).unwrap();
    symlink("empty", directory.path().join("link")).unwrap();
    for name in ["file", "full", "link"] {
        assert!(exists(make(name)), "{name}");
    }
    make("empty").unwrap();
    assert!(exists(make("empty")));
    assert_eq!(names(directory.path()), ["empty", "file", "full", "link"]);
    assert_eq!(names(&directory.path().join("full")), ["file"]);
    let unnamed = from_directory(directory.path(), Path::new("/"), &overrides);
    assert!(matches!(
        unnamed,
        Err(BundleError::Staging(StagingError::NoName(_)))
    ));
    let orphan = make("no/parent");
    assert!(matches!(
        orphan,
        Err(BundleError::Staging(StagingError::Call { .. }))
    ));
}

#[test]
fn a_killed_attempt_is_cleaned_up_and_a_running_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let overrides = Overrides {
        args: vec!["sh".into()],
        ..Overrides::default()
    };
    let target = directory.path().join("bundle");
    let unfinished = directory.path().join(".bundle.unfinished");
    let make = || from_directory(directory.path(), &target, &overrides);
    let leftover = |mode| {
        fs::create_dir_all(unfinished.join("rootfs/deep/er")).unwrap();
        fs::write(unfinished.join("rootfs/file"), "").unwrap();
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode)).unwrap();
    };
    leftover(0o700);
    let lock = fs::File::open(&unfinished).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(matches!(
        make(),
        Err(BundleError::Staging(StagingError::Busy(_)))
    ));
    assert!(unfinished.join("rootfs/file").exists());
    drop(lock);
    make().unwrap();
    assert_eq!(names(directory.path()), ["bundle"]);
    assert_eq!(names(&target), ["config.json"]);
    fs::remove_dir_all(&target).unwrap();
    // One that others can write to is no place to unpack to.
    leftover(0o777);
    assert!(matches!(
        make(),
        Err(BundleError::Staging(StagingError::Foreign(_)))
    ));
    fs::remove_dir_all(&unfinished).unwrap();
    symlink("/tmp", &unfinished).unwrap();
    assert!(matches!(
        make(),
        Err(BundleError::Staging(StagingError::Foreign(_)))
    ));
}

#[test]
fn failures_leave_nothing() {
    let config = json!({"Cmd": ["sh"]});
    let none = Overrides::default();
    let deep = Archive::new()
        .pax(&[("path", "d/".repeat(2000).as_bytes())])
        .file("x", b"");
    for layers in [
        vec![base(), Archive::new().file("../x", b"")],
        vec![deep, Archive::new().hard_link("a", "b")],
        vec![
            base(),
            Archive::new()
                .file(".wh.etc", b"")
                .file("ok", b"")
                .file(".wh.", b""),
        ],
    ] {
        // `bundle` looks at what is left.
        let error = bundle(&config, &layers, &none).unwrap_err();
        assert!(matches!(error, BundleError::Image(_)), "{error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn users_and_files_of_any_kind_never_panic(
        passwd in "[a-c:0-9x\n]{0,80}", group in "[a-c:0-9,x\n]{0,80}", text in "[a-c:0-9]{0,10}"
    ) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        fs::write(directory.path().join("etc/passwd"), passwd).unwrap();
        fs::write(directory.path().join("etc/group"), group).unwrap();
        let tree = Tree::new(fs::File::open(directory.path()).unwrap().into());
        let _ = user::resolve(&tree, &text);
    }
}
