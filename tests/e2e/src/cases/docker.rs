//! Docker drives the runtime: Debian's own daemon, with containerd and its shim for runc.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{
    podman::{SERVICE, engine, has},
    pty::new_terminal,
};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    invocation::{Invocation, Output, Running},
    room::{ASSETS, Room},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "docker",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    docker(case!(run_and_exit_codes)),
    docker(case!(terminals)),
    docker(case!(detached_life)),
    docker(case!(options)),
];

const PROBES: &[(&str, Probe)] = &[];

/// A case with Docker, whose daemon hands each container a hook of its own.
const fn docker(case: Case) -> Case {
    engine(case).only(&[Kind::Runc], "Docker's containers have a prestart hook")
}

/// A room in which Docker's daemon runs and has the image `busybox`.
struct Docker<'a> {
    room: Room,
    test: &'a Test,
    daemon: Running,
    log: JoinHandle<()>,
}

impl<'a> Docker<'a> {
    fn new(test: &'a Test) -> Result<Self> {
        let room = Room::new(test)?;
        let runtime = format!("--default-runtime={}", test.runtime.kind.name());
        let parent = format!("--cgroup-parent={}", room.cgroup_parent());
        let (reader, writer) = std::io::pipe()?;
        let daemon = room
            .command(&[
                "dockerd",
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=overlay2",
                "--exec-opt=native.cgroupdriver=cgroupfs",
                "--add-runtime=lazaret=/usr/bin/lazaret",
                &runtime,
                &parent,
            ])
            .stderr(writer)
            .spawn()?;
        let mut lines = BufReader::new(reader).lines();
        let ready = lines.find(|line| {
            line.as_ref()
                .map_or(true, |line| line.contains("API listen on"))
        });
        ready.context("the daemon ended")??;
        // What else it says is nobody's business, but it must be able to say it.
        let log = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let docker = Self {
            room,
            test,
            daemon,
            log,
        };
        let archive = format!("{ASSETS}/busybox.tar");
        docker.call(&["load", "-q", "-i", &archive]).succeed()?;
        Ok(docker)
    }

    /// Any command of Docker.
    fn call(&self, words: &[&str]) -> Invocation {
        self.room.command(&[&["docker"], words].concat())
    }

    /// `docker run` with options, and the command in a container.
    fn run(&self, options: &[&str], command: &[&str]) -> Invocation {
        self.call(&[&["run", "--network=none"], options, &["busybox"], command].concat())
    }

    /// What `docker run --rm` of a shell script prints.
    fn script(&self, options: &[&str], script: &str) -> Result<String> {
        let options = [&["--rm"], options].concat();
        let output = self.run(&options, &["sh", "-c", script]).succeed()?;
        Ok(output.stdout)
    }

    fn exec(&self, command: &[&str]) -> Result<Output> {
        self.call(&[&["exec", "box"], command].concat()).succeed()
    }

    /// A field of `docker inspect box`.
    fn inspect(&self, field: &str) -> Result<String> {
        let format = format!("--format={{{{{field}}}}}");
        let output = self.call(&["inspect", &format, "box"]).succeed()?;
        Ok(output.stdout.trim_end().to_owned())
    }

    /// Ends the daemon and demands that nothing is left.
    fn end(self) -> Result<()> {
        self.daemon.signal(Signal::TERM)?;
        self.daemon.wait()?.code(0)?;
        self.log.join().ok().context("reading the log panicked")?;
        self.room.is_clean(self.test.runtime.kind)
    }
}

fn run_and_exit_codes(test: &Test) -> Result<()> {
    let docker = Docker::new(test)?;
    ensure!(docker.script(&[], "echo out; echo err >&2")? == "out\n");
    let code = docker.run(&["--rm"], &["sh", "-c", "exit 42"]);
    code.output()?.code(42)?;
    let wrong = docker.run(&["--rm", "--no-such"], &["true"]);
    wrong.output()?.code(125)?;
    let unknown = docker.run(&["--rm"], &["nonsuch"]).output()?;
    unknown.fails(127, &["nonsuch", "executable file not found"])?;
    let directory = docker.run(&["--rm"], &["/etc"]).output()?;
    directory.fails(126, &["/etc"])?;
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(b"through a pipe\n")?;
    drop(writer);
    let output = docker.run(&["--rm", "-i"], &["cat"]).stdin(reader);
    let output = output.succeed()?;
    ensure!(output.stdout == "through a pipe\n", "{:?}", output.stdout);
    docker.end()
}

