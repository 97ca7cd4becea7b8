//! File systems of a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use lazaret_protocol::container::{DeviceKind, DeviceNode, MountSource, Submount};

use crate::harness::{Agent, container, filesystem, in_user_namespace, mount, shell};

fn shared(path: &str) -> MountSource {
    MountSource::Share(path.to_owned())
}

/// Mount options of `path` inside, as `/proc/mounts` has them.
fn options_of(path: &str) -> String {
    format!("awk '$2 == \"{path}\" {{ o = $4 }} END {{ print o }}' /proc/mounts")
}

#[test]
fn file_systems_have_their_flags_and_data() {
    let agent = Agent::start();
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    let script = format!("{}; {}", options_of("/a/b"), options_of("/dev/pts"));
    let mut wanted = container("c", shell(&script));
    wanted
        .mounts
        .push(filesystem("tmpfs", "/a/b", flags, "size=4096k,mode=700"));
    let finished = agent.run(&wanted);
    let mut lines = finished.output().lines();
    let options = lines.next().unwrap();
    for option in ["ro", "nosuid", "nodev", "noexec", "size=4096k", "mode=700"] {
        assert!(options.split(',').any(|found| found == option), "{options}");
    }
    assert!(lines.next().unwrap().contains("ptmxmode=666"));
}

#[test]
fn directories_and_files_are_bound() {
    let agent = Agent::start();
    let mounts = agent.share().join("c/mounts");
    fs::create_dir_all(mounts.join("0")).unwrap();
    fs::write(mounts.join("0/file"), "in a directory").unwrap();
    fs::write(mounts.join("1"), "a file").unwrap();
    let script = format!(
        "cat /data/file /etc/new/file; echo; touch /data/made; touch /etc/new/file; \
         {}; {}",
        options_of("/data"),
        options_of("/etc/new/file")
    );
    let mut wanted = container(
        "c",
        shell(&format!("{script}; touch /etc/new/file || exit 0")),
    );
    wanted.process.no_new_privileges = false;
    let bind = libc::MS_BIND | libc::MS_REC;
    wanted.mounts.push(mount(
        shared("c/mounts/0"),
        "/data",
        bind | libc::MS_NOEXEC,
        "",
    ));
    let read_only = bind | libc::MS_RDONLY | libc::MS_NOSUID;
    wanted
        .mounts
        .push(mount(shared("c/mounts/1"), "/etc/new/file", read_only, ""));
    let finished = agent.run(&wanted);
    let mut lines = finished.output.lines();
    assert_eq!(lines.next(), Some("in a directorya file"));
    let options = lines.next().unwrap();
    assert!(
        options.starts_with("rw,") && options.contains("noexec"),
        "{options}"
    );
    let options = lines.next().unwrap();
    assert!(
        options.starts_with("ro,") && options.contains("nosuid"),
        "{options}"
    );
    assert!(finished.errors.contains("Read-only file system"));
    assert!(mounts.join("0/made").exists());
}

#[test]
fn recursive_attributes_reach_below() {
    let agent = Agent::start();
    let mut wanted = container(
        "c",
        shell("touch /proc/sys/x /p/self/comm; cat /p/mounts | wc -l"),
    );
    // A recursive bind of a tree with mounts in it.
    let mut bound = mount(
        MountSource::Guest("/proc".to_owned()),
        "/p",
        libc::MS_BIND | libc::MS_REC,
        "",
    );
    bound.recursive_set = libc::MOUNT_ATTR_RDONLY;
    wanted.mounts.push(bound);
    wanted.readonly_paths.clear();
    let finished = agent.run(&wanted);
    assert!(finished.errors.contains("/p/self/comm"), "{finished:?}");
}

