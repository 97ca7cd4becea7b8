//! From create to remove: states, signals, waiting, and what is left behind.

use std::fs;
use std::os::unix::net::UnixStream;
use std::thread;

use lazaret_protocol::agent::{Answer, ExitStatus, FailureKind, Request, StdStream};
use lazaret_protocol::container::{NamespaceKind, Stdio};
use lazaret_protocol::frame;

use crate::harness::{Agent, container, exec, init, process, shell};

fn signal(id: &str, signal: i32, all: bool) -> Request {
    Request::Signal {
        process: init(id),
        signal,
        all,
    }
}

#[test]
fn a_container_runs_and_is_gone() {
    let agent = Agent::start();
    let finished = agent.run(&container(
        "c",
        shell("echo $$; hostname; echo oops >&2; exit 7"),
    ));
    assert_eq!(finished.output, "1\ninside\n");
    assert_eq!(finished.errors, "oops\n");
    assert_eq!(finished.status, ExitStatus::Exited(7));
    agent.assert_nothing_left();
}

#[test]
fn every_exit_code_arrives() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    for code in (0..=255).step_by(15) {
        let name = exec("c", &format!("e{code}"));
        let mut spec = shell(&format!("exit {code}"));
        spec.stdio = [Stdio::Null; 3];
        agent.exec(&name, &spec).unwrap();
        assert_eq!(agent.wait(&name), ExitStatus::Exited(code));
        // Forgotten with its first Wait.
        let failure = agent.fails(&Request::Wait { process: name });
        assert_eq!(failure.kind, FailureKind::NotFound);
    }
    agent.remove("c");
}

#[test]
fn death_by_a_signal_arrives() {
    let agent = Agent::start();
    for number in [1, 2, 3, 6, 9, 13, 15, 34, 64] {
        let mut wanted = container("c", process(&["sleep", "1000"]));
        // Without a pid namespace the init process has the default actions.
        wanted.namespaces.retain(|n| n.kind != NamespaceKind::Pid);
        agent.create(&wanted).unwrap();
        agent.start_container("c").unwrap();
        assert_eq!(agent.call(&signal("c", number, false)), Ok(Answer::Done));
        let status = agent.wait(&init("c"));
        assert_eq!(status, ExitStatus::Signaled(number as u8));
        // Known until it is removed.
        assert_eq!(agent.wait(&init("c")), status);
        let failure = agent.fails(&signal("c", number, false));
        assert_eq!(failure.kind, FailureKind::State);
        assert_eq!(failure.message, "container not running: c");
        agent.remove("c");
    }
    for number in [0, -1, 65] {
        agent.create(&container("c", shell("exit"))).unwrap();
        let failure = agent.fails(&signal("c", number, false));
        assert_eq!(failure.kind, FailureKind::Invalid);
        agent.remove("c");
    }
}

#[test]
fn the_program_waits_for_start() {
    let agent = Agent::start();
    agent
        .create(&container("c", shell("echo started; sleep 1000")))
        .unwrap();
    assert_eq!(agent.list("c", 0).len(), 1);
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    output.set_nonblocking(true).unwrap();
    let mut text = [0; 16];
    let error = std::io::Read::read(&mut output, &mut text).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    agent.start_container("c").unwrap();
    output.set_nonblocking(false).unwrap();
    std::io::Read::read_exact(&mut output, &mut text[..8]).unwrap();
    assert_eq!(&text[..8], b"started\n");
    let failure = agent.start_container("c").unwrap_err();
    assert_eq!(failure.kind, FailureKind::State);
    assert_eq!(
        failure.message,
        "cannot start an already running container: c"
    );
    agent.remove("c");
    agent.assert_nothing_left();
}

