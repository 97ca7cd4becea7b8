//! Messages and choices that engines depend on.

use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::{c_string, environment, find, home_in, variable};
use crate::errno::chain;

#[test]
fn messages_are_those_of_runc() {
    let message = |name, path| chain(&find(name, path).unwrap_err());
    assert_eq!(
        message("foo", "/nonexistent:/dev"),
        "exec: \"foo\": executable file not found in $PATH"
    );
    assert_eq!(
        message("foo", ""),
        "exec: \"foo\": executable file not found in $PATH"
    );
    assert_eq!(
        message("/foo", "/bin"),
        "exec: \"/foo\": stat /foo: no such file or directory"
    );
    assert_eq!(
        message("/etc/passwd", "/bin"),
        "exec: \"/etc/passwd\": permission denied"
    );
    assert_eq!(message("/etc", "/bin"), "exec: \"/etc\": is a directory");
    assert_eq!(
        message("/etc/passwd/x", "/bin"),
        "exec: \"/etc/passwd/x\": stat /etc/passwd/x: not a directory"
    );
}

#[test]
fn the_first_program_in_the_path_is_taken() {
    let top = tempfile::tempdir().unwrap();
    let directory = |name: &str| top.path().join(name);
    for name in ["a", "b", "c"] {
        std::fs::create_dir(directory(name)).unwrap();
    }
    // Neither a directory nor a file without the permission counts.
    std::fs::create_dir(directory("a/tool")).unwrap();
    for name in ["b/tool", "c/tool"] {
        std::fs::write(directory(name), "").unwrap();
    }
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory("c/tool"), mode).unwrap();
    let path = ["a", "b", "c"].map(|name| directory(name).display().to_string());
    assert_eq!(
        find("tool", &path.join(":")).unwrap(),
        directory("c/tool").display().to_string()
    );
    // By way of the root, wherever the test's own directory is.
    let relative = format!("{}{}", "../".repeat(32), path[2]);
    assert_eq!(
        find("tool", &relative).unwrap_err().to_string(),
        "exec: \"tool\": cannot run executable found relative to current directory"
    );
}

#[test]
fn the_last_value_of_a_variable_wins_and_home_is_set() {
    let given = ["A=1", "B=2", "A=3", "AB=4", "HOME=/x"];
    let given = given.map(str::to_owned).to_vec();
    let set = environment(given, 0).unwrap();
    assert_eq!(set, ["A=3", "B=2", "AB=4", "HOME=/x"]);
    let set = environment(vec!["HOME=".to_owned()], u32::MAX - 7).unwrap();
    assert_eq!(set, ["HOME=/"]);
}

#[test]
fn what_execve_cannot_take_is_named() {
    for (entry, problem) in [("A", "has no '='"), ("=A", "has no name")] {
        let error = environment(vec![entry.to_owned()], 0).unwrap_err();
        let message = format!("environment variable {entry:?} {problem}");
        assert_eq!(error.to_string(), message);
    }
    let error = c_string("argument", "b\0c".to_owned()).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"argument "b\0c" holds a NUL character"#
    );
}

#[test]
fn home_comes_from_passwd() {
    let passwd =
        "root:x:0:0:root:/root:/bin/sh\n# comment\n\nu:x:1000:1000::/home/u:\nv:x:5:5:::\n";
    let home = |uid| home_in(&mut Cursor::new(passwd), uid);
    assert_eq!(home(0).as_deref(), Some("/root"));
    assert_eq!(home(1000).as_deref(), Some("/home/u"));
    assert_eq!(home(5), None);
    assert_eq!(home(7), None);
}

proptest! {
    #[test]
    fn any_passwd_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..20_000), uid: u32) {
        let _ = home_in(&mut Cursor::new(bytes), uid);
    }

    #[test]
    fn every_name_has_one_value(
        entries in prop::collection::vec("[ab]{1,2}=[a=]{0,2}", 0..12)
    ) {
        let set = environment(entries.clone(), 0).unwrap();
        for entry in &entries {
            let name = entry.split('=').next().unwrap();
            let last = entries.iter().rev().find(|e| e.split('=').next() == Some(name)).unwrap();
            prop_assert_eq!(variable(&set, name), last.split_once('=').map(|(_, value)| value));
            prop_assert_eq!(set.iter().filter(|e| e.split('=').next() == Some(name)).count(), 1);
        }
    }
}
