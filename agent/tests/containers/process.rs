//! What a process is allowed and given.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use lazaret_protocol::agent::ExitStatus;
use lazaret_protocol::container::{Capabilities, Rlimit};

use crate::harness::{Agent, DEFAULT_CAPABILITIES, container, process, shell};

#[test]
fn user_groups_and_umask() {
    let agent = Agent::start();
    let script = "id -u; id -g; id -G; umask; touch /tmp/f; stat -c %u:%g:%a /tmp/f; echo $HOME";
    let mut wanted = container("c", shell(script));
    fs::set_permissions(
        agent.rootfs("c").join("tmp"),
        fs::Permissions::from_mode(0o1777),
    )
    .unwrap();
    wanted.process.user.uid = 1000;
    wanted.process.user.gid = 1001;
    wanted.process.user.additional_gids = vec![5, 77];
    wanted.process.user.umask = Some(0o027);
    assert_eq!(
        agent.run(&wanted).output(),
        "1000\n1001\n1001 5 77\n0027\n1000:1001:640\n/home/user"
    );
    let finished = agent.run(&container("d", shell("umask; id -G; echo $HOME")));
    assert_eq!(finished.output(), "0022\n0\n/root");
}

#[test]
fn the_environment_is_what_was_given() {
    let agent = Agent::start();
    let mut wanted = container("c", process(&["env"]));
    wanted.process.env = ["PATH=/bin", "A=1", "B=x=y", "A=2", "HOME=/h"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(
        agent.run(&wanted).output(),
        "PATH=/bin\nA=2\nB=x=y\nHOME=/h"
    );
    for bad in ["A", "=x", "A=\0"] {
        wanted.process.env = vec!["PATH=/bin".to_owned(), bad.to_owned()];
        let failure = agent.create(&wanted).unwrap_err();
        assert!(
            failure.message.starts_with("environment variable"),
            "{failure}"
        );
    }
}

#[test]
fn the_working_directory_is_made_or_refused() {
    let agent = Agent::start();
    let mut wanted = container("c", process(&["pwd"]));
    wanted.process.cwd = "/made/for/it".to_owned();
    assert_eq!(agent.run(&wanted).output(), "/made/for/it");
    // Entered by its owner where root's rights do not count.
    let rootfs = agent.rootfs("d");
    let home = rootfs.join("home/user");
    chown(&home, Some(1000), Some(1000)).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let mut wanted = container("d", process(&["pwd"]));
    wanted.process.cwd = "/home/user".to_owned();
    wanted.process.user.uid = 1000;
    assert_eq!(agent.run(&wanted).output(), "/home/user");
    wanted.process.cwd = "/etc/passwd".to_owned();
    let failure = agent.create(&wanted).unwrap_err();
    assert_eq!(
        failure.message,
        "chdir to cwd (\"/etc/passwd\") set in config.json failed: not a directory"
    );
}

fn capability_lines(capabilities: Capabilities, uid: u32) -> Vec<String> {
    let agent = Agent::start();
    let mut wanted = container("c", shell("grep ^Cap /proc/self/status"));
    wanted.process.capabilities = capabilities;
    wanted.process.user.uid = uid;
    let finished = agent.run(&wanted);
    let lines = finished.output().lines();
    lines
        .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
        .collect()
}

#[test]
fn capabilities_of_root_and_others() {
    let hex = |bits: u64| format!("{bits:016x}");
    let some = 1 << 10 | 1 << 13;
    // Order of /proc: inheritable, permitted, effective, bounding, ambient.
    let default = Capabilities {
        bounding: DEFAULT_CAPABILITIES,
        effective: DEFAULT_CAPABILITIES,
        permitted: DEFAULT_CAPABILITIES,
        inheritable: 0,
        ambient: 0,
    };
    let of_root = capability_lines(default, 0);
    let d = hex(DEFAULT_CAPABILITIES);
    let zero = hex(0);
    assert_eq!(of_root, [&zero, &d, &d, &d, &zero].map(String::clone));
    let of_user = capability_lines(default, 1000);
    assert_eq!(of_user, [&zero, &zero, &zero, &d, &zero].map(String::clone));
    let ambient = Capabilities {
        bounding: DEFAULT_CAPABILITIES,
        effective: some,
        permitted: some,
        inheritable: some,
        ambient: some,
    };
    let of_user = capability_lines(ambient, 1000);
    let s = hex(some);
    assert_eq!(of_user, [&s, &s, &s, &d, &s].map(String::clone));
    let none = capability_lines(Capabilities::default(), 0);
    assert_eq!(none, [hex(0), hex(0), hex(0), hex(0), hex(0)]);
    // A capability this machine does not have, or nobody knows, is left out.
    let all = Capabilities {
        bounding: u64::MAX,
        effective: u64::MAX,
        permitted: u64::MAX,
        inheritable: 0,
        ambient: 0,
    };
    let of_root = capability_lines(all, 0);
    assert_eq!(of_root[1], of_root[2]);
    assert_ne!(of_root[1], hex(0));
}

#[test]
fn no_new_privileges_and_limits_and_score() {
    let agent = Agent::start();
    let script = "grep NoNewPrivs /proc/self/status; grep 'open files' /proc/self/limits; \
                  cat /proc/self/oom_score_adj";
    let mut wanted = container("c", shell(script));
    wanted.process.oom_score_adj = Some(321);
    wanted.process.rlimits = vec![Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 100,
        hard: 200,
    }];
    let finished = agent.run(&wanted);
    let words: Vec<&str> = finished.output().split_whitespace().collect();
    assert_eq!(
        words,
        [
            "NoNewPrivs:",
            "1",
            "Max",
            "open",
            "files",
            "100",
            "200",
            "files",
            "321"
        ]
    );
    wanted.process.no_new_privileges = false;
    wanted.process.rlimits[0].soft = 4;
    let finished = agent.run(&wanted);
    assert!(finished.output().starts_with("NoNewPrivs:\t0"));
    // Soft above hard.
    wanted.process.rlimits[0].soft = 300;
    let failure = agent.create(&wanted).unwrap_err();
    assert_eq!(
        failure.message,
        "set RLIMIT_NOFILE to 300:200: invalid argument"
    );
    wanted.process.rlimits[0].resource = 99;
    let failure = agent.create(&wanted).unwrap_err();
    assert_eq!(failure.message, "set unknown to 300:200: invalid argument");
    agent.assert_nothing_left();
}

#[test]
fn a_program_gets_default_signals() {
    let agent = Agent::start();
    let grep = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
    let finished = agent.run(&container("c", process(&grep)));
    let words: Vec<&str> = finished.output().split_whitespace().collect();
    let zero = "0000000000000000";
    assert_eq!(words[..2], ["SigBlk:", zero]);
    // `env --default-signal` in the harness leaves the C library's two signals ignored.
    let ignored = u64::from_str_radix(words[3], 16).unwrap() & !(3 << 31);
    assert_eq!(ignored, 0);
}

#[test]
fn arguments_are_needed() {
    let agent = Agent::start();
    let failure = agent.create(&container("c", process(&[]))).unwrap_err();
    assert_eq!(failure.message, "args is empty");
    let finished = agent.run(&container("c", process(&["sh", "-c", "exit $1", "x", "9"])));
    assert_eq!(finished.status, ExitStatus::Exited(9));
}
