//! Everything that becomes a root file system.
//!
//! [`initramfs`] packs the guest's first file system: the agent, and what the kernel itself needs
//! to start it. [`bundle`] makes OCI bundles, from a directory or from an image that [`image`] has
//! found and [`unpack`] lays out. `xtask` and the `rootfs-builder` binary call this library. It
//! knows nothing of virtual machines, and never runs a program.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod image;
pub mod initramfs;
pub mod tarball;
pub mod unpack;

/// What a long piece of work tells its caller while it goes on, and asks of it.
pub trait Observer {
    /// A layer begins: its number from 1, how many there are, what it is called, and how many
    /// bytes will be read of it.
    fn layer(&self, number: usize, count: usize, name: &str, bytes: u64);
    /// So many more bytes of the layer were read.
    fn advance(&self, bytes: u64);
    /// Something was left out that the user may miss: one line, without full stop.
    fn warning(&self, text: &str);
    /// Whether the work should end, as if it had failed.
    fn is_cancelled(&self) -> bool;
}

/// An observer that says nothing and never cancels.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn layer(&self, _: usize, _: usize, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn warning(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// How much an image may ask for. The defaults are above what real images need and
/// below what fills a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all layers together, uncompressed: the guard against decompression bombs. No file
    /// may be longer either, holes included.
    pub unpacked_bytes: u64,
    /// Objects that may be made in the root file system, by all layers together.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 64 << 30,
            entries: 2_000_000,
        }
    }
}

#[cfg(test)]
mod testing;
