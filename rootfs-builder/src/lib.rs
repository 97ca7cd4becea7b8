//! Everything that becomes a root file system.
//!
//! [`initramfs`] packs the guest's first file system: the agent, and what the kernel itself needs
//! to start it. `xtask` and the `rootfs-builder` binary call this library. It knows nothing of
//! virtual machines, and never runs a program.

#![forbid(unsafe_code)]

pub mod initramfs;
