//! Podman drives the runtime: Debian's own, with conmon, as an operator has them.

use std::{fs, io::Write as _, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::pty::new_terminal;
use crate::{
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    invocation::{Invocation, Output},
    room::{ASSETS, Room},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "podman",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    engine(case!(run_and_exit_codes)),
    engine(case!(terminals)),
    engine(case!(detached_life)),
    engine(case!(stop_kills_after_grace)),
    engine(case!(pause_wait_restart)),
    engine(case!(copies)),
    engine(case!(top)),
    engine(case!(health)),
    engine(case!(identity_options)),
    engine(case!(kernel_options)),
    engine(case!(file_options)),
    engine(case!(limits)),
    engine(case!(attach)),
];

const PROBES: &[(&str, Probe)] = &[];

/// A case with an engine: it needs the userland, and takes its time.
pub(super) const fn engine(case: Case) -> Case {
    case.userland().timeout_s(300).only(
        &[Kind::Runc, Kind::Lazaret],
        "engines are tried with these two",
    )
}

/// A container that says `started`, and on SIGTERM `bye`, and then exits with 3.
pub(super) const SERVICE: &str =
    "trap 'echo bye; exit 3' TERM; echo started; while :; do sleep 1; done";

/// A room in which Podman has the image `busybox`.
struct Podman<'a> {
    room: Room,
    test: &'a Test,
}

impl<'a> Podman<'a> {
    fn new(test: &'a Test) -> Result<Self> {
        let podman = Self {
            room: Room::new(test)?,
            test,
        };
        let archive = format!("{ASSETS}/busybox.tar");
        podman.call(&["load", "-q", "-i", &archive]).succeed()?;
        Ok(podman)
    }

    /// Any command of Podman.
    fn call(&self, words: &[&str]) -> Invocation {
        self.room.command(&[&["podman"], words].concat())
    }

    /// `podman run` with options, and the command in a container.
    fn run(&self, options: &[&str], command: &[&str]) -> Invocation {
        let parent = self.room.cgroup_parent();
        let common = ["run", "--network=none", "--cgroup-parent", &parent];
        self.call(&[&common, options, &["busybox"], command].concat())
    }

    /// What `podman run --rm` of a shell script prints.
    fn script(&self, options: &[&str], script: &str) -> Result<String> {
        let options = [&["--rm"], options].concat();
        let output = self.run(&options, &["sh", "-c", script]).succeed()?;
        Ok(output.stdout)
    }

    /// A running container named `c` with a shell script.
    fn launch(&self, options: &[&str], script: &str) -> Result<()> {
        let options = [&["--detach", "--name=c"], options].concat();
        self.run(&options, &["sh", "-c", script]).succeed()?;
        Ok(())
    }

    fn exec(&self, command: &[&str]) -> Result<Output> {
        self.call(&[&["exec", "c"], command].concat()).succeed()
    }

    /// A field of `podman inspect c`.
    fn inspect(&self, field: &str) -> Result<String> {
        let format = format!("--format={{{{{field}}}}}");
        let output = self.call(&["inspect", "c", &format]).succeed()?;
        Ok(output.stdout.trim_end().to_owned())
    }

    /// Removes all containers and demands that nothing is left.
    fn end(self) -> Result<()> {
        let removed = self.call(&["rm", "--force", "--all", "--time=0"]);
        removed.succeed()?;
        self.room.is_clean(self.test.runtime.kind)
    }
}

/// Demands that a text has a part.
pub(super) fn has(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "no {part:?} in {text:?}");
    Ok(())
}

fn run_and_exit_codes(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    ensure!(podman.script(&[], "echo out; echo err >&2")? == "out\n");
    podman
        .run(&["--rm"], &["sh", "-c", "exit 42"])
        .output()?
        .code(42)?;
    podman
        .run(&["--rm", "--no-such"], &["true"])
        .output()?
        .code(125)?;
    let unknown = podman.run(&["--rm"], &["nonsuch"]).output()?;
    unknown.fails(127, &["nonsuch", "executable file not found"])?;
    podman
        .run(&["--rm"], &["/etc"])
        .output()?
        .fails(126, &["/etc"])?;
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(b"through a pipe\n")?;
    drop(writer);
    let output = podman
        .run(&["--rm", "-i"], &["cat"])
        .stdin(reader)
        .succeed()?;
    ensure!(output.stdout == "through a pipe\n", "{:?}", output.stdout);
    let left = podman.call(&["ps", "--all", "--quiet"]).succeed()?;
    ensure!(left.stdout.is_empty(), "--rm left {:?}", left.stdout);
    podman.end()
}