#[test]
fn a_created_container_is_killed_and_removed() {
    let agent = Agent::start();
    for number in [libc::SIGTERM, libc::SIGKILL] {
        agent.create(&container("c", shell("echo no"))).unwrap();
        agent.call(&signal("c", number, false)).unwrap();
        assert_eq!(agent.wait(&init("c")), ExitStatus::Signaled(9));
        let failure = agent.start_container("c").unwrap_err();
        assert_eq!(
            failure.message,
            "cannot start a container that has stopped: c"
        );
        agent.remove("c");
    }
    agent.create(&container("c", shell("echo no"))).unwrap();
    agent.remove("c");
    agent.assert_nothing_left();
}

#[test]
fn programs_that_cannot_run_are_told_at_create() {
    let agent = Agent::start();
    let rootfs = agent.rootfs("c");
    fs::write(rootfs.join("etc/text"), "x").unwrap();
    for (args, message, kind) in [
        (
            "foo",
            "exec: \"foo\": executable file not found in $PATH",
            FailureKind::NotFound,
        ),
        (
            "/foo",
            "exec: \"/foo\": stat /foo: no such file or directory",
            FailureKind::NotFound,
        ),
        (
            "/etc/text",
            "exec: \"/etc/text\": permission denied",
            FailureKind::System,
        ),
        (
            "/etc",
            "exec: \"/etc\": is a directory",
            FailureKind::System,
        ),
    ] {
        let failure = agent.create(&container("c", process(&[args]))).unwrap_err();
        assert_eq!((failure.message.as_str(), failure.kind), (message, kind));
        agent.assert_nothing_left();
    }
}

#[test]
fn a_failing_exec_is_told_at_start() {
    let agent = Agent::start();
    let rootfs = agent.rootfs("c");
    let script = rootfs.join("bin/garbage");
    fs::write(&script, "\x01\x02\x03\x04garbage").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&script, mode).unwrap();
    agent
        .create(&container("c", process(&["garbage"])))
        .unwrap();
    let failure = agent.start_container("c").unwrap_err();
    assert_eq!(failure.message, "exec /bin/garbage: exec format error");
    assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(1));
    agent.remove("c");
}

#[test]
fn an_id_is_checked_and_unique() {
    let agent = Agent::start();
    for id in ["", ".", "..", "a/b", "a b", "ä", &"x".repeat(256)] {
        let wanted = container(id, shell("exit"));
        let failure = agent.fails(&Request::CreateContainer(Box::new(wanted)));
        assert_eq!(failure.kind, FailureKind::Invalid, "{id:?}");
    }
    let long = "x".repeat(255);
    agent.create(&container(&long, shell("exit"))).unwrap();
    let failure = agent.create(&container(&long, shell("exit"))).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Exists);
    agent.remove(&long);
    let request = Request::RemoveContainer { container: long };
    assert_eq!(agent.fails(&request).kind, FailureKind::NotFound);
    assert!(agent.cgroups().is_empty());
}

#[test]
fn waiting_ends_with_the_process() {
    let agent = Agent::start();
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| agent.wait(&init("c"))))
            .collect();
        agent.call(&signal("c", libc::SIGKILL, false)).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), ExitStatus::Signaled(9));
        }
    });
    agent.remove("c");
}

#[test]
fn the_end_of_init_is_the_end_of_the_container() {
    let agent = Agent::start();
    for own in [true, false] {
        let mut wanted = container("c", shell("setsid sleep 1000 & sleep 1000 & exit 0"));
        if !own {
            wanted.namespaces.retain(|n| n.kind != NamespaceKind::Pid);
        }
        agent.create(&wanted).unwrap();
        agent.start_container("c").unwrap();
        assert_eq!(agent.wait(&init("c")), ExitStatus::Exited(0));
        agent.wait_until(|| agent.processes().is_empty());
        agent.remove("c");
    }
}

#[test]
fn orphans_are_collected() {
    let agent = Agent::start();
    let mut wanted = container("c", shell("(sleep 0.05 &) ; (sleep 0.05 &) ; sleep 1000"));
    wanted.namespaces.retain(|n| n.kind != NamespaceKind::Pid);
    agent.create(&wanted).unwrap();
    agent.start_container("c").unwrap();
    agent.wait_until(|| agent.processes().len() == 1);
    agent.remove("c");
}

