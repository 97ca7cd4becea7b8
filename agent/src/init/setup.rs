//! The order in which a container is built or entered. Called by [`super::run`].

use std::fs;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use lazaret_protocol::container::{CreateContainer, NamespaceKind, Process};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::{InitError, devices, terminal};
use crate::instructions::{ContainerInstructions, ExecInstructions};
use crate::loopback;
use crate::mounts;
use crate::namespaces;
use crate::rootfs::{Missing, Rootfs};
use crate::sys;

/// Builds the container around this process, which is in its cgroup and its new namespaces.
/// Returns what to run and the master of its pty.
pub(super) fn build(
    instructions: ContainerInstructions,
) -> Result<(Process, Option<OwnedFd>), InitError> {
    let ContainerInstructions {
        container,
        share,
        staging,
        cgroup,
        joined,
        root_tree,
        trees,
        nodes,
    } = instructions;
    for (kind, fd) in joined {
        namespaces::join(kind, take(fd).as_fd())?;
    }
    let own = |kind| {
        container
            .namespaces
            .iter()
            .any(|namespace| namespace.kind == kind)
    };
    let new = |kind| {
        let mut namespaces = container.namespaces.iter();
        namespaces.any(|namespace| namespace.kind == kind && namespace.of.is_none())
    };
    if new(NamespaceKind::Cgroup) {
        sys::unshare_namespaces(libc::CLONE_NEWCGROUP)
            .map_err(InitError::step("make the cgroup namespace"))?;
    }
    if new(NamespaceKind::Network) {
        loopback::bring_up().map_err(InitError::step("bring the loopback interface up"))?;
    }
    rustix::process::setsid().map_err(InitError::step("make a session"))?;

    mounts::mount_namespace_private()?;
    let tree = match root_tree {
        Some(fd) => take(fd),
        None => mounts::clone_root(Path::new(&share), &container.root)?,
    };
    let rootfs = mounts::attach_root(tree, Path::new(&staging))?;
    let context = mounts::Context {
        share: Path::new(&share),
        cgroup: (!own(NamespaceKind::Cgroup)).then_some(Path::new(&cgroup)),
    };
    let mut trees = trees.into_iter();
    let mut sealed = Vec::new();
    for mount in &container.mounts {
        let tree = trees.next().flatten().map(take);
        sealed.extend(mounts::make(&rootfs, context, mount, tree)?);
    }
    let user_namespace = own(NamespaceKind::User);
    let nodes = nodes.into_iter().map(|node| node.map(take)).collect();
    devices::create(&rootfs, &container, user_namespace, nodes)?;
    let terminal = furnish(&rootfs, &container)?;
    mounts::seal(&sealed)?;
    mounts::become_root(&rootfs, container.root.readonly)?;
    mounts::set_propagation(container.root.propagation)?;
    Ok((container.process, terminal))
}

/// Everything between the mounts and the change of root.
fn furnish(rootfs: &Rootfs, container: &CreateContainer) -> Result<Option<OwnedFd>, InitError> {
    let process = &container.process;
    rootfs.open_or_create(&process.cwd, Missing::Directory)?;
    let terminal = match process.terminal {
        None => None,
        Some(size) => {
            let pty = terminal::open(rootfs, size, process.user.uid)?;
            terminal::bind_console(rootfs, &pty)?;
            Some(terminal::enter(pty)?)
        }
    };
    if !container.hostname.is_empty() {
        rustix::system::sethostname(container.hostname.as_bytes())
            .map_err(InitError::step("set the host name"))?;
    }
    if !container.domainname.is_empty() {
        rustix::system::setdomainname(container.domainname.as_bytes())
            .map_err(InitError::step("set the domain name"))?;
    }
    for (name, value) in &container.sysctl {
        set_sysctl(name, value)?;
    }
    for path in &container.readonly_paths {
        mounts::protect(rootfs, path)?;
    }
    mounts::mask(rootfs, &container.masked_paths)?;
    Ok(terminal)
}

/// Sets a kernel parameter of this process's namespaces, through the guest's own `/proc`.
fn set_sysctl(name: &str, value: &str) -> Result<(), InitError> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "._-/".contains(character);
    // Both notations of sysctl(8): with '/' as separator, names may contain dots.
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name.to_owned(),
        _ => swap_separators(name),
    };
    if !name.chars().all(plain) || path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(InitError::SysctlName(name.to_owned()));
    }
    fs::write(Path::new("/proc/sys").join(path), value).map_err(|error| InitError::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source: error.into(),
    })
}

/// `net.ipv4.conf.eth0/1.x` is the file `net/ipv4/conf/eth0.1/x`.
fn swap_separators(name: &str) -> String {
    name.chars()
        .map(|character| match character {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

/// Enters a running container; this process is in its cgroup and pid namespace already.
pub(super) fn enter(
    instructions: ExecInstructions,
) -> Result<(Process, Option<OwnedFd>), InitError> {
    let init = take(instructions.init);
    let namespaces = ThreadNameSpaceType::from_bits_retain(instructions.namespaces);
    if !namespaces.is_empty() {
        move_into_thread_name_spaces(init.as_fd(), namespaces)
            .map_err(InitError::step("enter the container's namespaces"))?;
    }
    if instructions.user_namespace {
        let root = rustix::process::Uid::ROOT;
        rustix::thread::set_thread_res_gid(
            rustix::process::Gid::ROOT,
            rustix::process::Gid::ROOT,
            rustix::process::Gid::ROOT,
        )
        .map_err(InitError::step("become the container's root group"))?;
        rustix::thread::set_thread_res_uid(root, root, root)
            .map_err(InitError::step("become the container's root user"))?;
    }
    rustix::process::setsid().map_err(InitError::step("make a session"))?;
    let process = instructions.process;
    let terminal = match process.terminal {
        None => None,
        Some(size) => {
            let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
            let root = rustix::fs::open("/", flags, rustix::fs::Mode::empty())
                .map_err(InitError::step("open the container's root"))?;
            let pty = terminal::open(&Rootfs::new(root), size, process.user.uid)?;
            Some(terminal::enter(pty)?)
        }
    };
    Ok((process, terminal))
}

/// Takes over a descriptor that was inherited for this purpose.
fn take(fd: RawFd) -> OwnedFd {
    // SAFETY: the agent opened each descriptor that the instructions name for this process alone,
    // and each is named once.
    unsafe { sys::inherited_fd(fd) }
}
