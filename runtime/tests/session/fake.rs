//! A stand-in for `lazaret-vmm` and the guest's agent in one process, speaking both wires over the
//! real sockets. "Containers" are plain processes of this machine, so that streams, signals and
//! exit codes are real; `$SHARE` shows them the share as a guest would see it.
//!
//! The test binary executes itself to become it: see [`crate::harness`].

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead as _, BufReader, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    process::Command,
    sync::{Arc, Condvar, Mutex},
    thread,
};

use lazaret_protocol::{
    VERSION,
    agent::{
        Answer, ExitStatus, Failure, FailureKind, ProcessEntry, ProcessList, ProcessRef,
        READY_PORT, Ready, Reply, Request, StdStream,
    },
    container::{Mount, Process, Stdio},
    frame,
    vm::{ControlAnswer, ControlReply, ControlRequest, DeviceConfig, ExitReason, Launch, Launched},
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

/// Environment variable with the launch socket's number: this process is the fake.
pub(crate) const LAUNCH_FD: &str = "LAZARET_FAKE_LAUNCH_FD";
/// Environment variable with the way the fake misbehaves.
pub(crate) const MODE: &str = "LAZARET_FAKE_MODE";

/// Becomes the VMM.
pub(crate) fn serve(launch_fd: i32) -> ! {
    let mode = std::env::var(MODE).unwrap_or_default();
    // As the real one does: a monitor's children inherit that all signals are blocked.
    nix::sys::signal::SigSet::empty().thread_set_mask().unwrap();
    // SAFETY: the number was passed by the parent for this process to own, and nobody else here
    // knows it.
    let owned: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(launch_fd) };
    let mut launch = UnixStream::from(owned);
    if mode == "die" {
        eprintln!("the fake VMM fails");
        end(ExitReason::Error);
    }
    let (config, mut fds) = receive(&launch);
    assert_eq!(config.version, VERSION);
    if mode == "refuse" {
        let refusal: Launched = Err("no room for the guest".to_owned());
        frame::write(&mut launch, &refusal).unwrap();
        end(ExitReason::Error);
    }
    let launched: Launched = Ok(());
    frame::write(&mut launch, &launched).unwrap();
    let mut listener = None;
    let mut acceptor = None;
    let mut share = None;
    for device in &config.vm.devices {
        match device {
            DeviceConfig::Vsock(vsock) => {
                assert_eq!(vsock.grants[0].port, READY_PORT);
                listener = fds[vsock.listener.0 as usize].take();
                acceptor = fds[vsock.grants[0].acceptor.0 as usize].take();
            }
            DeviceConfig::Fs(fs) => share = fds[fs.root.0 as usize].take(),
            DeviceConfig::Console(console) => {
                let fd = fds[console.output.unwrap().0 as usize].take().unwrap();
                File::from(fd)
                    .write_all(b"booting\nKernel panic - not syncing: fake\n\n")
                    .unwrap();
            }
            _ => {}
        }
    }
    match mode.as_str() {
        "panic" => end(ExitReason::Panic),
        "reset" => end(ExitReason::Reset),
        "silent" => {}
        _ => {
            let version = if mode == "version" { 99 } else { VERSION };
            send_ready(acceptor.as_ref().unwrap(), version);
        }
    }
    let listener = UnixListener::from(listener.unwrap());
    let agent = Arc::new(Agent {
        share: share.unwrap(),
        processes: Mutex::default(),
        deaf: mode == "deaf",
        cgroup: Arc::default(),
    });
    thread::spawn(move || {
        for connection in listener.incoming() {
            let agent = agent.clone();
            thread::spawn(move || agent.serve(connection.unwrap()));
        }
    });
    match frame::read(&mut launch) {
        Ok(ControlRequest::Shutdown) => {
            let reply: ControlReply = Ok(ControlAnswer::Done);
            frame::write(&mut launch, &reply).unwrap();
        }
        Ok(request) => panic!("unexpected {request:?}"),
        // The lifeline.
        Err(_) => {}
    }
    end(ExitReason::Shutdown)
}

fn end(reason: ExitReason) -> ! {
    std::process::exit(reason.code().into())
}

fn receive(socket: &UnixStream) -> (Launch, Vec<Option<OwnedFd>>) {
    let mut header = [0; frame::HEADER_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut header)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert_eq!(message.bytes, header.len());
    let fds = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.map(Some).collect::<Vec<_>>(),
            _ => Vec::new(),
        })
        .collect();
    let mut payload = vec![0; frame::payload_bytes(header).unwrap()];
    (&*socket).read_exact(&mut payload).unwrap();
    (frame::decode(&payload).unwrap(), fds)
}