#[test]
fn all_processes_get_a_signal() {
    let agent = Agent::start();
    let script = "trap 'wait; echo init; exit' USR1; sh -c 'trap \"echo child; exit\" USR1; echo up; \
                  while :; do sleep 0.01; done' & echo up; while :; do sleep 0.01; done";
    agent.create(&container("c", shell(script))).unwrap();
    agent.start_container("c").unwrap();
    let output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!((next(), next()), ("up".to_owned(), "up".to_owned()));
    agent.call(&signal("c", libc::SIGUSR1, true)).unwrap();
    let mut said = [next(), next()];
    said.sort();
    assert_eq!(said, ["child", "init"]);
    agent.remove("c");
}

#[test]
fn a_paused_container_stands_still() {
    let agent = Agent::start();
    let pause = Request::Pause {
        container: "c".to_owned(),
    };
    let resume = Request::Resume {
        container: "c".to_owned(),
    };
    agent
        .create(&container(
            "c",
            shell("while :; do echo x; sleep 0.001; done"),
        ))
        .unwrap();
    agent.start_container("c").unwrap();
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    assert_eq!(agent.fails(&resume).message, "container not paused: c");
    for _ in 0..5 {
        assert_eq!(agent.call(&pause), Ok(Answer::Done));
        for (failure, message) in [
            (agent.fails(&pause), "container is already paused: c"),
            (
                agent.exec(&exec("c", "e"), &shell("exit")).unwrap_err(),
                "cannot exec in a paused container: c",
            ),
        ] {
            assert_eq!(
                (failure.message.as_str(), failure.kind),
                (message, FailureKind::State)
            );
        }
        assert_eq!(agent.call(&resume), Ok(Answer::Done));
        let mut line = [0; 2];
        std::io::Read::read_exact(&mut output, &mut line).unwrap();
    }
    agent.call(&pause).unwrap();
    agent.remove("c");
    agent.assert_nothing_left();
}

#[test]
fn a_further_process_is_in_the_container() {
    let agent = Agent::start();
    agent
        .create(&container("c", shell("touch /tmp/here; sleep 1000")))
        .unwrap();
    agent.start_container("c").unwrap();
    let name = exec("c", "one");
    let mut spec = shell("hostname; ls /tmp; cat /proc/self/cgroup | head -1");
    spec.user.uid = 1000;
    agent.wait_until(|| agent.rootfs("c").join("tmp/here").exists());
    let pid = agent.exec(&name, &spec).unwrap();
    assert!(pid > 0);
    let output = agent.read_all(&name, StdStream::Stdout);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["inside", "here"]);
    assert_eq!(agent.wait(&name), ExitStatus::Exited(0));
    // Its own exec failures.
    let failure = agent.exec(&name, &process(&["foo"])).unwrap_err();
    assert_eq!(
        failure.message,
        "exec: \"foo\": executable file not found in $PATH"
    );
    let mut spec = shell("exit");
    spec.cwd = "/nowhere".to_owned();
    let failure = agent.exec(&name, &spec).unwrap_err();
    assert_eq!(
        failure.message,
        "chdir to cwd (\"/nowhere\") set in config.json failed: no such file or directory"
    );
    // The name is free again, and taken while the process lives.
    agent.exec(&name, &shell("sleep 1000")).unwrap();
    let failure = agent.exec(&name, &shell("exit")).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Exists);
    agent.remove("c");
    assert!(agent.processes().is_empty());
}

#[test]
fn many_containers_at_once_leave_nothing() {
    let agent = Agent::start();
    thread::scope(|scope| {
        for number in 0..20 {
            let agent = &agent;
            scope.spawn(move || {
                let id = format!("c{number}");
                let finished = agent.run(&container(&id, shell(&format!("echo {number}"))));
                assert_eq!(finished.output(), number.to_string());
            });
        }
    });
    agent.assert_nothing_left();
}

