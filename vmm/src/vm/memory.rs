//! Guest memory: private anonymous memory of this process around the 32-bit MMIO hole. The
//! builder creates it, the boot loader maps files into it; nothing here knows what they are.

use std::{fs::File, io, os::fd::AsRawFd};

use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    mmap::MmapRegionBuilder,
};

/// First guest address of the hole in which devices, the IOAPIC and the local APICs lie.
pub const HOLE_START: u64 = 3 << 30;
/// First guest address past the hole.
pub const HOLE_END: u64 = 4 << 30;
/// Least guest memory: a Linux kernel and its initial file system.
pub const MEMORY_MIN_MIB: u64 = 16;
/// Most guest memory: 1 TiB, well within the 46 physical address bits of current hosts.
pub const MEMORY_MAX_MIB: u64 = 1 << 20;
/// Bytes of a page, the granularity of mappings.
pub const PAGE_BYTES: u64 = 4096;

const MIB: u64 = 1 << 20;
const HUGE_PAGE_MIB: u64 = 2;

/// Why guest memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is out of range.
    #[error("memory_mib: {mib} is not between {MEMORY_MIN_MIB} and {MEMORY_MAX_MIB}")]
    Size {
        /// What was asked for.
        mib: u64,
    },
    /// The size is no whole number of huge pages.
    #[error("memory_mib: {mib} is no multiple of the huge page size of {HUGE_PAGE_MIB} MiB")]
    HugePageSize {
        /// What was asked for.
        mib: u64,
    },
    /// The host has not enough address space or huge pages.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// What was asked for.
        mib: u64,
        /// What the kernel says.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The regions do not form a valid address space.
    #[error("cannot lay out guest memory")]
    Layout(#[source] vm_memory::GuestRegionCollectionError),
}

/// Start and length in bytes of each region of a guest with `bytes` of memory.
pub fn layout(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(HOLE_START);
    let mut regions = vec![(0, low)];
    if bytes > low {
        regions.push((HOLE_END, bytes - low));
    }
    regions
}

/// Maps `memory_mib` MiB, touching none of it.
///
/// # Errors
/// When the size is out of range or the host cannot provide it. Without huge pages nothing is
/// reserved; huge pages are reserved here, so that a small pool fails now and not with a signal.
pub fn create(memory_mib: u64, huge_pages: bool) -> Result<GuestMemoryMmap, MemoryError> {
    let mib = memory_mib;
    if !(MEMORY_MIN_MIB..=MEMORY_MAX_MIB).contains(&mib) {
        return Err(MemoryError::Size { mib });
    }
    if huge_pages && !mib.is_multiple_of(HUGE_PAGE_MIB) {
        return Err(MemoryError::HugePageSize { mib });
    }
    let backing = if huge_pages {
        libc::MAP_HUGETLB | libc::MAP_HUGE_2MB
    } else {
        libc::MAP_NORESERVE
    };
    let regions = layout(mib * MIB)
        .into_iter()
        .map(|(start, bytes)| {
            let size = usize::try_from(bytes).expect("addresses have 64 bits");
            let mapping = MmapRegionBuilder::new(size)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | backing)
                .with_hugetlbfs(huge_pages)
                .build()
                .map_err(|source| MemoryError::Map { mib, source })?;
            Ok(GuestRegionMmap::new(mapping, GuestAddress(start))
                .expect("the layout ends below 2^64"))
        })
        .collect::<Result<Vec<_>, MemoryError>>()?;
    let memory = GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Layout)?;
    if !huge_pages {
        keep_small_pages(&memory);
    }
    tracing::debug!("guest memory mapped");
    Ok(memory)
}

/// Asks for small pages in the first 2 MiB. The VMM and the kernel's start touch a dozen of them;
/// zeroing a transparent huge page for that takes as long as all else the VMM does. Elsewhere the
/// host's setting decides: a kernel that boots touches memory densely, and huge pages save more
/// faults than they cost.
fn keep_small_pages(memory: &GuestMemoryMmap) {
    let size = usize::try_from(HUGE_PAGE_MIB * MIB).expect("2 MiB fit");
    let Ok(start) = memory.get_slice(GuestAddress(0), size) else {
        return;
    };
    let host = start.ptr_guard_mut().as_ptr();
    // SAFETY: the range belongs to guest memory, which stays mapped; the advice changes how its
    // pages are provided, not what they hold.
    let _ = unsafe { libc::madvise(host.cast(), size, libc::MADV_NOHUGEPAGE) };
}

/// Whether `memory` consists of pages that a file can be mapped over.
pub fn can_map_files(memory: &GuestMemoryMmap) -> bool {
    memory
        .iter()
        .all(|region| region.is_hugetlbfs() != Some(true))
}

/// Replaces the pages at `address` by a private mapping of `file`: what the guest writes there
/// stays the guest's, what it reads shares the host's page cache. `address`, `offset` and `bytes`
/// must be multiples of [`PAGE_BYTES`].
///
/// # Errors
/// When the range is not aligned, not within one region, or the file cannot be mapped.
pub fn map_file(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    file: &File,
    offset: u64,
    bytes: u64,
) -> io::Result<()> {
    let aligned = |value: u64| value.is_multiple_of(PAGE_BYTES);
    let size = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    if !aligned(address.raw_value()) || !aligned(bytes) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let pages = memory
        .get_slice(address, size)
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    let host = pages.ptr_guard_mut().as_ptr();
    // SAFETY: `host` and `size` are whole pages of one region of guest memory, which this process
    // mapped and keeps mapped; guest memory is accessed by volatile operations only, so that its
    // content may change at any time, as it does here.
    let mapped = unsafe {
        libc::mmap(
            host.cast(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
