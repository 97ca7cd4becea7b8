//! Opens the block devices of the host that a VM gets as disks. Called by [`super::vm`].

use std::{io, os::fd::OwnedFd, path::Path};

use lazaret_protocol::vm::{BlockConfig, DeviceConfig, VmConfig};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, makedev, open},
    io::Errno,
};

use super::vm::VmError;
use crate::plan::HostDisk;

/// Opens `disks`. One that nobody can write to is one that the guest may only read: `vm` is told.
///
/// # Errors
/// [`VmError::Disk`].
pub(super) fn open_all(disks: &[HostDisk], vm: &mut VmConfig) -> Result<Vec<OwnedFd>, VmError> {
    let mut opened = Vec::new();
    for disk in disks {
        let (fd, readonly) = open_disk(disk).map_err(|source| VmError::Disk {
            field: disk.field.clone(),
            serial: disk.serial(),
            source,
        })?;
        if readonly && let Some(block) = config(vm, &disk.serial()) {
            block.readonly = true;
        }
        opened.push(fd);
    }
    Ok(opened)
}

fn config<'a>(vm: &'a mut VmConfig, serial: &str) -> Option<&'a mut BlockConfig> {
    vm.devices.iter_mut().find_map(|device| match device {
        DeviceConfig::Block(block) if block.serial == serial => Some(block),
        _ => None,
    })
}

fn open_disk(disk: &HostDisk) -> io::Result<(OwnedFd, bool)> {
    let uevent = format!("/sys/dev/block/{}:{}/uevent", disk.major, disk.minor);
    let uevent = std::fs::read_to_string(uevent)?;
    let name = uevent
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other("the kernel has no name for it"))?;
    let path = Path::new("/dev").join(name);
    let open = |access| open(&path, access | OFlags::CLOEXEC, Mode::empty());
    let (fd, readonly) = match disk.readonly {
        true => (open(OFlags::RDONLY)?, true),
        false => match open(OFlags::RDWR) {
            Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) => (open(OFlags::RDONLY)?, true),
            opened => (opened?, false),
        },
    };
    let stat = fstat(&fd)?;
    let is_it = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
        && stat.st_rdev == makedev(disk.major, disk.minor);
    if !is_it {
        let message = format!("{} is another device", path.display());
        return Err(io::Error::other(message));
    }
    Ok((fd, readonly))
}
