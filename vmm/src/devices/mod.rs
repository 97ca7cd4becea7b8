//! The virtio devices, a folder each, all of the same shape: `mod.rs` (the section of the virtio
//! specification, constants and limits), `device.rs` (configuration space, features, life cycle),
//! `worker.rs` (the queues), `backend.rs` (the host side) and `tests.rs`.
//!
//! Each folder offers `from_config`; [`from_config`] here is the one place that knows them all.

pub mod block;
pub mod console;
pub mod fs;
pub mod rng;
mod serve;
pub mod vsock;

use lazaret_protocol::vm::DeviceConfig;

use crate::{
    fds::{FdError, Fds},
    virtio::device::VirtioDevice,
};

/// Why a device could not be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A descriptor that the configuration names is not to be had.
    #[error("descriptor of a device")]
    Descriptor(#[from] FdError),
    /// The console cannot be made.
    #[error("console device")]
    Console(#[from] console::ConsoleError),
    /// A disk cannot be served.
    #[error("blk device")]
    Block(#[from] block::BlockError),
    /// A shared directory cannot be served.
    #[error("fs device")]
    Fs(#[from] fs::FsError),
}

/// Makes the device that `config` describes, taking its descriptors from `fds`.
///
/// # Errors
/// The device's own; its message names the field.
pub fn from_config(
    config: &DeviceConfig,
    fds: &mut Fds,
) -> Result<Box<dyn VirtioDevice>, DeviceError> {
    match config {
        DeviceConfig::Console(config) => Ok(Box::new(console::Console::from_config(config, fds)?)),
        DeviceConfig::Rng => Ok(Box::new(rng::Rng::default())),
        DeviceConfig::Block(config) => Ok(Box::new(block::Block::from_config(config, fds)?)),
        DeviceConfig::Fs(config) => Ok(Box::new(fs::Fs::from_config(config, fds)?)),
        DeviceConfig::Vsock(config) => Ok(Box::new(vsock::Vsock::from_config(config, fds)?)),
    }
}
