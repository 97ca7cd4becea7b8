//! A container that runs: its processes, its figures, new limits, sub-cgroups, and a shortage of
//! memory.

use std::fs;
use std::io::Read;

use lazaret_protocol::agent::{Answer, ExitStatus, FailureKind, Reply, Request, StdStream};
use lazaret_protocol::container::Stdio;
use lazaret_protocol::frame;

use crate::harness::{Agent, all_capabilities, container, exec, fuse, init, process, shell};

/// An agent with a running container `c`.
fn running() -> Agent {
    let agent = Agent::start();
    agent
        .create(&container("c", process(&["sleep", "1000"])))
        .unwrap();
    agent.start_container("c").unwrap();
    agent
}

fn read(agent: &Agent, names: &[&str]) -> Vec<Option<String>> {
    let request = Request::ReadCgroup {
        container: "c".to_owned(),
        files: names.iter().map(|&name| name.to_owned()).collect(),
    };
    match agent.call(&request) {
        Ok(Answer::Files(contents)) => contents,
        other => panic!("{other:?}"),
    }
}

fn read_proc(agent: &Agent, path: &str) -> Option<String> {
    let request = Request::ReadProc {
        container: "c".to_owned(),
        path: path.to_owned(),
    };
    match agent.call(&request) {
        Ok(Answer::Files(mut contents)) => contents.pop()?,
        other => panic!("{other:?}"),
    }
}

fn update(files: &[(&str, &str)]) -> Request {
    let files = files.iter();
    Request::UpdateCgroup {
        container: "c".to_owned(),
        files: files
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    }
}

#[test]
fn processes_are_described() {
    let agent = running();
    let list = agent.list("c", 0);
    let [entry] = &list[..] else {
        panic!("{list:?}");
    };
    assert_eq!((entry.uid, entry.command.as_str()), (0, "sleep 1000"));
    assert!(entry.stat.starts_with(&format!("{} (sleep) ", entry.pid)));
    assert_eq!(agent.list("c", entry.pid), []);
    agent.remove("c");
}

#[test]
fn the_containers_proc_is_read() {
    let agent = running();
    assert_eq!(read_proc(&agent, "").as_deref(), Some("1\n"));
    let command = read_proc(&agent, "1/cmdline");
    assert_eq!(command.as_deref(), Some("sleep\x001000\0"));
    assert!(read_proc(&agent, "1/ns/pid").unwrap().starts_with("pid:["));
    assert_eq!(read_proc(&agent, "2/cmdline"), None);
    let failure = agent.fails(&Request::ReadProc {
        container: "c".to_owned(),
        path: "1/root/etc/passwd".to_owned(),
    });
    assert_eq!(failure.kind, FailureKind::System);
    agent.kill(&init("c"));
    agent.wait(&init("c"));
    assert_eq!(read_proc(&agent, "1/cmdline"), None);
    agent.remove("c");
}

/// Its `/proc` is a file system of its own, which it does not serve.
#[test]
fn a_container_that_keeps_its_proc_waiting_keeps_nobody_else() {
    if fs::File::open("/dev/fuse").is_err() {
        eprintln!("skipped: this machine has no FUSE");
        return;
    }
    let agent = Agent::start();
    let script = "exec 3<>/dev/fuse && \
                  mount -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0 none /proc && \
                  echo mounted && exec sleep 1000";
    let mut wanted = container("c", shell(script));
    wanted.devices.push(fuse());
    wanted.process.capabilities = all_capabilities();
    agent.create(&wanted).unwrap();
    let mut output = agent.stream(&init("c"), StdStream::Stdout).unwrap();
    agent.start_container("c").unwrap();
    let mut said = [0; "mounted\n".len()];
    output.read_exact(&mut said).unwrap();

    let mut waiting = agent.connect();
    let path = "1/comm".to_owned();
    let container = "c".to_owned();
    frame::write(&mut waiting, &Request::ReadProc { container, path }).unwrap();
    assert_eq!(agent.list("c", 0).len(), 1);
    agent.kill(&init("c"));
    assert_eq!(agent.wait(&init("c")), ExitStatus::Signaled(9));
    let reply: Reply = frame::read(&mut waiting).unwrap();
    assert_eq!(reply.unwrap_err().kind, FailureKind::System);
    agent.remove("c");
}

#[test]
fn files_are_read_and_missing_ones_told() {
    let agent = running();
    let contents = read(&agent, &["cgroup.events", "no.such.file"]);
    let [Some(events), None] = &contents[..] else {
        panic!("{contents:?}");
    };
    assert!(events.contains("populated 1"), "{events}");
    for name in ["../cgroup.procs", "", "a/b"] {
        let failure = agent.fails(&Request::ReadCgroup {
            container: "c".to_owned(),
            files: vec![name.to_owned()],
        });
        assert_eq!(failure.kind, FailureKind::Invalid, "{name}");
    }
    let failure = agent.fails(&Request::ReadCgroup {
        container: "c".to_owned(),
        files: vec![String::new(); 65],
    });
    assert_eq!(
        failure.message,
        "65 files of a cgroup are too many for one call"
    );
    agent.remove("c");
}

