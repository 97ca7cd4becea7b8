//! Where the VMM puts its tables in the first megabyte of guest memory. The kernel is loaded above
//! it, so that nothing overlaps; every address is free in the PC's memory map.

/// Global descriptor table of the first vCPU.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH protocol, followed by its module and memory map tables.
pub const HVM_START_INFO: u64 = 0x6000;
/// `boot_params` of the Linux protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// `setup_data` with the seed of the kernel's random numbers.
pub(super) const SEED: u64 = 0x8000;
/// Page tables of the first vCPU: three pages.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line, up to [`super::cmdline::MAX_BYTES`] and a zero.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// MP configuration table, at most 3 KiB; the memory map leaves it out.
pub(super) const MP_TABLE: u64 = 0x9_f000;
/// MP floating pointer: the last kilobyte of base memory is one of the three places where the
/// specification has it looked for.
pub(super) const MP_POINTER: u64 = 0x9_fc00;
/// Where the legacy video and BIOS area ends and the kernel may lie.
pub(super) const HIGH_START: u64 = 0x10_0000;
