//! The container's `/dev`: the nodes and links every container has (runtime-spec, "Default
//! Devices" and "Dev symbolic links") and those it asks for. Called by [`super::setup`].
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use lazaret_protocol::container::{CreateContainer, DeviceKind, DeviceNode, MountSource};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, makedev, mknodat, openat, statat,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::InitError;
use crate::errno::Os;
use crate::mounts;
use crate::rootfs::{Missing, Rootfs};

/// Name and minor or major/minor of the default character devices, all 0666 and root's.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Name and target of the symbolic links.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The link that is there if its target is (runc).
const CORE: (&str, &str) = ("core", "/proc/kcore");

/// Makes all nodes and links. In a user namespace nodes cannot be made: the devices' own are mounted
/// where there are `nodes`, else the guest's are bound.
pub(super) fn create(
    rootfs: &Rootfs,
    container: &CreateContainer,
    user_namespace: bool,
    nodes: Vec<Option<OwnedFd>>,
) -> Result<(), InitError> {
    // A bound /dev is the caller's own, with whatever is in it.
    let bound = container.mounts.iter().any(|mount| {
        !matches!(mount.source, MountSource::Filesystem { .. })
            && mount.destination.trim_end_matches('/') == "/dev"
    });
    if !bound {
        create_defaults(rootfs, &container.devices, user_namespace)?;
    }
    let mut nodes = nodes.into_iter();
    for device in &container.devices {
        match nodes.next().flatten() {
            Some(node) => place_node(rootfs, device, &node)?,
            None => create_device(rootfs, device, user_namespace)?,
        }
    }
    Ok(())
}

fn create_defaults(
    rootfs: &Rootfs,
    listed: &[DeviceNode],
    user_namespace: bool,
) -> Result<(), InitError> {
    let dev = rootfs.open_or_create("/dev", Missing::Directory)?;
    for (name, major, minor) in DEFAULTS {
        let path = format!("/dev/{name}");
        // The caller may want another mode or owner.
        if listed.iter().any(|device| device.path == path) {
            continue;
        }
        if user_namespace {
            bind_guest_device(rootfs, &path, &path)?;
            continue;
        }
        let mode = Mode::from_raw_mode(0o666);
        let node = mknodat(
            &dev,
            name,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        );
        accept_existing(node).map_err(on_device(&path))?;
    }
    let core = Path::new(CORE.1).exists().then_some(CORE);
    for (name, target) in LINKS.into_iter().chain(core) {
        let path = format!("/dev/{name}");
        let linked = match symlinkat(target, &dev, name) {
            // An image may have a node here, which would lead to no pty of the container.
            Err(Errno::EXIST) if name == "ptmx" => {
                unlinkat(&dev, name, AtFlags::empty()).and_then(|()| symlinkat(target, &dev, name))
            }
            linked => accept_existing(linked),
        };
        linked.map_err(on_device(&path))?;
    }
    Ok(())
}

/// Mounts a node that was made outside of the user namespace.
fn place_node(rootfs: &Rootfs, device: &DeviceNode, node: &OwnedFd) -> Result<(), InitError> {
    let path = device.path.as_str();
    let destination = rootfs.open_or_create(path, Missing::File)?;
    Ok(mounts::place_over(node.as_fd(), destination.as_fd(), path)?)
}

fn create_device(
    rootfs: &Rootfs,
    device: &DeviceNode,
    user_namespace: bool,
) -> Result<(), InitError> {
    let (directory, name) = device.path.rsplit_once('/').unwrap_or(("", &device.path));
    if name.is_empty() || name == "." || name == ".." {
        return Err(on_device(&device.path)(Errno::INVAL));
    }
    if user_namespace && device.kind != DeviceKind::Fifo {
        let guest_path = guest_path(device).map_err(on_device(&device.path))?;
        return bind_guest_device(rootfs, &device.path, &guest_path);
    }
    let parent = rootfs.open_or_create(directory, Missing::Directory)?;
    let kind = match device.kind {
        DeviceKind::Character => FileType::CharacterDevice,
        DeviceKind::Block => FileType::BlockDevice,
        DeviceKind::Fifo => FileType::Fifo,
    };
    let number = makedev(device.major, device.minor);
    let mode = Mode::from_raw_mode(device.mode);
    match mknodat(&parent, name, kind, mode, number) {
        Ok(()) => chown(parent.as_fd(), name, device),
        // Anything but this very device must not pass for it (config-linux.md "Devices").
        Err(Errno::EXIST) => match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat)
                if FileType::from_raw_mode(stat.st_mode) == kind
                    && (kind == FileType::Fifo || stat.st_rdev == number) =>
            {
                Ok(())
            }
            Ok(_) => Err(Errno::EXIST),
            Err(errno) => Err(errno),
        },
        Err(errno) => Err(errno),
    }
    .map_err(on_device(&device.path))
}

fn chown(parent: BorrowedFd<'_>, name: &str, device: &DeviceNode) -> Result<(), Errno> {
    if (device.uid, device.gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
    chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// Where the guest has a device, which the kernel knows by its numbers.
fn guest_path(device: &DeviceNode) -> Result<String, Errno> {
    let kind = if device.kind == DeviceKind::Block {
        "block"
    } else {
        "char"
    };
    let (major, minor) = (device.major, device.minor);
    let event = std::fs::read_to_string(format!("/sys/dev/{kind}/{major}:{minor}/uevent"))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map(|name| format!("/dev/{name}")).ok_or(Errno::NODEV)
}

/// Binds the guest's device at `guest_path` on `path` of the container.
fn bind_guest_device(rootfs: &Rootfs, path: &str, guest_path: &str) -> Result<(), InitError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = openat(CWD, guest_path, flags, Mode::empty()).map_err(on_device(path))?;
    let destination = rootfs.open_or_create(path, Missing::File)?;
    Ok(mounts::bind_over(
        source.as_fd(),
        destination.as_fd(),
        path,
    )?)
}

fn accept_existing(made: Result<(), Errno>) -> Result<(), Errno> {
    match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    }
}

fn on_device(path: &str) -> impl FnOnce(Errno) -> InitError {
    let path = path.to_owned();
    move |errno| InitError::Device {
        path,
        source: Os(errno),
    }
}