#[test]
fn mounts_below_a_bind_have_flags_of_their_own() {
    let agent = Agent::start();
    let source = agent.share().join("c/mounts/0");
    for name in ["mount", "directory", "plain"] {
        fs::create_dir_all(source.join(name)).unwrap();
    }
    fs::write(source.join("file"), "").unwrap();
    agent.mount_tmpfs(&source.join("mount"));
    let script = format!(
        "for f in /data /data/plain /data/mount /data/directory; do \
         touch $f/x 2> /dev/null && echo $f; done; echo x > /data/file && echo file; {}; {}; {}",
        options_of("/data"),
        options_of("/data/mount"),
        options_of("/data/directory")
    );
    let mut wanted = container("c", shell(&script));
    let flags =
        libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODIRATIME;
    let mut bound = mount(shared("c/mounts/0"), "/data", flags, "");
    let below = [
        ("directory", libc::MS_NOATIME),
        ("file", 0),
        ("gone", 0),
        ("mount", libc::MS_NOEXEC),
    ];
    bound.below = below
        .map(|(path, flags)| Submount {
            path: path.to_owned(),
            flags,
        })
        .to_vec();
    wanted.mounts.push(bound);
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output.lines().collect();
    assert_eq!(
        lines[..3],
        ["/data/mount", "/data/directory", "file"],
        "{finished:?}"
    );
    let words = [
        "ro",
        "rw",
        "nosuid",
        "noexec",
        "noatime",
        "nodiratime",
        "relatime",
    ];
    let shown: Vec<Vec<&str>> = lines[3..]
        .iter()
        .map(|line| {
            line.split(',')
                .filter(|word| words.contains(word))
                .collect()
        })
        .collect();
    assert_eq!(
        shown,
        [
            vec!["ro", "nosuid", "nodiratime", "relatime"],
            vec!["rw", "noexec", "relatime"],
            vec!["rw", "noatime"],
        ],
        "{finished:?}"
    );
}

/// As above, where the container's rights end at its user namespace.
#[test]
fn mounts_below_a_bind_have_flags_of_their_own_in_a_user_namespace() {
    let agent = Agent::start();
    let source = agent.share().join("c/mounts/0");
    for name in ["mount", "directory"] {
        fs::create_dir_all(source.join(name)).unwrap();
    }
    agent.mount_tmpfs(&source.join("mount"));
    let script = ["/data", "/data/mount", "/data/directory"].map(options_of);
    let mut wanted = container("c", shell(&script.join("; ")));
    in_user_namespace(&mut wanted);
    let rootfs = agent.rootfs("c");
    for name in ["", "tmp", "dev", "proc", "data"] {
        fs::create_dir_all(rootfs.join(name)).unwrap();
        std::os::unix::fs::chown(rootfs.join(name), Some(100_000), Some(100_000)).unwrap();
    }
    let flags = libc::MS_BIND | libc::MS_REC | libc::MS_RDONLY | libc::MS_NOSUID;
    let mut bound = mount(shared("c/mounts/0"), "/data", flags, "");
    bound.below = ["directory", "mount"]
        .map(|path| Submount {
            path: path.to_owned(),
            flags: libc::MS_NOEXEC,
        })
        .to_vec();
    wanted.mounts.push(bound);
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output().lines().collect();
    assert!(lines[0].starts_with("ro,nosuid,"), "{lines:?}");
    for line in &lines[1..] {
        assert!(line.starts_with("rw,noexec,"), "{lines:?}");
    }
    assert_eq!(lines.len(), 3);
}

#[test]
fn destinations_stay_in_the_root() {
    let agent = Agent::start();
    let rootfs = agent.rootfs("c");
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), rootfs.join("absolute")).unwrap();
    symlink("../../../../../../../../tmp", rootfs.join("relative")).unwrap();
    symlink("../made/by/link", rootfs.join("etc/dangling")).unwrap();
    fs::create_dir_all(agent.share().join("c/mounts")).unwrap();
    fs::write(agent.share().join("c/mounts/0"), "text").unwrap();
    let mut wanted = container("c", shell("ls -d /tmp/a /relative/a; cat /made/by/link"));
    for destination in ["/absolute/a", "/relative/a", "/../../x"] {
        wanted.mounts.push(filesystem("tmpfs", destination, 0, ""));
    }
    wanted.mounts.push(mount(
        shared("c/mounts/0"),
        "/etc/dangling",
        libc::MS_BIND,
        "",
    ));
    let finished = agent.run(&wanted);
    assert_eq!(finished.output(), "/relative/a\n/tmp/a\ntext");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(rootfs.join("x").is_dir());
}

