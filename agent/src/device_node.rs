//! Device nodes for containers in a user namespace, in which none can be made: the agent makes them,
//! as they shall be, and hands them over as mounts. Called by [`crate::container`].
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use lazaret_protocol::container::{CreateContainer, DeviceKind, DeviceNode, IdMapping};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, makedev, mknodat, unlinkat,
};
use rustix::io::Errno;

use crate::errno::Os;
use crate::mounts;

/// A node could not be made.
#[derive(Debug, thiserror::Error)]
#[error("device {path}")]
pub struct DeviceNodeError {
    path: String,
    #[source]
    source: Os,
}

/// Makes the container's nodes in `directory`, each an unattached mount. There is none for a pipe,
/// which the container makes itself. They can be removed once they are mounted.
///
/// # Errors
/// [`DeviceNodeError`], which names the device.
pub fn make_all(
    container: &CreateContainer,
    directory: &Path,
) -> Result<Vec<Option<OwnedFd>>, DeviceNodeError> {
    let make = |(index, device): (usize, &DeviceNode)| {
        let kind = match device.kind {
            DeviceKind::Character => FileType::CharacterDevice,
            DeviceKind::Block => FileType::BlockDevice,
            DeviceKind::Fifo => return Ok(None),
        };
        let uid = outside(&container.uid_mappings, device.uid);
        let gid = outside(&container.gid_mappings, device.gid);
        let number = makedev(device.major, device.minor);
        let mode = Mode::from_raw_mode(device.mode);
        let place = place(directory, &container.id, index);
        mknodat(CWD, &place, kind, mode, number)
            .and_then(|()| finish(&place, mode, uid, gid))
            .map(Some)
            .map_err(|errno| DeviceNodeError {
                path: device.path.clone(),
                source: Os(errno),
            })
    };
    let made: Result<Vec<_>, _> = container.devices.iter().enumerate().map(make).collect();
    if made.is_err() {
        remove_all(&container.id, container.devices.len(), directory);
    }
    made
}

/// Removes the nodes of the container's `count` devices, as far as there are any. Where they are
/// mounted they stay.
pub fn remove_all(id: &str, count: usize, directory: &Path) {
    for index in 0..count {
        // Pipes have none.
        let _ = unlinkat(CWD, place(directory, id, index), AtFlags::empty());
    }
}

/// Where a node is: a mount needs its source to be there.
fn place(directory: &Path, id: &str, index: usize) -> PathBuf {
    directory.join(format!("device-{index}-{id}"))
}

fn finish(place: &Path, mode: Mode, uid: Option<u32>, gid: Option<u32>) -> Result<OwnedFd, Errno> {
    let (Some(uid), Some(gid)) = (uid, gid) else {
        return Err(Errno::INVAL);
    };
    // Whatever the umask is.
    chmodat(CWD, place, mode, AtFlags::empty())?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    chownat(CWD, place, Some(uid), Some(gid), AtFlags::empty())?;
    mounts::clone_tree(CWD, place, false)
}

/// What an id of the container is outside of it; `None` if it is nothing there.
fn outside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    let found = mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id)?;
        (offset < mapping.size).then(|| mapping.host_id.checked_add(offset))
    });
    found.flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_outwards() {
        let mapping = |container_id, host_id, size| IdMapping {
            container_id,
            host_id,
            size,
        };
        let mappings = [mapping(0, 1_000, 10), mapping(10, 5_000, u32::MAX - 10)];
        for (id, expected) in [
            (0, Some(1_000)),
            (9, Some(1_009)),
            (10, Some(5_000)),
            (u32::MAX - 1, None),
        ] {
            assert_eq!(outside(&mappings, id), expected, "{id}");
        }
        assert_eq!(outside(&mappings[..1], 10), None);
        assert_eq!(outside(&[], 0), None);
    }
}
