//! An agent in namespaces of its own, as PID 1 of its pid namespace, serving on a Unix socket; and
//! root file systems made of busybox. Needs root, `busybox` (static) and `unshare`.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as CommandStdio};
use std::time::{Duration, Instant};

use lazaret_agent::cgroup;
use lazaret_agent::container::Environment;
use lazaret_agent::guest::Share;
use lazaret_protocol::agent::{
    Answer, ExitStatus, Failure, ProcessEntry, ProcessRef, Reply, Request, StdStream, TerminalSize,
};
use lazaret_protocol::container::{
    Capabilities, Cgroup, CpuAffinity, CreateContainer, DeviceKind, DeviceNode, IdMapping, Mount,
    MountSource, Namespace, NamespaceKind, Process, Root, Stdio, User,
};
use lazaret_protocol::frame;
use lazaret_protocol::hook::StartHooks;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Programs that busybox plays in the test's root file systems.
const APPLETS: &str = "awk cat chmod chroot cut dd echo env false grep head hostname id kill ls \
    md5sum mkdir mknod mount nproc ps pwd readlink rm seq setsid sh sleep sort stat stty tail tee \
    test touch tr true tty umount uname wc whoami yes";

/// Directory of one agent, told to the child process that serves.
const DIRECTORY: &str = "LAZARET_AGENT_TEST";
/// How long a test waits for what should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The test that is the agent when another test starts it.
#[test]
fn serve() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let mount = cgroup_mount();
    let name = directory.file_name().unwrap().to_str().unwrap();
    let parent = mount.join(name);
    cgroup::enable_controllers(&mount).unwrap();
    fs::create_dir(&parent).unwrap();
    cgroup::enable_controllers(&parent).unwrap();
    let environment = Environment {
        executable: std::ffi::CString::new(env!("CARGO_BIN_EXE_lazaret-agent")).unwrap(),
        share: directory.join("share"),
        staging: directory.join("staging"),
        nodes: directory.to_owned(),
        cgroup_parent: parent,
        cgroup_mount: mount,
        bpf_compiler: None,
    };
    let listener = UnixListener::bind(directory.join("socket.new")).unwrap();
    fs::rename(directory.join("socket.new"), directory.join("socket")).unwrap();
    lazaret_agent::server::serve(listener.into(), environment, Share::existing()).unwrap();
}

/// Where this machine has cgroup version 2.
fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(line.expect("a cgroup2 mount").split(' ').nth(1).unwrap())
}

/// A running agent. Dropping it ends it and everything it made.
pub(crate) struct Agent {
    directory: tempfile::TempDir,
    process: Child,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("lazaret-test-")
            .tempdir()
            .unwrap();
        for name in ["share", "staging"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        // Here, for containers that are made side by side cannot execute what one of them writes.
        fs::copy("/bin/busybox", directory.path().join("share/busybox")).unwrap();
        let process = Command::new("env")
            // Whoever runs the tests may ignore signals; PID 1 starts with the defaults. The test
            // runner's other threads must not take SIGCHLD from the agent's.
            .args(["--default-signal", "--block-signal=CHLD", "unshare"])
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "harness::serve",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(DIRECTORY, directory.path())
            .stdout(CommandStdio::null())
            .spawn()
            .unwrap();
        let agent = Self { directory, process };
        agent.wait_until(|| agent.directory.path().join("socket").exists());
        agent
    }

    /// Polls `condition`: for what has no event to wait for.
    pub(crate) fn wait_until(&self, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < PATIENCE, "nothing happened");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Mounts a tmpfs at a directory of the share, where the agent sees it.
    pub(crate) fn mount_tmpfs(&self, path: &Path) {
        let status = Command::new("nsenter")
            .args(["--mount", "--target", &self.process.id().to_string()])
            .args(["mount", "-t", "tmpfs", "none"])
            .arg(path)
            .status()
            .unwrap();
        assert!(status.success());
    }

    pub(crate) fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// The cgroup of all this agent's containers.
    pub(crate) fn cgroup_parent(&self) -> PathBuf {
        cgroup_mount().join(self.directory.path().file_name().unwrap())
    }

    pub(crate) fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.directory.path().join("socket")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// One call.
    pub(crate) fn call(&self, request: &Request) -> Reply {
        let mut stream = self.connect();
        frame::write(&mut stream, request).unwrap();
        frame::read(&mut stream).unwrap()
    }

    pub(crate) fn fails(&self, request: &Request) -> Failure {
        match self.call(request) {
            Ok(answer) => panic!("{request:?} succeeded with {answer:?}"),
            Err(failure) => failure,
        }
    }

