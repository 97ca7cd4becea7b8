//! The virtio-serial ports, found in `/dev`.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::inotify;

use crate::wire::Port;

/// Opens a port; waits until the kernel has it.
pub(super) fn open(port: Port) -> Result<File> {
    let path = find(port).with_context(|| format!("finding the port {port:?}"))?;
    File::options()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))
}

/// The port's device node `/dev/vport<device>p<number>`.
fn find(port: Port) -> Result<PathBuf> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE)?;
    loop {
        if let Some(path) = lookup(port)? {
            return Ok(path);
        }
        // One event at least; which one does not matter.
        let mut buffer = [MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&watch, &mut buffer).next()?;
    }
}

fn lookup(port: Port) -> Result<Option<PathBuf>> {
    let ending = format!("p{}", port as u32);
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let name = entry.file_name();
        if name
            .to_str()
            .and_then(|name| name.strip_prefix("vport"))
            .is_some_and(|rest| rest.ends_with(&ending))
        {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
