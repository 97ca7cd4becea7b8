//! User namespaces that are joined.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};

use lazaret_protocol::agent::{ExitStatus, StdStream};
use lazaret_protocol::container::{CreateContainer, Namespace, NamespaceKind, TimeOffset};

use crate::harness::{
    Agent, all_capabilities, container, exec, filesystem, fuse, in_user_namespace, shell,
};

/// In the order of [`LINKS`].
const KINDS: [NamespaceKind; 7] = [
    NamespaceKind::User,
    NamespaceKind::Pid,
    NamespaceKind::Ipc,
    NamespaceKind::Uts,
    NamespaceKind::Cgroup,
    NamespaceKind::Network,
    NamespaceKind::Mount,
];

/// Shows the namespaces of a container.
const LINKS: &str = "for n in user pid ipc uts cgroup net mnt; do readlink /proc/self/ns/$n; done";

/// Makes a root file system belong to the root user of the user namespace.
fn give_root(agent: &Agent, id: &str) {
    let rootfs = agent.rootfs(id);
    for name in ["", "tmp", "dev", "proc"] {
        chown(rootfs.join(name), Some(100_000), Some(100_000)).unwrap();
    }
}

/// A container in a user namespace with a network of its own.
fn mapped(id: &str, script: &str) -> CreateContainer {
    let mut wanted = container(id, shell(script));
    in_user_namespace(&mut wanted);
    wanted.namespaces.push(Namespace {
        kind: NamespaceKind::Network,
        of: None,
    });
    wanted
}

/// A running container `a` in a user namespace.
fn first(agent: &Agent) {
    give_root(agent, "a");
    agent.create(&mapped("a", "sleep 1000")).unwrap();
    agent.start_container("a").unwrap();
}

/// Runs a container `b` in the user namespace of `a` and in those of its `kinds`; in new ones else.
fn second(agent: &Agent, kinds: &[NamespaceKind], script: &str) -> CreateContainer {
    let mut wanted = mapped("b", script);
    give_root(agent, "b");
    wanted.process.capabilities = all_capabilities();
    for namespace in &mut wanted.namespaces {
        if namespace.kind == NamespaceKind::User || kinds.contains(&namespace.kind) {
            namespace.of = Some("a".to_owned());
        }
    }
    if kinds.contains(&NamespaceKind::Uts) {
        wanted.hostname = String::new();
    }
    // Who has no rights over the network cannot mount it.
    wanted
        .mounts
        .push(filesystem("sysfs", "/sys", libc::MS_RDONLY, ""));
    wanted
}

fn namespaces_of(agent: &Agent, id: &str, name: &str) -> Vec<String> {
    let name = exec(id, name);
    agent.exec(&name, &shell(LINKS)).unwrap();
    let shown = agent.read_all(&name, StdStream::Stdout);
    shown.lines().map(str::to_owned).collect()
}

/// Whatever else is joined or new, everything works as in a user namespace of the container's own.
#[test]
fn other_namespaces_are_joined_with_it_or_new() {
    use NamespaceKind::{Cgroup, Ipc, Network, Pid, Uts};
    let agent = Agent::start();
    first(&agent);
    let of_first = namespaces_of(&agent, "a", "links");
    let script = "id -u; cat /proc/self/uid_map; stat -c %u /mine; echo x > /dev/null && \
                  stat -c '%t:%T' /dev/null /dev/fuse; stat -c %u:%g /dev/fuse /dev/mqueue; \
                  hostname renamed; hostname; touch /tmp/made; \
                  mount -t tmpfs none /tmp && echo mounted; cat /proc/1/comm";
    let joined_sets: [&[NamespaceKind]; 4] = [
        &[],
        &[Ipc, Uts, Network],
        &[Pid, Ipc, Uts, Cgroup, Network],
        &[Pid],
    ];
    for joined in joined_sets {
        let mut wanted = second(&agent, joined, &format!("{script}; {LINKS}"));
        wanted.devices.push(fuse());
        let rootfs = agent.rootfs("b");
        fs::write(rootfs.join("mine"), "").unwrap();
        chown(rootfs.join("mine"), Some(100_005), None).unwrap();
        let finished = agent.run(&wanted);
        let lines: Vec<&str> = finished.output().lines().collect();
        let (seen, links) = lines.split_at(10);
        let is_joined = |kind| kind == NamespaceKind::User || joined.contains(&kind);
        let first_process = if is_joined(Pid) { "sleep" } else { "sh" };
        assert_eq!(
            seen,
            [
                "0",
                "         0     100000      65536",
                "5",
                "1:3",
                "a:e5",
                "3:4",
                "0:0",
                "renamed",
                "mounted",
                first_process,
            ],
            "{joined:?}"
        );
        for ((kind, theirs), own) in KINDS.into_iter().zip(&of_first).zip(links) {
            assert_eq!(theirs == own, is_joined(kind), "{kind:?} with {joined:?}");
        }
        assert_eq!(
            fs::metadata(rootfs.join("tmp/made")).unwrap().uid(),
            100_000
        );
        fs::remove_file(rootfs.join("tmp/made")).unwrap();
    }
    agent.remove("a");
    agent.assert_nothing_left();
}