    /// Makes a root file system for `id` and calls `CreateContainer`.
    pub(crate) fn create(&self, container: &CreateContainer) -> Result<u32, Failure> {
        self.make_rootfs(&container.id);
        match self.call(&Request::CreateContainer(Box::new(container.clone())))? {
            Answer::Process { pid } => Ok(pid),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start_container(&self, id: &str) -> Result<(), Failure> {
        let request = Request::StartContainer {
            container: id.to_owned(),
        };
        self.call(&request)
            .map(|answer| assert_eq!(answer, Answer::Done))
    }

    pub(crate) fn remove(&self, id: &str) {
        let request = Request::RemoveContainer {
            container: id.to_owned(),
        };
        assert_eq!(self.call(&request), Ok(Answer::Done));
    }

    pub(crate) fn wait(&self, process: &ProcessRef) -> ExitStatus {
        let request = Request::Wait {
            process: process.clone(),
        };
        match self.call(&request) {
            Ok(Answer::Exited(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn kill(&self, process: &ProcessRef) {
        let kill = Request::Signal {
            process: process.clone(),
            signal: libc::SIGKILL,
            all: false,
        };
        assert_eq!(self.call(&kill), Ok(Answer::Done));
    }

    pub(crate) fn exec(&self, process: &ProcessRef, spec: &Process) -> Result<u32, Failure> {
        let request = Request::Exec {
            process: process.clone(),
            spec: Box::new(spec.clone()),
            cgroup: String::new(),
            ignore_paused: false,
        };
        match self.call(&request)? {
            Answer::Process { pid } => Ok(pid),
            other => panic!("{other:?}"),
        }
    }

    /// The processes of a container whose pids are above `after`.
    pub(crate) fn list(&self, container: &str, after: u32) -> Vec<ProcessEntry> {
        let request = Request::ListProcesses {
            container: container.to_owned(),
            after,
        };
        match self.call(&request) {
            Ok(Answer::Processes(list)) => list.processes,
            other => panic!("{other:?}"),
        }
    }

    /// Attaches to a stream.
    pub(crate) fn stream(
        &self,
        process: &ProcessRef,
        stream: StdStream,
    ) -> Result<UnixStream, Failure> {
        let mut connection = self.connect();
        let request = Request::Stream {
            process: process.clone(),
            stream,
        };
        frame::write(&mut connection, &request).unwrap();
        frame::read::<Reply>(&mut connection).unwrap()?;
        Ok(connection)
    }

    /// Everything a process writes to `stream` until its end.
    pub(crate) fn read_all(&self, process: &ProcessRef, stream: StdStream) -> String {
        let mut text = String::new();
        let mut connection = self.stream(process, stream).unwrap();
        connection.read_to_string(&mut text).unwrap();
        text
    }

    /// Creates, starts, reads the output of and removes a container.
    pub(crate) fn run(&self, container: &CreateContainer) -> Finished {
        self.create(container)
            .unwrap_or_else(|error| panic!("{error}"));
        let process = init(&container.id);
        self.start_container(&container.id).unwrap();
        let output = self.read_all(&process, StdStream::Stdout);
        let errors = self.read_all(&process, StdStream::Stderr);
        let status = self.wait(&process);
        self.remove(&container.id);
        Finished {
            output,
            errors,
            status,
        }
    }

    fn make_rootfs(&self, id: &str) {
        let root = self.share().join(id).join("rootfs");
        if root.exists() {
            return;
        }
        for name in ["bin", "dev", "etc", "home/user", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::hard_link(self.share().join("busybox"), root.join("bin/busybox")).unwrap();
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
        fs::write(root.join("etc/passwd"), passwd).unwrap();
    }

    pub(crate) fn rootfs(&self, id: &str) -> PathBuf {
        self.make_rootfs(id);
        self.share().join(id).join("rootfs")
    }

    /// Demands that no cgroup and no process of a container is left.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.cgroups(), [""; 0]);
        assert_eq!(self.processes(), [""; 0]);
    }

    /// Names of the container cgroups there are.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        directories(&self.cgroup_parent())
    }

    /// The agent's pid.
    fn pid(&self) -> u32 {
        // It is the only child of `unshare`.
        let parent = self.process.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        children.unwrap().trim().parse().unwrap()
    }

    /// Lets the agent have no more than `count` descriptors.
    pub(crate) fn limit_descriptors(&self, count: u64) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let limit = Rlimit {
            current: Some(count),
            maximum: Some(count),
        };
        prlimit(pid, Resource::Nofile, limit).unwrap();
    }

    /// Pids of the agent's children, as this process sees them.
    pub(crate) fn processes(&self) -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks
            .flat_map(|task| fs::read_to_string(task.unwrap().path().join("children")))
            .flat_map(|text| {
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let parent = self.cgroup_parent();
        let _ = self.process.kill();
        let _ = self.process.wait();
        let removed = || {
            for name in directories(&parent) {
                let _ = fs::remove_dir(parent.join(name));
            }
            let _ = fs::remove_dir(&parent);
            !parent.exists()
        };
        if !std::thread::panicking() {
            self.wait_until(removed);
        }
    }
}

fn directories(path: &Path) -> Vec<String> {
    fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// What a container left.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) output: String,
    pub(crate) errors: String,
    pub(crate) status: ExitStatus,
}

impl Finished {
    /// Its output, if all went well.
    pub(crate) fn output(&self) -> &str {
        assert_eq!(self.status, ExitStatus::Exited(0), "{self:?}");
        assert_eq!(self.errors, "");
        self.output.trim_end()
    }
}

pub(crate) fn init(id: &str) -> ProcessRef {
    ProcessRef {
        container: id.to_owned(),
        exec: None,
    }
}

pub(crate) fn exec(id: &str, exec: &str) -> ProcessRef {
    ProcessRef {
        container: id.to_owned(),
        exec: Some(exec.to_owned()),
    }
}

/// A process that runs a shell script.
pub(crate) fn shell(script: &str) -> Process {
    process(&["sh", "-c", script])
}

pub(crate) fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/usr/bin:/bin".to_owned()],
        cwd: "/".to_owned(),
        terminal: None,
        stdio: [Stdio::Null, Stdio::Output, Stdio::Output],
        preserved: Vec::new(),
        user: User::default(),
        capabilities: Capabilities {
            bounding: DEFAULT_CAPABILITIES,
            effective: DEFAULT_CAPABILITIES,
            inheritable: 0,
            permitted: DEFAULT_CAPABILITIES,
            ambient: 0,
        },
        rlimits: Vec::new(),
        no_new_privileges: true,
        oom_score_adj: None,
        scheduler: None,
        io_priority: None,
        cpu_affinity: CpuAffinity::default(),
    }
}

pub(crate) const SIZE: TerminalSize = TerminalSize {
    rows: 33,
    columns: 77,
};

/// Docker's.
pub(crate) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// Those of a privileged container: up to `CAP_CHECKPOINT_RESTORE`.
pub(crate) fn all_capabilities() -> Capabilities {
    const ALL: u64 = 0x1ff_ffff_ffff;
    Capabilities {
        bounding: ALL,
        effective: ALL,
        permitted: ALL,
        inheritable: 0,
        ambient: 0,
    }
}

pub(crate) fn fuse() -> DeviceNode {
    DeviceNode {
        path: "/dev/fuse".to_owned(),
        kind: DeviceKind::Character,
        major: 10,
        minor: 229,
        mode: 0o600,
        uid: 3,
        gid: 4,
    }
}

/// A container with the namespaces and mounts that engines ask for.
pub(crate) fn container(id: &str, process: Process) -> CreateContainer {
    let namespaces = [
        NamespaceKind::Pid,
        NamespaceKind::Mount,
        NamespaceKind::Ipc,
        NamespaceKind::Uts,
        NamespaceKind::Cgroup,
    ];
    let strict = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    CreateContainer {
        id: id.to_owned(),
        root: Root {
            flags: 0,
            share_path: format!("{id}/rootfs"),
            readonly: false,
            propagation: 0,
        },
        hostname: "inside".to_owned(),
        domainname: String::new(),
        namespaces: namespaces
            .into_iter()
            .map(|kind| Namespace { kind, of: None })
            .collect(),
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
        mounts: vec![
            filesystem("proc", "/proc", strict, ""),
            filesystem("tmpfs", "/dev", libc::MS_NOSUID, "mode=755,size=65536k"),
            filesystem(
                "devpts",
                "/dev/pts",
                libc::MS_NOSUID | libc::MS_NOEXEC,
                "newinstance,ptmxmode=0666,mode=0620,gid=5",
            ),
            filesystem("tmpfs", "/dev/shm", strict, "mode=1777"),
            filesystem("mqueue", "/dev/mqueue", strict, ""),
        ],
        devices: Vec::new(),
        masked_paths: vec!["/proc/kcore".to_owned(), "/proc/scsi".to_owned()],
        readonly_paths: vec!["/proc/sys".to_owned()],
        sysctl: Vec::new(),
        cgroup: Cgroup::default(),
        start_hooks: StartHooks::default(),
        time_offsets: Vec::new(),
        seccomp: None,
        personality: None,
        process,
    }
}

/// Puts `container` into a user namespace whose root is 100000 outside.
pub(crate) fn in_user_namespace(container: &mut CreateContainer) {
    container.namespaces.push(Namespace {
        kind: NamespaceKind::User,
        of: None,
    });
    let mapping = IdMapping {
        container_id: 0,
        host_id: 100_000,
        size: 65536,
    };
    container.uid_mappings = vec![mapping];
    container.gid_mappings = vec![mapping];
}

pub(crate) fn filesystem(fs_type: &str, destination: &str, flags: u64, data: &str) -> Mount {
    let source = MountSource::Filesystem {
        fs_type: fs_type.to_owned(),
        source: fs_type.to_owned(),
    };
    mount(source, destination, flags, data)
}

pub(crate) fn mount(source: MountSource, destination: &str, flags: u64, data: &str) -> Mount {
    Mount {
        source,
        destination: destination.to_owned(),
        flags,
        recursive_set: 0,
        recursive_clear: 0,
        propagation: Vec::new(),
        data: data.to_owned(),
        copy_up: false,
        below: Vec::new(),
    }
}

/// Sends all of `bytes` and ends the stream.
pub(crate) fn send_all(mut stream: &UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
}