fn send_ready(acceptor: &OwnedFd, version: u32) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let fds = [theirs.as_fd()];
    control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(
        acceptor,
        &[io::IoSlice::new(b"\0")],
        &mut control,
        rustix::net::SendFlags::empty(),
    )
    .unwrap();
    frame::write(
        &mut ours,
        &Ready {
            version,
            started_us: 100,
            ready_us: 200,
        },
    )
    .unwrap();
}

/// One process of a container: described, perhaps running, perhaps ended.
struct Running {
    spec: Process,
    /// The child's ends, until it starts.
    theirs: Option<[OwnedFd; 3]>,
    /// Our ends of standard input, output and error, or of the terminal.
    ours: HashMap<&'static str, OwnedFd>,
    pid: Option<i32>,
    ended: Arc<(Mutex<Option<ExitStatus>>, Condvar)>,
}

struct Agent {
    share: OwnedFd,
    processes: Mutex<HashMap<ProcessRef, Running>>,
    deaf: bool,
    /// Files of the containers' cgroup; word of each change.
    cgroup: Arc<(Mutex<HashMap<String, String>>, Condvar)>,
}

fn failure(kind: FailureKind, message: &str) -> Reply {
    Err(Failure {
        kind,
        message: message.to_owned(),
    })
}

impl Agent {
    fn serve(&self, mut connection: UnixStream) {
        let mut line = String::new();
        let mut reader = BufReader::with_capacity(1, connection.try_clone().unwrap());
        if reader.read_line(&mut line).unwrap() == 0 {
            return;
        }
        assert_eq!(line, "CONNECT 1024\n");
        drop(reader);
        connection.write_all(b"OK 1073741824\n").unwrap();
        let Ok(request) = frame::read::<Request>(&mut connection) else {
            return;
        };
        if self.deaf {
            std::process::abort();
        }
        if let Request::Stream { process, stream } = &request {
            let end = self.stream(process, *stream);
            frame::write(&mut connection, &Reply::Ok(Answer::Done)).unwrap();
            return relay(*stream, end, connection);
        }
        let reply = self.answer(request);
        // The caller may have gone.
        let _ = frame::write(&mut connection, &reply);
    }

    fn answer(&self, request: Request) -> Reply {
        match request {
            Request::CreateContainer(container) => {
                let root = format!("{}/{}", self.share(), container.root.share_path);
                assert!(std::fs::metadata(root).unwrap().is_dir());
                let mut told = container.process;
                told.env
                    .push(format!("MOUNTS={}", describe(&container.mounts)));
                let process = ProcessRef {
                    container: container.id,
                    exec: None,
                };
                self.make(process, told)
            }
            Request::StartContainer { container } => self.start(&ProcessRef {
                container,
                exec: None,
            }),
            Request::Exec { process, spec, .. } => {
                self.make(process.clone(), *spec)?;
                self.start(&process)?;
                Ok(Answer::Process { pid: 1 })
            }
            Request::Signal {
                process, signal, ..
            } => self.signal(&process, signal),
            Request::Wait { process } => self.wait(&process),
            Request::Resize { process, size } => {
                let processes = self.processes.lock().unwrap();
                let terminal = &processes[&process].ours["terminal"];
                let size = rustix::termios::Winsize {
                    ws_row: size.rows,
                    ws_col: size.columns,
                    ws_xpixel: 0,
                    ws_ypixel: 0,
                };
                rustix::termios::tcsetwinsize(terminal, size).unwrap();
                Ok(Answer::Done)
            }
            Request::ListProcesses { after, .. } => Ok(Answer::Processes(list(after))),
            Request::ReadProc { path, .. } => Ok(Answer::Files(vec![proc_file(&path)])),
            Request::ReadCgroup { files, .. } => {
                let cgroup = self.cgroup.0.lock().unwrap();
                let contents = files.iter().map(|name| cgroup.get(name).cloned());
                Ok(Answer::Files(contents.collect()))
            }
            Request::UpdateCgroup { files, .. } => self.update(files),
            Request::WatchOom { container, seen } => self.watch_oom(container, seen),
            Request::Pause { .. } | Request::Resume { .. } | Request::SetCpus { .. } => {
                Ok(Answer::Done)
            }
            Request::Leave { .. } => Ok(Answer::Left { last: true }),
            other => panic!("unexpected {other:?}"),
        }
    }