#[test]
fn it_outlives_the_container_it_was_made_for() {
    let agent = Agent::start();
    first(&agent);
    let of_first = namespaces_of(&agent, "a", "links");
    let wanted = second(&agent, &[NamespaceKind::Ipc], "sleep 1000");
    agent.create(&wanted).unwrap();
    agent.start_container("b").unwrap();
    agent.remove("a");
    let of_second = namespaces_of(&agent, "b", "links");
    assert_eq!(of_second[0], of_first[0]);
    assert_eq!(of_second[2], of_first[2]);
    let name = exec("b", "ids");
    let mut spec = shell("id -u; cat /proc/self/uid_map");
    spec.user.uid = 7;
    agent.exec(&name, &spec).unwrap();
    let output = agent.read_all(&name, StdStream::Stdout);
    let words: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(words, ["7", "0", "100000", "65536"]);

    // One joins who joined.
    let mut third = mapped("c", LINKS);
    give_root(&agent, "c");
    for namespace in &mut third.namespaces {
        if namespace.kind == NamespaceKind::User {
            namespace.of = Some("b".to_owned());
        }
    }
    let finished = agent.run(&third);
    assert_eq!(finished.output().lines().next(), Some(&*of_first[0]));
    agent.remove("b");
    // Nobody is in it any more.
    let failure = agent.create(&third).unwrap_err();
    assert_eq!(
        failure.message,
        "user namespace of container \"b\": container not running"
    );
    assert!(agent.cgroups().is_empty());
}

#[test]
fn its_cgroup_becomes_the_containers() {
    let agent = Agent::start();
    first(&agent);
    let wanted = second(&agent, &[], "sleep 1000");
    agent.create(&wanted).unwrap();
    let cgroups = agent.cgroups();
    let name = cgroups.iter().find(|name| name.ends_with('b')).unwrap();
    let cgroup = agent.cgroup_parent().join(name);
    for file in ["", "cgroup.procs"] {
        let owner = fs::metadata(cgroup.join(file)).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (100_000, 100_000), "{file}");
    }
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert_eq!(processes.lines().count(), 1);
    agent.remove("b");
    agent.remove("a");
}

#[test]
fn clocks_are_set_in_it() {
    let agent = Agent::start();
    first(&agent);
    let mut wanted = second(&agent, &[], "cat /proc/self/timens_offsets");
    wanted.namespaces.push(Namespace {
        kind: NamespaceKind::Time,
        of: None,
    });
    wanted.time_offsets = vec![TimeOffset {
        clock: libc::CLOCK_BOOTTIME,
        seconds: 77,
        nanoseconds: 5,
    }];
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output().lines().collect();
    let words: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(words, ["boottime", "77", "5"]);
    agent.remove("a");
}

/// A namespace of a container outside of it is entered first: there is no way from within.
#[test]
fn it_goes_with_namespaces_of_a_container_outside() {
    let agent = Agent::start();
    first(&agent);
    agent.create(&container("o", shell("sleep 1000"))).unwrap();
    agent.start_container("o").unwrap();
    let of_other = namespaces_of(&agent, "o", "links");
    let mut wanted = second(&agent, &[], LINKS);
    for namespace in &mut wanted.namespaces {
        if matches!(namespace.kind, NamespaceKind::Ipc | NamespaceKind::Uts) {
            namespace.of = Some("o".to_owned());
        }
    }
    wanted.hostname = String::new();
    // It has no rights over these.
    wanted
        .mounts
        .retain(|mount| mount.destination != "/dev/mqueue");
    let finished = agent.run(&wanted);
    let links: Vec<&str> = finished.output().lines().collect();
    assert_eq!(links[2..4], of_other[2..4]);
    agent.remove("o");
    agent.remove("a");
}

/// Nothing is left of it, so that it can be tried again.
#[test]
fn what_is_no_namespace_of_its_own_is_not_joined() {
    let agent = Agent::start();
    agent.create(&container("a", shell("sleep 1000"))).unwrap();
    agent.start_container("a").unwrap();
    let mut wanted = second(&agent, &[], "exit");
    // Nodes are made by the container's id, and in the tests all agents make them in one place.
    wanted.id = "with-device".to_owned();
    wanted.devices.push(fuse());
    for _ in 0..2 {
        let failure = agent.create(&wanted).unwrap_err();
        assert_eq!(failure.message, "join user namespace: invalid argument");
    }
    agent.remove("a");
    first(&agent);
    assert_eq!(agent.run(&wanted).status, ExitStatus::Exited(0));
    agent.remove("a");
    agent.assert_nothing_left();
}