#[test]
fn proc_and_sysfs_are_not_mounted_behind_links() {
    let agent = Agent::start();
    let rootfs = agent.rootfs("c");
    fs::create_dir(rootfs.join("elsewhere")).unwrap();
    symlink("elsewhere", rootfs.join("link")).unwrap();
    symlink("missing", rootfs.join("dangling")).unwrap();
    fs::write(rootfs.join("file"), "").unwrap();
    for fs_type in ["proc", "sysfs"] {
        for destination in ["/link", "/link/", "/link/.//", "/dangling", "/file"] {
            let mut wanted = container("c", shell("exit"));
            wanted.mounts.push(filesystem(fs_type, destination, 0, ""));
            let failure = agent.create(&wanted).unwrap_err();
            assert_eq!(
                failure.message,
                format!(
                    "mount {fs_type} on {destination} (no options): filesystem \"{fs_type}\" must \
                     be mounted on ordinary directory"
                )
            );
        }
    }
    assert!(!rootfs.join("missing").exists());
    // A link on the way is another matter.
    let mut wanted = container(
        "c",
        shell("test -e /elsewhere/below/self/status && echo seen"),
    );
    wanted.mounts.push(filesystem("proc", "/link/below", 0, ""));
    assert_eq!(agent.run(&wanted).output(), "seen");
}

#[test]
fn a_tmpfs_can_start_with_what_it_covers() {
    let agent = Agent::start();
    let rootfs = agent.rootfs("c");
    fs::create_dir_all(rootfs.join("var/deep/er")).unwrap();
    fs::write(rootfs.join("var/deep/er/file"), "content").unwrap();
    std::os::unix::fs::chown(rootfs.join("var/deep/er/file"), Some(7), Some(8)).unwrap();
    symlink("deep/er/file", rootfs.join("var/link")).unwrap();
    let script = format!(
        "cat /var/link; stat -c ' %u:%g:%a' /var/deep/er/file; touch /var/x || {}",
        options_of("/var")
    );
    let mut wanted = container("c", shell(&script));
    let mut tmpfs = filesystem("tmpfs", "/var", libc::MS_RDONLY, "mode=755");
    tmpfs.copy_up = true;
    wanted.mounts.push(tmpfs);
    let finished = agent.run(&wanted);
    let mut lines = finished.output.lines();
    assert_eq!(lines.next(), Some("content 7:8:644"));
    assert!(lines.next().unwrap().starts_with("ro,"));
}

#[test]
fn a_read_only_dev_is_complete() {
    let agent = Agent::start();
    let script = format!(
        "{}; {}; stat -c %t:%T /dev/null; readlink /dev/fd; test -d /dev/pts && echo pts; \
         test -d /ro/below && echo below; touch /dev/x; touch /ro/x; touch /ro/below/x && echo fine",
        options_of("/dev"),
        options_of("/ro")
    );
    let mut wanted = container("c", shell(&script));
    for mount in &mut wanted.mounts {
        if mount.destination == "/dev" {
            mount.flags |= libc::MS_RDONLY;
        }
    }
    assert!(
        wanted
            .mounts
            .iter()
            .any(|mount| mount.destination == "/dev/pts")
    );
    let read_only = libc::MS_RDONLY | libc::MS_NOEXEC;
    wanted
        .mounts
        .push(filesystem("tmpfs", "/ro", read_only, ""));
    wanted.mounts.push(filesystem("tmpfs", "/ro/below", 0, ""));
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output.lines().collect();
    assert!(lines[0].starts_with("ro,"), "{finished:?}");
    assert!(lines[1].starts_with("ro,noexec"), "{finished:?}");
    assert_eq!(lines[2..], ["1:3", "/proc/self/fd", "pts", "below", "fine"]);
    for path in ["/dev/x", "/ro/x"] {
        let refused = format!("{path}: Read-only file system");
        assert!(finished.errors.contains(&refused), "{finished:?}");
    }
}

#[test]
fn the_root_can_be_read_only() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("touch /x; touch /dev/x && echo fine"));
    wanted.root.readonly = true;
    let finished = agent.run(&wanted);
    assert_eq!(finished.output, "fine\n");
    assert!(finished.errors.contains("Read-only file system"));
    assert!(!agent.rootfs("c").join("x").exists());
}

