//! Docker: its daemon, with containerd and its shim for runc.

use std::{
    io::{BufRead as _, BufReader},
    thread::JoinHandle,
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use super::{Engine, NAME, SERVICE, has, topic};
use crate::{case::Test, dialogue::Dialogue, invocation::Running, room::Room, runtime::Kind};

topic!("docker", with_docker);

/// The daemon, and who reads what it says: it must be able to say it.
pub(in super::super) struct Daemon<'a> {
    room: &'a Room,
    process: Running,
    log: JoinHandle<()>,
}

impl<'a> Daemon<'a> {
    /// Starts it with this runtime and driver of cgroups, and waits until it takes calls.
    pub(in super::super) fn start(room: &'a Room, runtime: Kind, driver: &str) -> Result<Self> {
        let runtime = format!("--default-runtime={}", runtime.name());
        let driver = format!("--exec-opt=native.cgroupdriver={driver}");
        let (reader, writer) = std::io::pipe()?;
        let process = room
            .command(&[
                "dockerd",
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--storage-driver=overlay2",
                &driver,
                "--add-runtime=lazaret=/usr/bin/lazaret",
                &runtime,
            ])
            .stderr(writer)
            .spawn()?;
        let mut lines = BufReader::new(reader).lines();
        let ready = lines.find(|line| {
            line.as_ref()
                .map_or(true, |line| line.contains("API listen on"))
        });
        ready.context("the daemon ended")??;
        let log = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Ok(Self { room, process, log })
    }

    /// Has it end.
    pub(in super::super) fn end(self) -> Result<()> {
        let kill = "kill $(cat /run/docker.pid)";
        self.room.command(&["sh", "-c", kill]).succeed()?;
        self.process.wait()?.code(0)?;
        self.log.join().ok().context("reading the log panicked")
    }
}

/// Makes a room with Docker for a case, and demands afterwards that nothing is left.
fn with_docker(test: &Test, case: fn(&Engine<'_>) -> Result<()>) -> Result<()> {
    let room = Room::new(test)?;
    let kind = test.runtime.kind;
    let daemon = Daemon::start(&room, kind, "cgroupfs")?;
    let docker = Engine::new(test, &room, "docker")?;
    case(&docker)?;
    docker.has_no_containers()?;
    daemon.end()?;
    let root = format!("/run/docker/runtime-{}/moby", kind.name());
    room.is_clean(kind, &root)
}

/// What Podman has not, or not so: health checks that the daemon makes by itself, `top`.
fn own_options(test: &Test) -> Result<()> {
    with_docker(test, |docker| {
        let (reader, writer) = std::io::pipe()?;
        let filter = "--filter=event=health_status";
        let events = docker.call(&["events", filter, "--format={{.Status}}"]);
        let events = events.stdout(writer).spawn()?;
        let check = ["--health-cmd=test -e /ok", "--health-interval=1s"];
        docker.launch(&check, &format!("touch /ok; {SERVICE}"))?;
        let told = Dialogue::after("health_status: healthy\n", reader)?;
        docker.shows(".HostConfig.Runtime", docker.test.runtime.kind.name())?;
        let top = docker.call(&["top", NAME]).succeed()?;
        has(&top.stdout, "PID")?;
        docker.remove()?;
        events.signal(Signal::TERM)?;
        events.wait()?;
        told.rest()?;
        Ok(())
    })
}
