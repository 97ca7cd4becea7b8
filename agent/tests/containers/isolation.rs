//! Namespaces, device rules, kernel parameters.

use std::fs;

use lazaret_protocol::agent::{FailureKind, StdStream};
use lazaret_protocol::container::{DeviceKind, DeviceRule, Namespace, NamespaceKind};

use crate::harness::{Agent, all_capabilities, container, exec, in_user_namespace, init, shell};

fn links(kinds: &str) -> String {
    format!("for n in {kinds}; do readlink /proc/self/ns/$n; done")
}

#[test]
fn namespaces_are_new_or_the_guests_or_joined() {
    let agent = Agent::start();
    let all = links("pid ipc uts mnt cgroup net");
    let mut first = container("a", shell("sleep 1000"));
    first.namespaces.push(Namespace {
        kind: NamespaceKind::Network,
        of: None,
    });
    agent.create(&first).unwrap();
    agent.start_container("a").unwrap();
    let name = exec("a", "e");
    agent.exec(&name, &shell(&all)).unwrap();
    let of_first = agent.read_all(&name, StdStream::Stdout);

    let mut second = container("b", shell(&all));
    second.namespaces = [
        NamespaceKind::Pid,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Network,
    ]
    .map(|kind| Namespace {
        kind,
        of: Some("a".to_owned()),
    })
    .to_vec();
    second.namespaces.push(Namespace {
        kind: NamespaceKind::Mount,
        of: None,
    });
    second.hostname = String::new();
    let finished = agent.run(&second);
    let of_second: Vec<&str> = finished.output().lines().collect();
    let of_first: Vec<&str> = of_first.lines().collect();
    for at in [0, 1, 2, 5] {
        assert_eq!(of_second[at], of_first[at]);
    }
    for at in [3, 4] {
        assert_ne!(of_second[at], of_first[at]);
    }
    // The first container's processes did not end with the second's.
    assert!(agent.exec(&exec("a", "f"), &shell("exit")).is_ok());
    agent.remove("a");
}

#[test]
fn a_new_network_has_a_loopback_that_is_up() {
    let agent = Agent::start();
    let mut wanted = container(
        "c",
        shell("cat /sys/class/net/*/operstate; ls /sys/class/net"),
    );
    wanted.namespaces.push(Namespace {
        kind: NamespaceKind::Network,
        of: None,
    });
    wanted.mounts.push(crate::harness::filesystem(
        "sysfs",
        "/sys",
        libc::MS_RDONLY,
        "",
    ));
    // A loopback that is up is in state "unknown".
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output().lines().collect();
    assert!(
        lines.contains(&"lo") && lines.contains(&"unknown"),
        "{lines:?}"
    );
}

#[test]
fn a_user_namespace_maps_ids() {
    let agent = Agent::start();
    let script = "id -u; id -g; cat /proc/self/uid_map; stat -c %u /mine; echo x > /dev/null && \
                  stat -c '%t:%T' /dev/null; hostname; stat -c %u:%g /dev/mqueue; touch /tmp/made; \
                  mount -t tmpfs none /tmp && echo mounted";
    let mut wanted = container("c", shell(script));
    wanted.process.capabilities = all_capabilities();
    in_user_namespace(&mut wanted);
    wanted.masked_paths.push("/proc/keys".to_owned());
    let rootfs = agent.rootfs("c");
    fs::write(rootfs.join("mine"), "").unwrap();
    std::os::unix::fs::chown(rootfs.join("mine"), Some(100_005), None).unwrap();
    for name in ["", "tmp", "dev", "proc"] {
        std::os::unix::fs::chown(rootfs.join(name), Some(100_000), Some(100_000)).unwrap();
    }
    agent.create(&wanted).unwrap();
    agent.start_container("c").unwrap();
    let output = agent.read_all(&init("c"), StdStream::Stdout);
    let errors = agent.read_all(&init("c"), StdStream::Stderr);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "0", "0", "0", "100000", "65536", "5", "1:3", "inside", "0:0", "mounted"
        ],
        "{errors}"
    );
    agent.remove("c");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        fs::metadata(rootfs.join("tmp/made")).unwrap().uid(),
        100_000
    );

    wanted.process = shell("sleep 1000");
    agent.create(&wanted).unwrap();
    agent.start_container("c").unwrap();
    let name = exec("c", "e");
    let mut spec = shell("id -u; cat /proc/self/uid_map");
    spec.user.uid = 7;
    agent.exec(&name, &spec).unwrap();
    let output = agent.read_all(&name, StdStream::Stdout);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, ["7", "0", "100000", "65536"]);
    agent.remove("c");
}