#[test]
fn paths_are_masked_and_protected() {
    let agent = Agent::start();
    let rootfs = agent.rootfs("c");
    for name in ["secret", "other"] {
        fs::create_dir(rootfs.join(name)).unwrap();
        fs::write(rootfs.join(name).join("file"), "x").unwrap();
    }
    fs::write(rootfs.join("etc/key"), "x").unwrap();
    let script = "ls /secret /other | wc -w; wc -c < /etc/key; touch /secret/x 2>&1; \
                  (echo 1 > /proc/sys/kernel/domainname) 2>&1; touch /tmp/x 2>&1";
    let mut wanted = container("c", shell(script));
    wanted.masked_paths = ["/secret", "/other", "/etc/key", "/none", "/etc/key/below"]
        .map(str::to_owned)
        .to_vec();
    wanted.readonly_paths = ["/proc/sys", "/tmp", "/none"].map(str::to_owned).to_vec();
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output.lines().collect();
    // The names of the two directories, as `ls` prints them.
    assert_eq!(lines[..2], ["2", "0"], "{finished:?}");
    assert!(lines[2].contains("Read-only file system"));
    assert!(lines[3].contains("Read-only file system"));
    assert!(lines.last().unwrap().contains("Read-only file system"));
}

#[test]
fn a_failing_mount_is_named_and_nothing_is_left() {
    let agent = Agent::start();
    fs::create_dir_all(agent.share().join("c/mounts/dir")).unwrap();
    let bad = [
        (
            filesystem("tmpfs", "/x", libc::MS_NOSUID, "size=banana"),
            "mount tmpfs on /x (nosuid,size=banana): mount: invalid argument",
        ),
        (
            filesystem("nofs", "/x", 0, ""),
            "mount nofs on /x (no options): mount: no such device",
        ),
        (
            mount(shared("c/mounts/7"), "/x", libc::MS_BIND, ""),
            "mount c/mounts/7 on /x (bind): source c/mounts/7: no such file or directory",
        ),
        (
            mount(shared("../../etc"), "/x", libc::MS_BIND, ""),
            "mount ../../etc on /x (bind): source ../../etc: invalid cross-device link",
        ),
        (
            mount(
                MountSource::Guest("/etc".to_owned()),
                "/x",
                libc::MS_BIND,
                "",
            ),
            "mount /etc on /x (bind): source /etc is not below /proc, /sys or /dev",
        ),
        (
            mount(shared("c/mounts/dir"), "/etc/passwd", libc::MS_BIND, ""),
            "mount c/mounts/dir on /etc/passwd (bind): attach the tree: not a directory",
        ),
        (
            mount(shared("c/mounts/dir"), "/etc/passwd/x", libc::MS_BIND, ""),
            "mount c/mounts/dir on /etc/passwd/x (bind): /etc/passwd/x in the container's root: \
             not a directory",
        ),
    ];
    for (mount, message) in bad {
        let mut wanted = container("c", shell("exit"));
        wanted.mounts.push(mount);
        let failure = agent.create(&wanted).unwrap_err();
        assert_eq!(failure.message, message);
        agent.assert_nothing_left();
    }
    let mut wanted = container("c", shell("exit"));
    wanted.root.share_path = "nothing".to_owned();
    let failure = agent.create(&wanted).unwrap_err();
    assert_eq!(failure.message, "source nothing: no such file or directory");
}