#[test]
fn limits_change_all_or_none() {
    let agent = running();
    // What every kernel's cgroups have, whatever controllers this machine's other hierarchies hold.
    let before = read(&agent, &["cgroup.max.depth", "cgroup.max.descendants"]);
    let done = agent.call(&update(&[
        ("cgroup.max.depth", "7"),
        ("cgroup.max.descendants", "8"),
    ]));
    assert_eq!(done, Ok(Answer::Done));
    let after = read(&agent, &["cgroup.max.depth", "cgroup.max.descendants"]);
    assert_ne!(before, after);
    assert_eq!(after, [Some("7\n".to_owned()), Some("8\n".to_owned())]);
    let failure = agent.fails(&update(&[
        ("cgroup.max.depth", "9"),
        ("cgroup.max.descendants", "many"),
    ]));
    assert!(
        failure.message.contains("write \"many\" to")
            && failure.message.ends_with("invalid argument"),
        "{failure}"
    );
    let left = read(&agent, &["cgroup.max.depth", "cgroup.max.descendants"]);
    assert_eq!(left, after);
    let failure = agent.fails(&update(&[("cgroup.max.depth", "9"), ("../x", "1")]));
    assert_eq!(failure.kind, FailureKind::Invalid);
    assert_eq!(read(&agent, &["cgroup.max.depth"])[0], after[0]);
    agent.remove("c");
}

#[test]
fn a_process_enters_a_sub_cgroup() {
    let agent = running();
    let below = agent.cgroup_parent().join("c/sub");
    fs::create_dir(&below).unwrap();
    let request = |path: &str, name: &str| {
        let mut spec = shell("sleep 1000");
        spec.stdio = [Stdio::Null; 3];
        Request::Exec {
            process: exec("c", name),
            spec: Box::new(spec),
            cgroup: path.to_owned(),
            ignore_paused: false,
        }
    };
    for (index, path) in ["sub", "/sub", "/sub/"].iter().enumerate() {
        let answer = agent.call(&request(path, &index.to_string()));
        let Ok(Answer::Process { pid }) = answer else {
            panic!("{answer:?}");
        };
        // Pids there are those of this machine, or rather of the reader's namespace.
        let inside = fs::read_to_string(below.join("cgroup.procs")).unwrap();
        assert_eq!(inside.lines().count(), index + 1, "{pid}");
    }
    let answer = agent.call(&request("/", "top"));
    assert!(matches!(answer, Ok(Answer::Process { .. })), "{answer:?}");
    for (path, message) in [
        ("..", ".. is not a sub cgroup path"),
        ("sub/../..", "sub/../.. is not a sub cgroup path"),
    ] {
        assert_eq!(agent.fails(&request(path, "x")).message, message);
    }
    let failure = agent.fails(&request("nonexistent", "x"));
    assert!(
        failure
            .message
            .ends_with("/nonexistent/cgroup.procs: no such file or directory"),
        "{failure}"
    );
    agent.remove("c");
}

#[test]
fn a_paused_container_takes_a_process_that_waits() {
    let agent = running();
    let pause = Request::Pause {
        container: "c".to_owned(),
    };
    assert_eq!(agent.call(&pause), Ok(Answer::Done));
    let mut spec = shell("exit 5");
    spec.stdio = [Stdio::Null; 3];
    let mut connection = agent.connect();
    let request = |ignore_paused| Request::Exec {
        process: exec("c", "e"),
        spec: Box::new(spec.clone()),
        cgroup: String::new(),
        ignore_paused,
    };
    let failure = agent.fails(&request(false));
    assert_eq!(failure.message, "cannot exec in a paused container: c");
    frame::write(&mut connection, &request(true)).unwrap();
    let resume = Request::Resume {
        container: "c".to_owned(),
    };
    agent.wait_until(|| agent.list("c", 0).len() == 2);
    assert_eq!(agent.call(&resume), Ok(Answer::Done));
    let reply: Reply = frame::read(&mut connection).unwrap();
    assert!(matches!(reply, Ok(Answer::Process { .. })), "{reply:?}");
    assert_eq!(agent.wait(&exec("c", "e")), ExitStatus::Exited(5));
    agent.remove("c");
}

#[test]
fn the_end_of_a_container_ends_the_watch() {
    let agent = running();
    let mut connection = agent.connect();
    let request = Request::WatchOom {
        container: "c".to_owned(),
        seen: 0,
    };
    frame::write(&mut connection, &request).unwrap();
    if read(&agent, &["memory.events"])[0].is_none() {
        // This machine's memory controller belongs to another hierarchy, which is said at once.
        let reply: Reply = frame::read(&mut connection).unwrap();
        let failure = reply.unwrap_err();
        assert!(failure.message.starts_with("wait for cgroup "), "{failure}");
        agent.remove("c");
        return;
    }
    agent.kill(&init("c"));
    let reply: Reply = frame::read(&mut connection).unwrap();
    assert_eq!(reply, Ok(Answer::Exited(ExitStatus::Signaled(9))));
    agent.remove("c");
}