fn terminals(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    let (mut caller, theirs) = new_terminal(93, 31)?;
    let running = podman
        .run(&["-it", "--name=c"], &["sh"])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    caller.expect("# ")?;
    caller.type_in("stty size; tty\n")?;
    caller.expect("31 93\r\n/dev/pts/0\r\n")?;
    caller.resize(120, 50)?;
    // The kernel signals the terminal's own session, which Podman is not part of here.
    running.signal(Signal::WINCH)?;
    let (mut second, theirs) = new_terminal(80, 24)?;
    let exec = podman
        .call(&["exec", "-it", "c", "sh"])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    second.expect("# ")?;
    second.type_in("tty; exit 4\n")?;
    second.expect("/dev/pts/1\r\n")?;
    exec.wait()?.code(4)?;
    caller.type_in("stty size; exit 5\n")?;
    caller.expect("50 120\r\n")?;
    running.wait()?.code(5)?;
    podman.end()
}

fn detached_life(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    podman.launch(&[], SERVICE)?;
    let (reader, writer) = std::io::pipe()?;
    let following = podman.call(&["logs", "-f", "c"]).stdout(writer).spawn()?;
    let mut log = Dialogue::from(reader);
    log.expect("started\n")?;
    let listed = podman
        .call(&["ps", "--format={{.Names}} {{.Status}}"])
        .succeed()?;
    has(&listed.stdout, "c Up")?;
    ensure!(podman.inspect(".State.Status")? == "running");
    ensure!(podman.inspect(".OCIRuntime")? == test.runtime.kind.name());
    let as_user = ["exec", "--user=1000", "-e", "A=b", "-w", "/tmp", "c"];
    let script = ["sh", "-c", "id -u; echo $A; pwd"];
    let output = podman.call(&[&as_user[..], &script].concat()).succeed()?;
    ensure!(output.stdout == "1000\nb\n/tmp\n", "{:?}", output.stdout);
    podman
        .call(&["exec", "c", "sh", "-c", "exit 7"])
        .output()?
        .code(7)?;
    let unknown = podman.call(&["exec", "c", "nonsuch"]).output()?;
    unknown.fails(127, &["nonsuch", "executable file not found"])?;
    podman.call(&["exec", "c", "/etc"]).output()?.code(126)?;
    podman.call(&["stop", "--time=30", "c"]).succeed()?;
    log.expect("bye\n")?;
    following.wait()?.code(0)?;
    ensure!(podman.inspect(".State.ExitCode")? == "3");
    podman.end()
}

fn stop_kills_after_grace(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    podman.launch(&[], "trap '' TERM; echo started; while :; do sleep 1; done")?;
    let output = podman.call(&["stop", "--time=1", "c"]).succeed()?;
    has(&output.stderr, "resorting to SIGKILL")?;
    ensure!(podman.inspect(".State.ExitCode")? == "137");
    podman.call(&["start", "c"]).succeed()?;
    podman.call(&["kill", "c"]).succeed()?;
    let waited = podman.call(&["wait", "c"]).succeed()?;
    ensure!(waited.stdout == "137\n", "{:?}", waited.stdout);
    podman.end()
}

