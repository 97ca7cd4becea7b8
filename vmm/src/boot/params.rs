//! What the two boot protocols hand to the kernel: the zero page of Linux
//! (Documentation/arch/x86/boot.rst, zero-page.rst) and `hvm_start_info` of PVH (Xen's
//! docs/misc/pvh.pandoc). Both carry the memory map, the command line and the initial file system.

use linux_loader::loader::{
    bootparam::{boot_e820_entry, boot_params},
    elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use super::{Initramfs, layout};

const E820_RAM: u32 = 1;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// `setup_data` of this type holds a seed, which the kernel wipes (boot.rst, "setup_data").
const SETUP_RNG_SEED: u32 = 9;
/// Bytes of a seed: what the kernel's generator takes for full.
pub(super) const SEED_BYTES: usize = 32;
/// "Undefined" boot loader.
const LOADER_TYPE: u8 = 0xff;
const PVH_MAGIC: u32 = 0x336e_c578;
/// The version of `hvm_start_info` that has a memory map.
const PVH_VERSION: u32 = 1;

/// Start and length of each range of memory the guest may use: all but the MP table and the
/// legacy area below 1 MiB.
pub(super) fn usable(memory: &GuestMemoryMmap) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, layout::MP_TABLE)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        let from = start.max(layout::HIGH_START);
        if let Some(bytes) = (start + region.len()).checked_sub(from)
            && bytes > 0
        {
            ranges.push((from, bytes));
        }
    }
    ranges
}

/// Writes the zero page for a command line of `command_line_bytes`, and beside it `seed`, if the
/// host has one to give: the guest's random numbers are good from its first instruction on.
pub(super) fn write_zero_page(
    memory: &GuestMemoryMmap,
    command_line_bytes: usize,
    initramfs: Option<Initramfs>,
    seed: Option<[u8; SEED_BYTES]>,
) -> Result<(), GuestMemoryError> {
    let mut page = boot_params::default();
    let header = &mut page.hdr;
    header.boot_flag = BOOT_FLAG;
    header.header = HEADER_MAGIC;
    header.type_of_loader = LOADER_TYPE;
    header.cmd_line_ptr = low32(layout::COMMAND_LINE);
    header.cmdline_size = u32::try_from(command_line_bytes).unwrap_or(u32::MAX);
    if let Some(Initramfs { address, bytes }) = initramfs {
        header.ramdisk_image = low32(address);
        header.ramdisk_size = low32(bytes);
    }
    if let Some(seed) = seed {
        header.setup_data = layout::SEED;
        write_seed(memory, &seed)?;
    }
    let ranges = usable(memory);
    for (entry, (addr, size)) in page.e820_table.iter_mut().zip(&ranges) {
        *entry = boot_e820_entry {
            addr: *addr,
            size: *size,
            type_: E820_RAM,
        };
    }
    page.e820_entries = u8::try_from(ranges.len()).expect("there are three ranges at most");
    memory.write_obj(page, GuestAddress(layout::ZERO_PAGE))
}

/// Writes the only entry of the list of `setup_data`: no next one, type, length, seed.
fn write_seed(memory: &GuestMemoryMmap, seed: &[u8; SEED_BYTES]) -> Result<(), GuestMemoryError> {
    let length = u32::try_from(SEED_BYTES).expect("a seed is short");
    memory.write_obj(0_u64, GuestAddress(layout::SEED))?;
    memory.write_obj(SETUP_RNG_SEED, GuestAddress(layout::SEED + 8))?;
    memory.write_obj(length, GuestAddress(layout::SEED + 12))?;
    memory.write_slice(seed, GuestAddress(layout::SEED + 16))
}

/// Writes the start info, and behind it its tables.
pub(super) fn write_hvm_start_info(
    memory: &GuestMemoryMmap,
    initramfs: Option<Initramfs>,
) -> Result<(), GuestMemoryError> {
    let modules = layout::HVM_START_INFO + size_of::<hvm_start_info>() as u64;
    let map = modules + size_of::<hvm_modlist_entry>() as u64;
    let ranges = usable(memory);
    for (index, (addr, size)) in (0_u64..).zip(&ranges) {
        let entry = hvm_memmap_table_entry {
            addr: *addr,
            size: *size,
            type_: E820_RAM,
            reserved: 0,
        };
        let at = map + index * size_of::<hvm_memmap_table_entry>() as u64;
        memory.write_obj(entry, GuestAddress(at))?;
    }
    if let Some(Initramfs { address, bytes }) = initramfs {
        let module = hvm_modlist_entry {
            paddr: address,
            size: bytes,
            ..Default::default()
        };
        memory.write_obj(module, GuestAddress(modules))?;
    }
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        cmdline_paddr: layout::COMMAND_LINE,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: modules,
        memmap_paddr: map,
        memmap_entries: u32::try_from(ranges.len()).expect("there are three ranges at most"),
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(layout::HVM_START_INFO))
}

/// Low memory ends at 3 GiB: what lies in it fits into 32 bits.
fn low32(value: u64) -> u32 {
    u32::try_from(value).expect("low memory ends below 4 GiB")
}
