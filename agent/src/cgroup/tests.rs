//! Cgroups in a plain directory that plays the file system: what is written where, and that a
//! failure leaves nothing.

use std::fs;

use lazaret_protocol::container;

use super::Cgroup;
use crate::errno::chain;

fn files(files: &[(&str, &str)]) -> container::Cgroup {
    container::Cgroup {
        files: files
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        device_rules: Vec::new(),
    }
}

#[test]
fn a_missing_file_is_named_and_nothing_is_left() {
    let parent = tempfile::tempdir().unwrap();
    let error = Cgroup::create(parent.path(), "c", &files(&[("memory.max", "1")])).unwrap_err();
    let path = parent.path().join("c/memory.max");
    assert_eq!(
        chain(&error),
        format!(
            "write \"1\" to {}: no such file or directory",
            path.display()
        )
    );
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
}

#[test]
fn a_file_name_cannot_be_a_path() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["../x", "a/b", "", ".."] {
        let error = Cgroup::create(parent.path(), "c", &files(&[(name, "1")])).unwrap_err();
        assert!(chain(&error).contains("is not a plain name"));
    }
}

#[test]
fn processes_of_the_whole_subtree_are_listed() {
    let parent = tempfile::tempdir().unwrap();
    let cgroup = Cgroup::create(parent.path(), "c", &files(&[])).unwrap();
    let top = parent.path().join("c");
    fs::create_dir_all(top.join("a/b")).unwrap();
    fs::write(top.join("cgroup.procs"), "30\n1\n").unwrap();
    fs::write(top.join("a/cgroup.procs"), "").unwrap();
    fs::write(top.join("a/b/cgroup.procs"), "7\n").unwrap();
    assert_eq!(cgroup.processes().unwrap(), [1, 7, 30]);
}

#[test]
fn no_id_gets_the_name_of_a_file_or_of_another_id() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("cgroup.procs"), "").unwrap();
    for id in ["cgroup.procs", "_cgroup.procs", "cgroup", "_", "_cgroup"] {
        Cgroup::create(parent.path(), id, &files(&[])).unwrap();
    }
    let kind = fs::symlink_metadata(parent.path().join("cgroup.procs")).unwrap();
    assert!(kind.is_file());
}

#[test]
fn an_existing_cgroup_is_an_error() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("c")).unwrap();
    let error = Cgroup::create(parent.path(), "c", &files(&[])).unwrap_err();
    assert!(chain(&error).ends_with("file exists"));
}
