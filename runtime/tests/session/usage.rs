//! Command lines, logs and the verbs that need no container.

use crate::harness::Place;

#[test]
fn options_may_stand_on_either_side_of_the_id() {
    let place = Place::new();
    for arguments in [["run", "--keep", "c"], ["run", "c", "--keep"]] {
        place.ok(&arguments);
        place.ok(&["delete", "c", "--force"]);
    }
}

#[test]
fn wrong_command_lines_are_one_line() {
    let place = Place::new();
    for (arguments, start) in [
        (
            &["run"][..],
            "the following required arguments were not provided: <CONTAINER_ID>",
        ),
        (&["run", "--foo", "c"], "unexpected argument '--foo' found"),
        (&["state", "a", "b"], "unexpected argument 'b' found"),
        (
            &["--log-format", "xml", "list"],
            "invalid value 'xml' for '--log-format <FORMAT>': must be text or json",
        ),
    ] {
        let output = place.call(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(stderr.lines().count(), 1, "{stderr:?}");
        assert!(stderr.starts_with(start), "{stderr:?}");
    }
}

#[test]
fn what_is_not_supported_says_so() {
    let place = Place::new();
    for (verb, option) in [("checkpoint", "--leave-running"), ("restore", "--detach")] {
        assert_eq!(
            place.fails(1, &[verb, "--image-path", "/images", option, "thing"]),
            format!(
                "{verb}: not supported yet: a later version of lazaret will save and restore \
                 whole VMs"
            )
        );
    }
    for (option, message) in [
        (
            "--rootless=true",
            "--rootless: not supported: lazaret needs root, for the mounts it gives its virtual \
             machines",
        ),
        (
            "--rootless=maybe",
            "--rootless: must be true, false or auto",
        ),
    ] {
        assert_eq!(place.fails(1, &[option, "list"]), message);
    }
}

#[test]
fn a_descriptor_that_cannot_come_along_is_named() {
    let place = Place::new();
    let call = |redirection: &str| {
        let mut shell = std::process::Command::new("bash");
        let command = place.command(&["create", "--preserve-fds", "2", "c"]);
        shell
            .arg("-c")
            .arg(format!("exec \"$0\" \"$@\" {redirection}"))
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(command.get_current_dir().unwrap());
        let output = shell.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        crate::harness::message(&String::from_utf8(output.stderr).unwrap())
    };
    let kernels = "it belongs to this host's kernel";
    let two_ways = "only what is opened either for reading or for writing is a stream of bytes";
    let taken = "what one of them reads, the other does not";
    for (redirections, number, what, why) in [
        ("3</", 3, "a directory", kernels),
        ("3</dev/zero", 3, "a character device", kernels),
        ("3</dev/null 4</dev/full", 4, "a character device", kernels),
        ("3</etc/passwd 4</", 4, "a directory", kernels),
        (
            "3<>config.json",
            3,
            "a file opened for reading and writing",
            two_ways,
        ),
        ("3< <(true) 4<&3", 4, "a duplicate of descriptor 3", taken),
        ("</etc/passwd 3<&0", 3, "a duplicate of descriptor 0", taken),
        ("3>&1 4</", 4, "a directory", kernels),
    ] {
        assert_eq!(
            call(redirections),
            format!(
                "--preserve-fds: descriptor {number}, {what}, cannot be passed into a VM: {why}"
            )
        );
    }
    let namespace = call("3</proc/self/ns/net");
    assert!(
        namespace.starts_with("--preserve-fds: descriptor 3, net:["),
        "{namespace}"
    );
    assert_eq!(
        call("3<&-"),
        "unable to stat preserved-fd 0 (of 2): stat /proc/self/fd/3: no such file or directory"
    );
}

#[test]
fn options_that_ask_for_nothing_are_taken() {
    let place = Place::new();
    for option in [
        "--rootless=false",
        "--rootless=auto",
        "--rootless=0",
        "--criu=/sbin/criu",
    ] {
        place.ok(&[option, "list"]);
    }
}

#[test]
fn a_user_who_is_not_root_is_told_so() {
    use std::os::unix::process::CommandExt as _;

    let place = Place::new();
    let mut command = place.command(&["run", "c"]);
    let output = command.uid(65_534).current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        crate::harness::message(&String::from_utf8(output.stderr).unwrap()),
        "rootless containers are not supported: lazaret needs root, for the mounts it gives its \
         virtual machines"
    );
}

#[test]
fn a_verb_that_is_none_has_no_help() {
    let place = Place::new();
    for arguments in [&["frobnicate"][..], &["frobnicate", "-h"]] {
        let output = place.call(arguments);
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stderr, b"No help topic for 'frobnicate'\n");
    }
}

#[test]
fn features_are_json() {
    let place = Place::new();
    let features: serde_json::Value = serde_json::from_str(&place.ok(&["features"])).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    let options = features["mountOptions"].as_array().unwrap();
    assert!(options.contains(&"rro".into()), "{options:?}");
    serde_json::from_value::<oci_spec::runtime::Features>(features).unwrap();
}

#[test]
fn a_log_file_gets_the_line_and_standard_error_the_message() {
    let place = Place::new();
    let log = place.path().join("log");
    let log = log.to_str().unwrap();
    let output = place.call(&["--log", log, "--log-format", "json", "state", "c"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stderr, b"container does not exist\n");
    let line: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container does not exist");
    assert!(line["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn an_empty_root_lists_nothing() {
    let place = Place::new();
    assert_eq!(
        place.ok(&["list"]),
        "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    );
    assert_eq!(place.ok(&["list", "-f", "json"]), "null\n");
    assert_eq!(place.ok(&["list", "-q"]), "");
    assert_eq!(
        place.fails(1, &["list", "-f", "xml"]),
        "--format: must be table or json"
    );
}

#[test]
fn spec_is_written_once() {
    let place = Place::new();
    let directory = place.path().join("new");
    std::fs::create_dir(&directory).unwrap();
    let directory = directory.to_str().unwrap();
    place.ok(&["spec", "--bundle", directory]);
    let text = std::fs::read_to_string(format!("{directory}/config.json")).unwrap();
    serde_json::from_str::<oci_spec::runtime::Spec>(&text).unwrap();
    assert_eq!(
        place.fails(1, &["spec", "-b", directory]),
        "File config.json exists. Remove it first"
    );
}

#[test]
fn ids_are_checked() {
    let place = Place::new();
    assert_eq!(place.fails(1, &["run", ""]), "container id cannot be empty");
    for id in ["a/b", "..", "a b", "ü"] {
        let message = place.fails(1, &["run", id]);
        assert_eq!(message, format!("invalid container ID format: {id:?}"));
    }
}

#[test]
fn versions() {
    let place = Place::new();
    for arguments in [&["version"][..], &["--version"], &["-v"]] {
        assert!(place.ok(arguments).starts_with("lazaret version "));
    }
}

#[test]
fn check_names_what_is_missing() {
    let place = Place::new();
    let output = place.call(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    let kernel = text
        .lines()
        .find(|line| line.contains("guest kernel"))
        .unwrap();
    assert!(kernel.starts_with("MISSING"), "{kernel}");
    assert!(kernel.contains("cargo xtask kernel"), "{kernel}");
    let json: serde_json::Value = serde_json::from_str(
        &String::from_utf8(place.call(&["check", "-f", "json"]).stdout).unwrap(),
    )
    .unwrap();
    assert_eq!(json.as_array().unwrap().len(), text.lines().count());
}