    fn update(&self, files: Vec<(String, String)>) -> Reply {
        if let Some((name, _)) = files.iter().find(|(_, value)| value == "refused") {
            return failure(FailureKind::System, &format!("write to {name}: refused"));
        }
        self.cgroup.0.lock().unwrap().extend(files);
        self.cgroup.1.notify_all();
        Ok(Answer::Done)
    }

    fn watch_oom(&self, container: String, seen: u64) -> Reply {
        let init = ProcessRef {
            container,
            exec: None,
        };
        let ended = self.processes.lock().unwrap()[&init].ended.clone();
        let cgroup = self.cgroup.clone();
        // So that the end wakes the watch.
        thread::spawn(move || {
            let mut status = ended.0.lock().unwrap();
            while status.is_none() {
                status = ended.1.wait(status).unwrap();
            }
            let ended = ("ended".to_owned(), String::new());
            cgroup.0.lock().unwrap().extend([ended]);
            cgroup.1.notify_all();
        });
        let mut cgroup = self.cgroup.0.lock().unwrap();
        loop {
            let kills = cgroup.get("fake.kills").map(|text| text.parse().unwrap());
            match kills {
                Some(kills) if kills > seen => return Ok(Answer::OomKills(kills)),
                _ if cgroup.contains_key("ended") => {
                    return Ok(Answer::Exited(ExitStatus::Exited(0)));
                }
                _ => cgroup = self.cgroup.1.wait(cgroup).unwrap(),
            }
        }
    }

    fn share(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.share.as_raw_fd())
    }

    fn make(&self, process: ProcessRef, spec: Process) -> Reply {
        if spec.args[0] == "@refused" {
            return failure(FailureKind::System, "exec: \"@refused\": no such program");
        }
        let mut ours = HashMap::new();
        let theirs = if spec.terminal.is_some() {
            let pty = nix::pty::openpty(None, None).unwrap();
            ours.insert("terminal", pty.master);
            let copy = || pty.slave.try_clone().unwrap();
            [copy(), copy(), copy()]
        } else {
            let mut pipe = |index: usize, name| -> OwnedFd {
                if spec.stdio[index] == Stdio::Null {
                    return File::options()
                        .read(true)
                        .write(true)
                        .open("/dev/null")
                        .unwrap()
                        .into();
                }
                let (reader, writer) = io::pipe().unwrap();
                let (mine, their): (OwnedFd, OwnedFd) = if index == 0 {
                    (writer.into(), reader.into())
                } else {
                    (reader.into(), writer.into())
                };
                ours.insert(name, mine);
                their
            };
            [pipe(0, "stdin"), pipe(1, "stdout"), pipe(2, "stderr")]
        };
        let running = Running {
            spec,
            theirs: Some(theirs),
            ours,
            pid: None,
            ended: Arc::default(),
        };
        self.processes.lock().unwrap().insert(process, running);
        Ok(Answer::Process { pid: 1 })
    }

    fn start(&self, process: &ProcessRef) -> Reply {
        let mut processes = self.processes.lock().unwrap();
        let running = processes.get_mut(process).unwrap();
        match running.spec.args[0].as_str() {
            "@panic" => end(ExitReason::Panic),
            "@abort" => std::process::abort(),
            _ => {}
        }
        let Some([stdin, stdout, stderr]) = running.theirs.take() else {
            return failure(FailureKind::State, "it runs already");
        };
        let mut command = Command::new(&running.spec.args[0]);
        command
            .args(&running.spec.args[1..])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("SHARE", self.share())
            .envs(
                running
                    .spec
                    .env
                    .iter()
                    .filter_map(|text| text.split_once('='))
                    .filter(|(name, _)| *name == "MOUNTS"),
            )
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        if running.spec.terminal.is_some() {
            // SAFETY: the closure makes two system calls and touches no memory of the parent.
            unsafe {
                command.pre_exec(|| {
                    rustix::process::setsid()?;
                    rustix::process::ioctl_tiocsctty(io::stdin())?;
                    Ok(())
                });
            }
        }
        let Ok(mut child) = command.spawn() else {
            return failure(FailureKind::Invalid, "cannot start it");
        };
        // Its ends must not stay open here.
        drop(command);
        running.pid = Some(child.id().cast_signed());
        let ended = running.ended.clone();
        thread::spawn(move || {
            let status = child.wait().unwrap();
            let status = match status.code() {
                Some(code) => ExitStatus::Exited(u8::try_from(code).unwrap()),
                None => ExitStatus::Signaled(u8::try_from(status.signal().unwrap()).unwrap()),
            };
            *ended.0.lock().unwrap() = Some(status);
            ended.1.notify_all();
        });
        Ok(Answer::Done)
    }

    fn signal(&self, process: &ProcessRef, signal: i32) -> Reply {
        let processes = self.processes.lock().unwrap();
        let running = &processes[process];
        match running.pid {
            Some(pid) => {
                let signal = nix::sys::signal::Signal::try_from(signal).unwrap();
                match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal) {
                    // It has just ended.
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(error) => panic!("cannot signal {pid}: {error}"),
                }
            }
            None => {
                let status = ExitStatus::Signaled(u8::try_from(signal).unwrap());
                *running.ended.0.lock().unwrap() = Some(status);
                running.ended.1.notify_all();
            }
        }
        Ok(Answer::Done)
    }

    fn wait(&self, process: &ProcessRef) -> Reply {
        let ended = self.processes.lock().unwrap()[process].ended.clone();
        let mut status = ended.0.lock().unwrap();
        while status.is_none() {
            status = ended.1.wait(status).unwrap();
        }
        // A process that never started has streams that nobody else closes.
        self.processes
            .lock()
            .unwrap()
            .get_mut(process)
            .unwrap()
            .theirs = None;
        Ok(Answer::Exited(status.unwrap()))
    }

    fn stream(&self, process: &ProcessRef, stream: StdStream) -> OwnedFd {
        let mut processes = self.processes.lock().unwrap();
        let ours = &mut processes.get_mut(process).unwrap().ours;
        match stream {
            StdStream::Stdin => ours.remove("stdin").unwrap(),
            StdStream::Stdout => ours.remove("stdout").unwrap(),
            StdStream::Stderr => ours.remove("stderr").unwrap(),
            StdStream::Terminal => ours["terminal"].try_clone().unwrap(),
            StdStream::Descriptor(number) => panic!("no process here has a descriptor {number}"),
        }
    }
}