fn pause_wait_restart(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    podman.launch(&[], SERVICE)?;
    podman.call(&["pause", "c"]).succeed()?;
    ensure!(podman.inspect(".State.Status")? == "paused");
    podman.call(&["exec", "c", "true"]).output()?.code(255)?;
    podman.call(&["unpause", "c"]).succeed()?;
    let waiting = podman.call(&["wait", "c"]).spawn()?;
    podman.call(&["kill", "--signal=TERM", "c"]).succeed()?;
    let waited = waiting.wait()?.code(0)?;
    ensure!(waited.stdout == "3\n", "{:?}", waited.stdout);
    podman.call(&["restart", "c"]).succeed()?;
    podman.exec(&["true"])?;
    podman.call(&["restart", "--time=30", "c"]).succeed()?;
    podman.call(&["kill", "c"]).succeed()?;
    podman.call(&["wait", "c"]).succeed()?;
    let logs = podman.call(&["logs", "c"]).succeed()?;
    has(&logs.stdout, "started\nbye\nstarted\nbye\nstarted\n")?;
    podman.end()
}

/// Podman joins the mount namespace of the container's pid for it, if the container runs.
fn copies(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    fs::create_dir(podman.room.path("/tmp/volume"))?;
    fs::write(podman.room.path("/tmp/file"), "content\n")?;
    fs::write(podman.room.path("/etc/only-outside"), "outside\n")?;
    podman.launch(&["-v", "/tmp/volume:/volume"], SERVICE)?;
    for place in ["/etc/copied", "/volume/copied"] {
        podman
            .call(&["cp", "/tmp/file", &format!("c:{place}")])
            .succeed()?;
        let output = podman.exec(&["cat", place])?;
        ensure!(output.stdout == "content\n", "{place}: {:?}", output.stdout);
    }
    ensure!(
        !podman.room.path("/etc/copied").exists(),
        "it was copied to the host"
    );
    ensure!(
        podman.room.path("/tmp/volume/copied").exists(),
        "the volume lacks it"
    );
    podman.exec(&[
        "sh",
        "-c",
        "echo inside > /etc/made; echo inside > /volume/made",
    ])?;
    for place in ["/etc/made", "/volume/made"] {
        podman
            .call(&["cp", &format!("c:{place}"), "/tmp/back"])
            .succeed()?;
        let back = fs::read_to_string(podman.room.path("/tmp/back"))?;
        ensure!(back == "inside\n", "{place}: {back:?}");
    }
    let missing = podman
        .call(&["cp", "c:/etc/only-outside", "/tmp/back"])
        .output()?;
    missing.fails(125, &["only-outside"])?;
    podman.end()
}

fn top(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    podman.launch(&[], SERVICE)?;
    // Not a descriptor of Podman's: it has the container's own `ps` answer.
    let inside = podman.call(&["top", "c", "-o", "pid,args"]).succeed()?;
    has(&inside.stdout, "sleep 1")?;
    let output = podman.call(&["top", "c", "pid", "args"]).succeed()?;
    if test.runtime.kind == Kind::Lazaret {
        // Podman reads the host's /proc for it, which has no processes of a guest.
        ensure!(output.stdout.lines().count() == 1, "{:?}", output.stdout);
    } else {
        has(&output.stdout, "sleep 1")?;
    }
    podman.end()
}

fn health(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    let check = ["--health-cmd=test -e /ok", "--health-interval=disable"];
    podman.launch(&check, SERVICE)?;
    let unhealthy = podman
        .call(&["healthcheck", "run", "c"])
        .output()?
        .code(1)?;
    has(&unhealthy.stdout, "unhealthy")?;
    podman.exec(&["touch", "/ok"])?;
    podman.call(&["healthcheck", "run", "c"]).succeed()?;
    podman.end()
}

fn identity_options(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    fs::write(podman.room.path("/tmp/env"), "A=1\nB=two words\n")?;
    let said = podman.script(
        &[
            "--user=user",
            "--hostname=h1",
            "--env-file=/tmp/env",
            "-w",
            "/tmp",
        ],
        "id -u; id -g; hostname; echo $A $B; pwd",
    )?;
    ensure!(said == "1000\n1000\nh1\n1 two words\n/tmp\n", "{said:?}");
    let said = podman.script(
        &["--cap-drop=ALL", "--cap-add=CHOWN"],
        "grep CapEff /proc/self/status",
    )?;
    has(&said, "0000000000000001")?;
    let said = podman.script(
        &["--userns=auto"],
        "cat /proc/self/uid_map; touch /x; stat -c %u /x",
    )?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(
        words[0] == "0" && words[1] != "0" && words[3] == "0",
        "{said:?}"
    );
    let said = podman.script(&["--init"], "cat /proc/1/comm; echo $$")?;
    ensure!(
        said == "podman-init\n2\n" || said == "catatonit\n2\n",
        "{said:?}"
    );
    podman.end()
}