fn terminals(test: &Test) -> Result<()> {
    let docker = Docker::new(test)?;
    let (mut caller, theirs) = new_terminal(93, 31)?;
    let running = docker
        .run(&["-it", "--rm", "--name=box"], &["sh"])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    caller.expect("# ")?;
    caller.type_in("tty\n")?;
    caller.expect("/dev/pts/0\r\n")?;
    let (mut second, theirs) = new_terminal(80, 24)?;
    let exec = docker
        .call(&["exec", "-it", "box", "sh"])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    second.expect("# ")?;
    second.type_in("tty; exit 4\n")?;
    second.expect("/dev/pts/1\r\n")?;
    exec.wait()?.code(4)?;
    caller.type_in("exit 5\n")?;
    running.wait()?.code(5)?;
    docker.end()
}

fn detached_life(test: &Test) -> Result<()> {
    let docker = Docker::new(test)?;
    let launch = docker.run(&["-d", "--name=box"], &["sh", "-c", SERVICE]);
    launch.succeed()?;
    let (reader, writer) = std::io::pipe()?;
    let following = docker.call(&["logs", "-f", "box"]).stdout(writer).spawn()?;
    let mut log = Dialogue::from(reader);
    log.expect("started\n")?;
    let listed = docker.call(&["ps", "--format={{.Names}} {{.Status}}"]);
    has(&listed.succeed()?.stdout, "box Up")?;
    let script = ["sh", "-c", "id -u; echo $A; pwd"];
    let as_user = ["exec", "--user=1000", "-e", "A=b", "-w", "/tmp", "box"];
    let output = docker.call(&[&as_user[..], &script].concat()).succeed()?;
    ensure!(output.stdout == "1000\nb\n/tmp\n", "{:?}", output.stdout);
    let code = docker.call(&["exec", "box", "sh", "-c", "exit 7"]);
    code.output()?.code(7)?;
    docker.call(&["pause", "box"]).succeed()?;
    ensure!(docker.inspect(".State.Status")? == "paused");
    docker.call(&["unpause", "box"]).succeed()?;
    fs::write(docker.room.path("/tmp/file"), "content\n")?;
    docker.call(&["cp", "/tmp/file", "box:/copied"]).succeed()?;
    ensure!(docker.exec(&["cat", "/copied"])?.stdout == "content\n");
    docker.call(&["restart", "--time=60", "box"]).succeed()?;
    log.expect("bye\n")?;
    docker.call(&["stop", "--time=60", "box"]).succeed()?;
    following.wait()?.code(0)?;
    ensure!(docker.inspect(".State.ExitCode")? == "3");
    docker.call(&["rm", "box"]).succeed()?;
    docker.end()
}

fn options(test: &Test) -> Result<()> {
    let docker = Docker::new(test)?;
    fs::write(docker.room.path("/tmp/env"), "A=1\nB=two words\n")?;
    let said = docker.script(
        &[
            "--user=user",
            "--hostname=h1",
            "--env-file=/tmp/env",
            "--ulimit=nofile=123:456",
            "--sysctl=kernel.msgmax=4096",
            "--cap-drop=ALL",
            "--memory=64m",
            "--cpus=0.5",
            "--pids-limit=50",
        ],
        "id -u; hostname; echo $A $B; ulimit -n; cat /proc/sys/kernel/msgmax; \
         cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; grep CapBnd /proc/self/status",
    )?;
    let expected = "1000\nh1\n1 two words\n123\n4096\n67108864\n50000 100000\n50\n\
                    CapBnd:\t0000000000000000\n";
    ensure!(said == expected, "{said:?}");
    let said = docker.script(
        &[
            "--read-only",
            "--tmpfs=/mnt:size=1m,mode=700",
            "--init",
            "-v",
            "named:/named",
        ],
        "touch /x 2>&1; touch /mnt/x /named/kept; stat -c %a /mnt; echo $$",
    )?;
    ensure!(!said.ends_with("\n1\n"), "--init: {said:?}");
    has(&said, "touch: /x: Read-only file system\n700\n")?;
    ensure!(docker.script(&["-v", "named:/named:ro"], "ls /named")? == "kept\n");
    docker.end()
}