/// Two processes, one in each answer.
/// A `/proc` with the processes 1 and 70000.
fn proc_file(path: &str) -> Option<String> {
    let content = match path {
        "" => "70000\n1\n0\nx\n".to_owned(),
        "uptime" => "1.00 1.00\n".to_owned(),
        "1/ns/pid" => "pid:[1]".to_owned(),
        "1/ns/mnt" => "/etc/passwd".to_owned(),
        "1/status" => "x".repeat(100_000),
        _ => match path.split_once('/') {
            Some((pid @ ("1" | "70000"), "comm" | "cmdline")) => format!("program-{pid}\n"),
            _ => return None,
        },
    };
    Some(content)
}

fn list(after: u32) -> ProcessList {
    let stat = |pid: u32| {
        format!("{pid} (sh) S 1 {pid} {pid} 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 0 2097152 256")
    };
    let entry = |pid| ProcessEntry {
        pid,
        uid: 0,
        stat: stat(pid),
        command: format!("sh -c {pid}"),
    };
    let next = [7, 8].into_iter().find(|&pid| pid > after);
    ProcessList {
        uptime_ms: 10_000,
        processes: next.map(entry).into_iter().collect(),
    }
}

fn relay(stream: StdStream, end: OwnedFd, connection: UnixStream) {
    let mut end = File::from(end);
    let mut connection = connection;
    match stream {
        StdStream::Stdin => drop(io::copy(&mut connection, &mut end)),
        StdStream::Stdout | StdStream::Stderr | StdStream::Descriptor(_) => {
            drop(io::copy(&mut end, &mut connection));
        }
        StdStream::Terminal => {
            let (mut input, mut keyboard) =
                (connection.try_clone().unwrap(), end.try_clone().unwrap());
            thread::spawn(move || io::copy(&mut input, &mut keyboard));
            // Ends with EIO when the process is gone.
            let _ = io::copy(&mut end, &mut connection);
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// Which flags the agent is told to mount with: `destination=number` for each mount,
/// `destination//path=number` for each one below.
fn describe(mounts: &[Mount]) -> String {
    let mut words = Vec::new();
    for mount in mounts {
        words.push(format!("{}={:#x}", mount.destination, mount.flags));
        for below in &mount.below {
            words.push(format!(
                "{}//{}={:#x}",
                mount.destination, below.path, below.flags
            ));
        }
    }
    words.join(" ")
}
