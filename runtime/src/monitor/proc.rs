//! The `/proc` that those find who join the monitor's mount namespace by the container's pid: that of
//! the container, asked of the guest file by file. Podman looks there for what a container runs
//! (`podman top`). Made and served by the monitor; nothing else uses it.
//!
//! It is a FUSE file system with fixed names, read-only. What the files say is the guest's word, as
//! it is the container's under runc.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use fuse_backend_rs::{
    api::{
        filesystem::{Context, DirEntry, Entry, FileSystem, OpenOptions, ZeroCopyWriter},
        server::Server,
    },
    transport::{FuseBuf, FuseDevWriter, Reader},
};
use lazaret_protocol::agent::{Answer, Request};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags},
};

use crate::{
    agent::{Agent, AgentError},
    sys,
};

/// Bytes of the largest message, with its header, of which `fuse-backend-rs` tells the kernel. The
/// kernel demands room for it, whatever it sends; pages that nothing is written to cost nothing.
const MESSAGE_BYTES_MAX: usize = (1 << 20) + 4096;

/// Mode of the file system's root, as a mount option.
const ROOT_MODE: &str = "40555";

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Link,
}

/// Paths below `/proc`, and below the directory of each process. The first is the directory itself.
type Tree = &'static [(&'static str, Kind)];

const TOP: Tree = &[
    ("", Kind::Directory),
    ("loadavg", Kind::File),
    ("meminfo", Kind::File),
    ("stat", Kind::File),
    ("uptime", Kind::File),
    ("version", Kind::File),
];

const PROCESS: Tree = &[
    ("", Kind::Directory),
    ("cmdline", Kind::File),
    ("comm", Kind::File),
    ("ns", Kind::Directory),
    ("ns/ipc", Kind::Link),
    ("ns/mnt", Kind::Link),
    ("ns/net", Kind::Link),
    ("ns/pid", Kind::Link),
    ("ns/user", Kind::Link),
    ("ns/uts", Kind::Link),
    ("stat", Kind::File),
    ("status", Kind::File),
];

/// Something in the file system. Its inode number says what it is, so that nothing is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    /// Pid in the container's pid namespace; 0 for what belongs to no process.
    pid: u32,
    /// Where in [`TOP`], or in [`PROCESS`].
    index: usize,
}

/// The file system's root.
const ROOT: Node = Node { pid: 0, index: 0 };

impl Node {
    /// The directory of a process.
    fn process(pid: u32) -> Self {
        Self { pid, index: 0 }
    }

    fn of(inode: u64) -> io::Result<Self> {
        let number = inode.wrapping_sub(1);
        let pid = u32::try_from(number >> 8).map_err(|_| Errno::NOENT)?;
        let index = (number & 0xff) as usize;
        let node = Self { pid, index };
        if index < node.tree().len() {
            Ok(node)
        } else {
            Err(Errno::NOENT.into())
        }
    }

    /// 1 for the root, as FUSE wants it.
    fn inode(self) -> u64 {
        (u64::from(self.pid) << 8 | self.index as u64) + 1
    }

    fn tree(self) -> Tree {
        if self.pid == 0 { TOP } else { PROCESS }
    }

    fn kind(self) -> Kind {
        self.tree()[self.index].1
    }

    /// Below `/proc`.
    fn path(self) -> String {
        let (path, _) = self.tree()[self.index];
        match self.pid {
            0 => path.to_owned(),
            pid => format!("{pid}/{path}"),
        }
    }

    /// What is in it, but for processes, with the names.
    fn children(self) -> impl Iterator<Item = (&'static str, Self)> {
        let (parent, _) = self.tree()[self.index];
        let within = move |path: &'static str| match parent {
            "" => Some(path).filter(|path| !path.is_empty()),
            parent => path.strip_prefix(parent)?.strip_prefix('/'),
        };
        let entries = self.tree().iter().enumerate();
        entries.filter_map(move |(index, (path, _))| {
            let name = within(path).filter(|name| !name.contains('/'))?;
            Some((name, Self { index, ..self }))
        })
    }

    fn attributes(self) -> libc::stat64 {
        let mut attributes = Entry::default().attr;
        attributes.st_ino = self.inode();
        attributes.st_nlink = 1;
        attributes.st_mode = match self.kind() {
            Kind::Directory => libc::S_IFDIR | 0o555,
            Kind::File => libc::S_IFREG | 0o444,
            Kind::Link => libc::S_IFLNK | 0o777,
        };
        attributes
    }
}

/// The file system.
struct ContainerProc {
    agent: Agent,
    container: String,
}

impl ContainerProc {
    /// What the guest says is at `path`.
    fn ask(&self, path: String) -> io::Result<String> {
        let request = Request::ReadProc {
            container: self.container.clone(),
            path,
        };
        match self.agent.call(&request) {
            Ok(Answer::Files(mut files)) => match files.pop() {
                Some(Some(content)) => Ok(content),
                _ => Err(Errno::NOENT.into()),
            },
            // The container has ended.
            Err(AgentError::Refused(_)) => Err(Errno::NOENT.into()),
            _ => Err(Errno::IO.into()),
        }
    }

