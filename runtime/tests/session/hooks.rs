//! The host's hooks around a container whose guest is played: when they run, and that a failure
//! leaves nothing behind.

use serde_json::{Value, json};

use crate::harness::Place;

fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

/// Hooks that write their names to `log` in the bundle, or, for `poststop`, beside it.
fn logging(place: &Place) -> Value {
    let log = place.path().join("log");
    let line = |name: &str| hook(&format!("echo {name} >> {}", log.display()));
    json!({
        "prestart": [line("prestart")],
        "createRuntime": [line("createRuntime")],
        "createContainer": [line("createContainer")],
        "poststart": [line("poststart")],
        "poststop": [line("poststop")],
    })
}

fn log(place: &Place) -> String {
    let text = std::fs::read_to_string(place.path().join("log"));
    text.unwrap_or_default().replace('\n', " ")
}

#[test]
fn each_runs_in_its_turn() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |config| {
        config["hooks"] = logging(&place);
    });
    place.create("c");
    assert_eq!(log(&place), "prestart createRuntime createContainer ");
    place.ok(&["start", "c"]);
    assert_eq!(
        log(&place),
        "prestart createRuntime createContainer poststart "
    );
    place.ok(&["delete", "--force", "c"]);
    assert!(
        log(&place).ends_with(" poststart poststop "),
        "{}",
        log(&place)
    );
}

#[test]
fn a_failure_leaves_nothing_but_what_poststop_does() {
    for list in ["prestart", "createRuntime", "createContainer"] {
        let place = Place::new();
        place.bundle(&["sleep", "1000"], |config| {
            config["hooks"] = logging(&place);
            config["hooks"][list] = json!([hook("echo no >&2; exit 4")]);
        });
        assert_eq!(
            place.fails(1, &["create", "c"]),
            format!("hooks.{list}: error running hook #0: exit status 4, stdout: , stderr: no")
        );
        assert_eq!(place.fails(1, &["state", "c"]), "container does not exist");
        assert!(
            log(&place).ends_with("poststop "),
            "{list}: {}",
            log(&place)
        );
        assert!(!log(&place).contains(list), "{list}: {}", log(&place));
    }
}

#[test]
fn a_failure_after_the_start_ends_the_container() {
    let place = Place::new();
    place.bundle(&["sleep", "1000"], |config| {
        config["hooks"] = logging(&place);
        config["hooks"]["poststart"] = json!([hook("exit 5")]);
    });
    let message = "hooks.poststart: error running hook #0: exit status 5, stdout: , stderr: ";
    assert_eq!(place.fails(1, &["run", "c"]), message);
    assert_eq!(place.fails(1, &["state", "c"]), "container does not exist");
    assert!(log(&place).ends_with("poststop "), "{}", log(&place));
}

#[test]
fn what_they_mount_in_the_root_comes_along_and_goes_with_the_container() {
    let place = Place::new();
    let mounts = hook("mount -t tmpfs none mnt && echo mounted > mnt/file");
    std::fs::create_dir(place.path().join("bundle/rootfs/mnt")).unwrap();
    place.bundle(&["sh", "-c", "cat $SHARE/c/rootfs/mnt/file"], |config| {
        config["hooks"] = json!({ "createContainer": [mounts] });
    });
    assert_eq!(place.ok(&["run", "c"]), "mounted\n");
    let mut entries = std::fs::read_dir(place.path().join("bundle/rootfs/mnt")).unwrap();
    assert!(entries.next().is_none());
}

#[test]
fn the_caller_s_mounts_are_those_of_create_runtime() {
    let place = Place::new();
    let below = place.path().join("below");
    std::fs::create_dir(&below).unwrap();
    let path = below.display();
    let mounts = hook(&format!(
        "mount -t tmpfs none {path} && echo x > {path}/file"
    ));
    place.bundle(&["true"], |config| {
        config["hooks"] = json!({ "createRuntime": [mounts] });
    });
    place.ok(&["run", "c"]);
    let seen = below.join("file").exists();
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(seen, "the mount is not the caller's");
}
