//! What lies in guest memory when the first vCPU starts: kernel ([`kernel`]), initial file system,
//! command line ([`cmdline`]), what the boot protocol hands over ([`params`]) and the description
//! of processors and interrupts ([`mptable`]). The builder calls [`load`]; KVM is not known here.

use std::fs::File;

use rustix::rand::GetRandomFlags;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use crate::vm::memory;

pub mod cmdline;
pub mod kernel;
mod layout;
pub mod mptable;
pub mod params;
#[cfg(test)]
mod tests;

pub use kernel::{Entry, KernelError, Protocol};
pub use layout::{GDT, HVM_START_INFO, PAGE_TABLES, ZERO_PAGE};

/// What the guest boots.
#[derive(Debug)]
pub struct Image {
    /// ELF kernel.
    pub kernel: File,
    /// Initial file system archive.
    pub initramfs: Option<File>,
    /// Complete command line.
    pub command_line: String,
    /// Number of processors.
    pub vcpus: u8,
}

/// Where the initial file system lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest address, page-aligned.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Why the guest's memory could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel cannot be loaded.
    #[error("kernel")]
    Kernel(#[source] KernelError),
    /// The initial file system cannot be read.
    #[error("initramfs: cannot read")]
    ReadInitramfs(#[source] std::io::Error),
    /// The initial file system does not fit between the kernel and the end of low memory.
    #[error("initramfs: {bytes} bytes do not fit into guest memory above the kernel")]
    InitramfsTooLarge {
        /// Its length.
        bytes: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("command_line: {bytes} bytes exceed the maximum of {max}", max = cmdline::MAX_BYTES)]
    CommandLineTooLong {
        /// Its length, devices included.
        bytes: usize,
    },
    /// The command line holds a byte that would end it.
    #[error("command_line: contains a zero byte")]
    CommandLineZero,
    /// A table of the VMM does not fit into guest memory.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// The table.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
}

/// Prepares guest memory and returns where the first vCPU starts.
///
/// # Errors
/// When the image is malformed, unreadable or does not fit.
pub fn load(memory: &GuestMemoryMmap, image: &Image) -> Result<Entry, BootError> {
    tracing::debug!("VM assembled");
    let kernel = kernel::load(memory, &image.kernel).map_err(BootError::Kernel)?;
    tracing::debug!("kernel loaded");
    let initramfs = image
        .initramfs
        .as_ref()
        .map(|file| load_initramfs(memory, file, kernel.end))
        .transpose()?;
    write_command_line(memory, &image.command_line)?;
    mptable::write(memory, image.vcpus).map_err(|source| BootError::Write {
        what: "the MP table",
        source,
    })?;
    let command_line_bytes = image.command_line.len();
    match kernel.entry.protocol {
        Protocol::Linux64 => params::write_zero_page(memory, command_line_bytes, initramfs, seed()),
        Protocol::Pvh => params::write_hvm_start_info(memory, initramfs),
    }
    .map_err(|source| BootError::Write {
        what: "the boot parameters",
        source,
    })?;
    tracing::debug!("initramfs and boot parameters placed");
    Ok(kernel.entry)
}

/// Random bytes of the host, unless it has none.
fn seed() -> Option<[u8; params::SEED_BYTES]> {
    let mut seed = [0; params::SEED_BYTES];
    // So few come at once or not at all.
    let bytes = rustix::rand::getrandom(&mut seed, GetRandomFlags::empty()).ok()?;
    (bytes == seed.len()).then_some(seed)
}

/// Puts the archive as high in low memory as it fits, so that the kernel's own early allocations
/// stay clear of it.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &File,
    kernel_end: u64,
) -> Result<Initramfs, BootError> {
    let bytes = file.metadata().map_err(BootError::ReadInitramfs)?.len();
    let low_end = memory
        .find_region(GuestAddress(0))
        .map_or(0, |region| region.len());
    let address = low_end
        .checked_sub(bytes)
        .map(|start| start / memory::PAGE_BYTES * memory::PAGE_BYTES)
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::InitramfsTooLarge { bytes })?;
    kernel::place(memory, file, 0, GuestAddress(address), bytes)
        .map_err(BootError::ReadInitramfs)?;
    Ok(Initramfs { address, bytes })
}

fn write_command_line(memory: &GuestMemoryMmap, command_line: &str) -> Result<(), BootError> {
    let bytes = command_line.len();
    if bytes > cmdline::MAX_BYTES {
        return Err(BootError::CommandLineTooLong { bytes });
    }
    if command_line.bytes().any(|byte| byte == 0) {
        return Err(BootError::CommandLineZero);
    }
    let end = GuestAddress(layout::COMMAND_LINE).unchecked_add(bytes as u64);
    memory
        .write_slice(command_line.as_bytes(), GuestAddress(layout::COMMAND_LINE))
        .and_then(|()| memory.write_obj(0_u8, end))
        .map_err(|source| BootError::Write {
            what: "the command line",
            source,
        })
}