#[test]
fn dev_has_the_default_devices_and_those_asked_for() {
    let agent = Agent::start();
    let script = "cd /dev; for d in null zero full random urandom tty; do \
                  stat -c '%n %F %a %t:%T' $d; done; for l in fd stdin stdout stderr ptmx; do readlink $l; done; \
                  stat -c '%F %a %u:%g %t:%T' sub/mine pipe";
    let mut wanted = container("c", shell(script));
    let device = DeviceNode {
        path: "/dev/sub/mine".to_owned(),
        kind: DeviceKind::Character,
        major: 10,
        minor: 200,
        mode: 0o640,
        uid: 5,
        gid: 6,
    };
    let fifo = DeviceNode {
        path: "/dev/pipe".to_owned(),
        kind: DeviceKind::Fifo,
        mode: 0o602,
        uid: 0,
        gid: 0,
        ..device.clone()
    };
    wanted.devices = vec![device, fifo];
    let finished = agent.run(&wanted);
    assert_eq!(
        finished.output(),
        "null character special file 666 1:3\n\
         zero character special file 666 1:5\n\
         full character special file 666 1:7\n\
         random character special file 666 1:8\n\
         urandom character special file 666 1:9\n\
         tty character special file 666 5:0\n\
         /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n\
         character special file 640 5:6 a:c8\n\
         fifo 602 0:0 0:0"
    );
}

#[test]
fn devices_of_the_guest_are_bound_and_a_bound_dev_is_left_alone() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("stat -c %t:%T /tmp/null; ls /dev | wc -l"));
    let null = MountSource::Guest("/dev/null".to_owned());
    wanted
        .mounts
        .push(mount(null, "/tmp/null", libc::MS_BIND, ""));
    wanted
        .mounts
        .retain(|mount| !mount.destination.starts_with("/dev"));
    let finished = agent.run(&wanted);
    // Six nodes and five links, in the root file system itself.
    assert_eq!(finished.output(), "1:3\n11");
    assert_eq!(
        fs::metadata(agent.rootfs("c").join("dev/null"))
            .unwrap()
            .rdev(),
        0x103
    );

    let mut wanted = container("d", shell("ls /dev | wc -l"));
    fs::create_dir_all(agent.share().join("d/mounts/0")).unwrap();
    wanted
        .mounts
        .retain(|mount| !mount.destination.starts_with("/dev"));
    wanted
        .mounts
        .push(mount(shared("d/mounts/0"), "/dev/", libc::MS_BIND, ""));
    assert_eq!(agent.run(&wanted).output(), "0");
}

#[test]
fn the_cgroup_is_mounted_at_its_own_root() {
    let agent = Agent::start();
    // Two processes: what starts at the same time in a pipeline may not be there yet.
    let script = "grep ^0 /proc/self/cgroup; wc -l < /cg/cgroup.procs; true";
    let mut wanted = container("c", shell(script));
    wanted
        .mounts
        .push(filesystem("cgroup", "/cg", libc::MS_RDONLY, ""));
    assert_eq!(agent.run(&wanted).output(), "0::/\n2");
    // Without a namespace of its own it sees its own directory all the same.
    wanted.id = "d".to_owned();
    wanted.root.share_path = "d/rootfs".to_owned();
    let cgroup = lazaret_protocol::container::NamespaceKind::Cgroup;
    wanted
        .namespaces
        .retain(|namespace| namespace.kind != cgroup);
    let finished = agent.run(&wanted);
    let output = finished.output();
    assert!(output.contains("/d\n") && output.ends_with('2'), "{output}");
}

#[test]
fn propagation_is_set() {
    let agent = Agent::start();
    let script = "awk '$5 == \"/\" || $5 == \"/a\" || $5 == \"/b\" { print $5, $7 }' \
                  /proc/self/mountinfo";
    let mut wanted = container("c", shell(script));
    wanted.root.propagation = libc::MS_SHARED;
    for (path, propagation) in [("/a", libc::MS_SHARED), ("/b", libc::MS_UNBINDABLE)] {
        let mut mount = filesystem("tmpfs", path, 0, "");
        mount.propagation = vec![propagation];
        wanted.mounts.push(mount);
    }
    let finished = agent.run(&wanted);
    let lines: Vec<&str> = finished.output().lines().collect();
    assert!(lines[0].starts_with("/ shared:"), "{lines:?}");
    assert!(lines[1].starts_with("/a shared:"));
    assert_eq!(lines[2], "/b unbindable");
}

#[test]
fn nothing_of_the_guest_is_visible() {
    let agent = Agent::start();
    let finished = agent.run(&container("c", shell("cat /proc/mounts | wc -l")));
    // The root, five mounts, two masks at most and /proc/sys.
    let mounts: u32 = finished.output().parse().unwrap();
    assert!(mounts <= 9, "{mounts}");
}
