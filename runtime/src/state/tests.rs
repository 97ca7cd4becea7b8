//! The state converges whatever was killed when.

use proptest::prelude::*;

use super::*;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(&directory.path().join("root"));
    (directory, store)
}

fn id(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

fn record(phase: Phase, monitor: ProcessId) -> Record {
    Record {
        oci_version: "1.0.2".to_owned(),
        bundle: "/bundle".into(),
        config: "/bundle/config.json".into(),
        rootfs: "/bundle/rootfs".into(),
        created: "2026-11-21T00:00:00Z".to_owned(),
        annotations: BTreeMap::new(),
        phase,
        monitor,
        vmm: monitor,
        exit_code: None,
        hooks: LaterHooks::default(),
        sandbox: None,
        user_namespace: None,
        vm: None,
        resources: Default::default(),
    }
}

fn this_process() -> ProcessId {
    ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap()
}

#[test]
fn an_id_is_taken_once() {
    let (_directory, store) = store();
    let first = store.create(&id("a")).unwrap();
    let error = store.create(&id("a")).unwrap_err();
    assert_eq!(error.to_string(), "container with id exists: a");
    first.remove().unwrap();
    assert!(matches!(store.open(&id("a")), Err(StateError::NotExist)));
    store.create(&id("a")).unwrap();
}

#[test]
fn a_directory_without_record_is_creating_until_its_creator_is_gone() {
    let (_directory, store) = store();
    let creator = store.create(&id("a")).unwrap();
    let seen = store.open(&id("a")).unwrap();
    assert_eq!(seen.status().unwrap().0, Status::Creating);
    drop(creator);
    assert_eq!(seen.status().unwrap().0, Status::Stopped);
}

#[test]
fn the_monitor_decides_not_the_file() {
    let (_directory, store) = store();
    let dir = store.create(&id("a")).unwrap();
    let alive = this_process();
    let dead = ProcessId {
        start_ticks: alive.start_ticks + 1,
        ..alive
    };
    for (phase, status) in [
        (Phase::Created, Status::Created),
        (Phase::Running, Status::Running),
        (Phase::Paused, Status::Paused),
        (Phase::Stopped, Status::Stopped),
    ] {
        dir.write(&record(phase, alive)).unwrap();
        assert_eq!(dir.status().unwrap().0, status);
        dir.write(&record(phase, dead)).unwrap();
        assert_eq!(dir.status().unwrap().0, Status::Stopped);
    }
}

#[test]
fn a_lock_on_a_deleted_container_is_refused() {
    let (_directory, store) = store();
    let dir = store.create(&id("a")).unwrap();
    let late = store.open(&id("a")).unwrap();
    dir.remove().unwrap();
    dir.unlock();
    assert!(matches!(late.lock(), Err(StateError::NotExist)));
}

#[test]
fn strangers_in_the_root_are_not_listed() {
    let (directory, store) = store();
    assert!(store.list().unwrap().is_empty());
    let _b = store.create(&id("b")).unwrap();
    let _a = store.create(&id("a")).unwrap();
    std::fs::write(directory.path().join("root/file"), "").unwrap();
    std::fs::create_dir(directory.path().join("root/no id")).unwrap();
    let ids: Vec<_> = store.list().unwrap();
    let ids: Vec<_> = ids.iter().map(|dir| dir.id().as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[test]
fn a_damaged_record_is_named() {
    let (directory, store) = store();
    let dir = store.create(&id("a")).unwrap();
    std::fs::write(directory.path().join("root/a/state.json"), "{").unwrap();
    let error = dir.status().unwrap_err().to_string();
    assert!(error.ends_with("root/a/state.json is damaged"), "{error}");
}

proptest! {
    #[test]
    fn good_ids_are_plain_file_names(text in ".{0,300}") {
        if let Ok(id) = ContainerId::new(&text) {
            let path = Path::new(id.as_str());
            prop_assert_eq!(path.components().count(), 1);
            prop_assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(id.as_str()));
            prop_assert!(id.as_str().len() <= 255);
        }
    }

    #[test]
    fn runcs_ids_are_ours(text in "[A-Za-z0-9_+.-]{1,255}") {
        prop_assert_eq!(ContainerId::new(&text).is_ok(), text != "." && text != "..");
    }
}