#[test]
fn contradictions_are_refused() {
    let agent = Agent::start();
    let kind = |kind, of: Option<&str>| Namespace {
        kind,
        of: of.map(str::to_owned),
    };
    let user = kind(NamespaceKind::User, None);
    for (add, keep_mount, message) in [
        (
            vec![kind(NamespaceKind::Pid, None)],
            true,
            "pid namespace is listed twice",
        ),
        (
            vec![],
            false,
            "a container needs a mount namespace of its own",
        ),
        (
            vec![user],
            true,
            "a user namespace needs uid and gid mappings",
        ),
        (
            vec![kind(NamespaceKind::Mount, Some("b"))],
            false,
            "mount namespace of container \"b\" cannot be joined, only a new one can be made",
        ),
        (
            vec![kind(NamespaceKind::User, Some("b"))],
            true,
            "user namespace of container \"b\": container not running",
        ),
        (
            vec![kind(NamespaceKind::Network, Some("b"))],
            true,
            "network namespace of container \"b\": container not running",
        ),
    ] {
        let mut wanted = container("c", shell("exit"));
        if !keep_mount {
            wanted.namespaces.retain(|n| n.kind != NamespaceKind::Mount);
        }
        wanted.namespaces.extend(add);
        let failure = agent.create(&wanted).unwrap_err();
        assert_eq!(failure.message, message);
        assert_eq!(failure.kind, FailureKind::Invalid);
    }
    // One that is there, and has ended.
    let ended = agent
        .create(&container("b", shell("exit")))
        .and_then(|_| agent.start_container("b"));
    assert_eq!(ended, Ok(()));
    agent.wait(&init("b"));
    let mut wanted = container("c", shell("exit"));
    wanted.namespaces[2].of = Some("b".to_owned());
    let failure = agent.create(&wanted).unwrap_err();
    assert_eq!(
        failure.message,
        "ipc namespace of container \"b\": container not running"
    );
    agent.remove("b");
    agent.assert_nothing_left();
}

#[test]
fn device_rules_are_enforced() {
    let agent = Agent::start();
    let rule = |allow, kind, major, minor, access: &str| DeviceRule {
        allow,
        kind,
        major,
        minor,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    };
    let script = "head -c 1 /dev/zero | wc -c; echo > /dev/null && echo ok; \
                  echo > /dev/zero && echo written; mknod /tmp/loop b 7 0 && echo made";
    let character = Some(DeviceKind::Character);
    let mut wanted = container("c", shell(script));
    wanted.cgroup.device_rules = vec![
        rule(false, None, None, None, "rwm"),
        rule(true, character, Some(1), None, "rwm"),
        rule(true, character, Some(5), None, "rwm"),
        rule(false, character, Some(1), Some(5), "w"),
    ];
    let finished = agent.run(&wanted);
    assert_eq!(finished.output, "1\nok\n");
    assert!(finished.errors.contains("/dev/zero"));
    assert!(finished.errors.contains("/tmp/loop"));
}

#[test]
fn kernel_parameters_and_names_are_set() {
    let agent = Agent::start();
    let script = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/kernel/msgmax; \
                  cat /proc/sys/kernel/domainname; hostname";
    let mut wanted = container("c", shell(script));
    wanted.domainname = "example".to_owned();
    wanted.sysctl = [("kernel.shm_rmid_forced", "1"), ("kernel/msgmax", "4321")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    assert_eq!(agent.run(&wanted).output(), "1\n4321\nexample\ninside");
    for (name, message) in [
        (
            "kernel.nothing",
            "sysctl kernel.nothing = \"1\": no such file or directory",
        ),
        (
            "../x",
            "sysctl name \"../x\" is not made of letters, digits, '.', '/', '_' and '-'",
        ),
    ] {
        wanted.sysctl = vec![(name.to_owned(), "1".to_owned())];
        assert_eq!(agent.create(&wanted).unwrap_err().message, message);
    }
    assert!(agent.cgroups().is_empty());
}

#[test]
fn a_failing_cgroup_file_is_named_and_nothing_is_left() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("exit"));
    wanted.cgroup.files = vec![("cgroup.nothing".to_owned(), "1".to_owned())];
    let failure = agent.create(&wanted).unwrap_err();
    let path = agent.cgroup_parent().join("c/cgroup.nothing");
    assert_eq!(
        failure.message,
        format!(
            "write \"1\" to {}: no such file or directory",
            path.display()
        )
    );
    assert!(agent.cgroups().is_empty());
    wanted.cgroup.files = vec![("cgroup.max.depth".to_owned(), "3".to_owned())];
    agent.create(&wanted).unwrap();
    let depth = fs::read_to_string(agent.cgroup_parent().join("c/cgroup.max.depth")).unwrap();
    assert_eq!(depth, "3\n");
    agent.remove("c");
}