    fn pids(&self) -> io::Result<Vec<u32>> {
        let text = self.ask(String::new())?;
        let pids = text.lines().filter_map(|line| line.parse().ok());
        let mut pids: Vec<u32> = pids.filter(|pid| *pid > 0).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    fn find(&self, parent: Node, name: &str) -> io::Result<Node> {
        let mut children = parent.children();
        if let Some((_, node)) = children.find(|(known, _)| *known == name) {
            return Ok(node);
        }
        let pid: u32 = name.parse().unwrap_or(0);
        let is_process = parent == ROOT && pid > 0 && pid.to_string() == name;
        if is_process && self.ask(format!("{pid}/comm")).is_ok() {
            Ok(Node::process(pid))
        } else {
            Err(Errno::NOENT.into())
        }
    }

    /// Everything in a directory, with its name.
    fn list(&self, directory: Node) -> io::Result<Vec<(String, Node)>> {
        let children = directory.children();
        let mut listed: Vec<_> = children
            .map(|(name, node)| (name.to_owned(), node))
            .collect();
        if directory == ROOT {
            let processes = self.pids()?.into_iter();
            listed.extend(processes.map(|pid| (pid.to_string(), Node::process(pid))));
        }
        Ok(listed)
    }
}

impl FileSystem for ContainerProc {
    type Inode = u64;
    type Handle = u64;

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let name = name.to_str().map_err(|_| Errno::NOENT)?;
        let node = self.find(Node::of(parent)?, name)?;
        // Valid for no time: processes end.
        Ok(Entry {
            inode: node.inode(),
            attr: node.attributes(),
            ..Entry::default()
        })
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        _: Option<u64>,
    ) -> io::Result<(libc::stat64, Duration)> {
        Ok((Node::of(inode)?.attributes(), Duration::ZERO))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        let target = self.ask(Node::of(inode)?.path())?;
        // Whoever follows it must not be led anywhere by the guest.
        if target.contains('/') {
            return Err(Errno::IO.into());
        }
        Ok(target.into_bytes())
    }

    fn open(
        &self,
        _: &Context,
        _: u64,
        _: u32,
        _: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        // The size says nothing.
        Ok((None, OpenOptions::DIRECT_IO, None))
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        _: Option<u64>,
        _: u32,
    ) -> io::Result<usize> {
        let content = self.ask(Node::of(inode)?.path())?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = content.as_bytes().get(start..).unwrap_or_default();
        writer.write(&rest[..rest.len().min(size as usize)])
    }

    fn release(
        &self,
        _: &Context,
        _: u64,
        _: u32,
        _: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        Ok(())
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        _: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let listed = self.list(Node::of(inode)?)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for ((name, node), next) in listed.iter().zip(1..).skip(start) {
            let kind = match node.kind() {
                Kind::Directory => libc::DT_DIR,
                Kind::File => libc::DT_REG,
                Kind::Link => libc::DT_LNK,
            };
            let entry = DirEntry {
                ino: node.inode(),
                offset: next,
                type_: kind.into(),
                name: name.as_bytes(),
            };
            if add_entry(entry)? == 0 {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, _: &Context, _: u64, _: u32, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A file system that is not served yet.
#[derive(Debug)]
pub(super) struct ProcMount {
    device: OwnedFd,
    /// The mount, attached nowhere.
    pub(super) mount: OwnedFd,
}

impl ProcMount {
    /// Makes the file system.
    ///
    /// # Errors
    /// As `open(2)` of `/dev/fuse` and `fsopen(2)`: a host need not have FUSE.
    pub(super) fn new() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
        let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let number = device.as_raw_fd().to_string();
        for (name, value) in [
            ("source", "proc"),
            ("fd", number.as_str()),
            ("rootmode", ROOT_MODE),
            ("user_id", "0"),
            ("group_id", "0"),
        ] {
            rustix::mount::fsconfig_set_string(context.as_fd(), name, value)?;
        }
        for name in ["default_permissions", "allow_other"] {
            rustix::mount::fsconfig_set_flag(context.as_fd(), name)?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
        Ok(Self { device, mount })
    }

    /// Serves the file system for as long as this process lives.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(super) fn serve(self, agent: Agent, container: String) -> io::Result<()> {
        let server = Server::new(Arc::new(ContainerProc { agent, container }));
        let device = self.device;
        let serve = move || {
            if let Err(error) = serve(&device, &server) {
                tracing::debug!("/proc for joining processes: {error}");
            }
        };
        sys::keep_one_heap();
        thread::Builder::new()
            .name("proc".to_owned())
            .spawn(serve)?;
        Ok(())
    }
}

fn serve(device: &OwnedFd, server: &Server<Arc<ContainerProc>>) -> io::Result<()> {
    let mut message = vec![0; MESSAGE_BYTES_MAX];
    let mut answer = vec![0; MESSAGE_BYTES_MAX];
    loop {
        let length = match rustix::io::read(device, &mut message[..]) {
            Ok(length) => length,
            // Nobody waits for the message any more.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
            // Nobody can reach the file system any more.
            Err(Errno::NODEV) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let reader: Reader<'_> = Reader::from_fuse_buffer(FuseBuf::new(&mut message[..length]))
            .map_err(io::Error::other)?;
        let writer =
            FuseDevWriter::new(device.as_raw_fd(), &mut answer).map_err(io::Error::other)?;
        // It has been answered with an error, unless it was none that can be.
        if let Err(error) = server.handle_message(reader, writer.into(), None, None) {
            tracing::debug!("/proc for joining processes: {error}");
        }
    }
}
