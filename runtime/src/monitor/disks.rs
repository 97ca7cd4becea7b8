//! Opens the block devices of the host that a VM gets as disks. Called by [`super::vm`].

use std::{io, os::fd::OwnedFd, path::Path};

use lazaret_protocol::vm::{BlockConfig, DeviceConfig, VmConfig};
use rustix::{
    fs::{FileType, Mode, OFlags, SeekFrom, fstat, makedev, open},
    io::Errno,
};

use super::vm::VmError;
use crate::plan::HostDisk;

/// Opens `disks`, which `vm` has in the same order. One that nobody can write to is one that the guest
/// may only read: `vm` is told.
///
/// # Errors
/// [`VmError::Disk`].
pub(super) fn open_all(disks: &[HostDisk], vm: &mut VmConfig) -> Result<Vec<OwnedFd>, VmError> {
    let configs = vm.devices.iter_mut().filter_map(|device| match device {
        DeviceConfig::Block(config) => Some(config),
        _ => None,
    });
    let open = |(disk, config): (&HostDisk, &mut BlockConfig)| match open_disk(disk) {
        Ok((fd, readonly)) => {
            config.readonly = readonly;
            Ok(fd)
        }
        Err(source) => Err(VmError::Disk {
            field: disk.field.clone(),
            serial: disk.serial(),
            source,
        }),
    };
    disks.iter().zip(configs).map(open).collect()
}

/// Opens a disk; the second value says whether only for reading.
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
    if rustix::fs::seek(&fd, SeekFrom::End(0))? == 0 {
        return Err(io::Error::other("it has no sector"));
    }
    Ok((fd, readonly))
}