#[test]
fn the_last_to_leave_closes_the_sandbox() {
    let agent = Agent::start();
    for id in ["a", "b"] {
        agent.create(&container(id, shell("sleep 1000"))).unwrap();
        agent.start_container(id).unwrap();
    }
    let leave = |id: &str| {
        agent.call(&Request::Leave {
            container: id.to_owned(),
        })
    };
    assert_eq!(leave("a"), Ok(Answer::Left { last: false }));
    assert_eq!(agent.processes().len(), 1);
    agent.create(&container("c", shell("exit"))).unwrap();
    assert_eq!(leave("c"), Ok(Answer::Left { last: false }));
    assert_eq!(leave("b"), Ok(Answer::Left { last: true }));
    assert!(agent.processes().is_empty());
    assert!(agent.cgroups().is_empty());
    let failure = agent.create(&container("d", shell("exit"))).unwrap_err();
    assert_eq!(failure.kind, FailureKind::State);
    assert_eq!(failure.message, "the sandbox is ending");
}

#[test]
fn a_container_ends_with_who_stands_for_it() {
    let agent = Agent::start();
    for id in ["a", "b"] {
        agent.create(&container(id, shell("sleep 1000"))).unwrap();
        agent.start_container(id).unwrap();
    }
    let begin = |request: &Request| {
        let mut stream = agent.connect();
        frame::write(&mut stream, request).unwrap();
        stream
    };
    let monitor = begin(&Request::Wait { process: init("a") });
    let beside = begin(&Request::WatchOom {
        container: "b".to_owned(),
        seen: 0,
    });
    drop((monitor, beside));
    agent.wait_until(|| agent.processes().len() == 1);
    let gone = || agent.call(&Request::Wait { process: init("a") }).is_err();
    agent.wait_until(gone);
    agent.remove("b");
}

/// What `start` and `run` do when a `poststart` hook fails, while the monitor shuts the guest down.
#[test]
fn kills_around_the_end_are_answered() {
    const ROUNDS: u32 = 20;
    let agent = Agent::start();
    let kill = |id: &str| signal(id, libc::SIGKILL, true);
    // The last one to leave would end the sandbox.
    agent.create(&container("other", shell("exit"))).unwrap();
    for number in 0..ROUNDS {
        let id = format!("c{number}");
        agent
            .create(&container(&id, shell("sleep 1000 & sleep 1000")))
            .unwrap();
        agent.start_container(&id).unwrap();
        thread::scope(|scope| {
            let monitor = scope.spawn(|| {
                assert_eq!(agent.wait(&init(&id)), ExitStatus::Signaled(9));
                let container = id.clone();
                let left = agent.call(&Request::Leave { container });
                assert_eq!(left, Ok(Answer::Left { last: false }));
            });
            assert_eq!(agent.call(&kill(&id)), Ok(Answer::Done));
            if let Err(failure) = agent.call(&kill(&id)) {
                assert_eq!(failure.kind, FailureKind::NotFound);
            }
            monitor.join().unwrap();
        });
    }
    agent.remove("other");
    assert!(agent.processes().is_empty());
}

/// The agent has a descriptor for each caller that waits, and may run out of them.
#[test]
fn too_many_callers_wait_for_each_other() {
    const CALLERS: usize = 100;
    let agent = Agent::start();
    agent.limit_descriptors(64);
    agent.create(&container("c", shell("sleep 1000"))).unwrap();
    agent.start_container("c").unwrap();
    let waiting: Vec<UnixStream> = (0..CALLERS)
        .map(|_| {
            let mut connection = agent.connect();
            let watch = Request::WatchOom {
                container: "c".to_owned(),
                seen: 0,
            };
            frame::write(&mut connection, &watch).unwrap();
            connection
        })
        .collect();
    drop(waiting);
    let kill = signal("c", libc::SIGKILL, false);
    assert_eq!(agent.call(&kill), Ok(Answer::Done));
    assert_eq!(agent.wait(&init("c")), ExitStatus::Signaled(9));
    agent.remove("c");
}