fn kernel_options(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    let said = podman.script(
        &[
            "--ulimit=nofile=123:456",
            "--sysctl=kernel.msgmax=4096",
            "--sysctl=net.ipv4.ip_unprivileged_port_start=80",
            "--shm-size=1m",
            "--device=/dev/fuse",
        ],
        "ulimit -n; ulimit -Hn; cd /proc/sys; cat kernel/msgmax net/ipv4/ip_unprivileged_port_start; \
         df -k /dev/shm | awk 'NR == 2 { print $2 }'; stat -c '%F %t %T' /dev/fuse; \
         : <> /dev/fuse && echo opened",
    )?;
    let expected = "123\n456\n4096\n80\n1024\ncharacter special file a e5\nopened\n";
    ensure!(said == expected, "{said:?}");
    let denied = podman
        .run(&["--rm", "--sysctl=kernel.panic=1"], &["true"])
        .output()?;
    ensure!(
        denied.status.code() != Some(0),
        "a sysctl of the whole kernel was set"
    );
    podman.end()
}

fn file_options(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    let said = podman.script(
        &["--read-only", "--tmpfs=/mnt:size=1m,mode=700"],
        "touch /x 2>&1; touch /tmp/x /mnt/x; df -k /mnt | awk 'NR == 2 { print $2 }'; stat -c %a /mnt",
    )?;
    ensure!(
        said == "touch: /x: Read-only file system\n1024\n700\n",
        "{said:?}"
    );
    fs::create_dir(podman.room.path("/tmp/d"))?;
    fs::write(podman.room.path("/tmp/d/f"), "f\n")?;
    let volumes = [
        "-v",
        "/tmp/d:/d:ro",
        "-v",
        "/tmp/d/f:/file",
        "-v",
        "named:/named",
    ];
    let said = podman.script(
        &volumes,
        "cat /d/f; echo more >> /file; touch /d/x 2>&1; touch /named/kept",
    )?;
    ensure!(
        said == "f\ntouch: /d/x: Read-only file system\n",
        "{said:?}"
    );
    ensure!(fs::read_to_string(podman.room.path("/tmp/d/f"))? == "f\nmore\n");
    ensure!(podman.script(&["-v", "named:/named"], "ls /named")? == "kept\n");
    podman
        .call(&["secret", "create", "word", "/tmp/d/f"])
        .succeed()?;
    let said = podman.script(&["--secret=word"], "cat /run/secrets/word")?;
    ensure!(said == "f\nmore\n", "{said:?}");
    podman.end()
}

fn limits(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    let said = podman.script(
        &["--memory=64m", "--cpus=0.5", "--pids-limit=50"],
        "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; mkdir /dev/shm/d; \
         sh -c 'dd if=/dev/zero of=/dev/shm/d/f bs=1M count=100' 2> /dev/null || echo limited",
    )?;
    ensure!(said.starts_with("67108864\n50000 100000\n50\n"), "{said:?}");
    podman.end()
}

fn attach(test: &Test) -> Result<()> {
    let podman = Podman::new(test)?;
    let options = ["--detach", "-i", "--name=c"];
    podman
        .run(&options, &["sh", "-c", "read word; echo got $word; exit 6"])
        .succeed()?;
    let (reader, mut writer) = std::io::pipe()?;
    let attached = podman
        .call(&["attach", "c"])
        .stdin(reader)
        .timeout(Duration::from_secs(60))
        .spawn()?;
    writer.write_all(b"it\n")?;
    let output = attached.wait()?.code(6)?;
    drop(writer);
    ensure!(output.stdout == "got it\n", "{:?}", output.stdout);
    podman.end()
}
