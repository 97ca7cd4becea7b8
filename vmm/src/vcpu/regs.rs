//! Registers of the first vCPU when it enters the kernel, for both boot protocols. The other
//! vCPUs wait for the start-up interrupt that the kernel sends them (KVM's reset state).

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::boot::{Entry, GDT, HVM_START_INFO, PAGE_TABLES, Protocol, ZERO_PAGE};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 is always set.
const RFLAGS: u64 = 2;
const PAGE_PRESENT: u64 = 1;
const PAGE_WRITABLE: u64 = 1 << 1;
const PAGE_LARGE: u64 = 1 << 7;
const PAGE_BYTES: u64 = 4096;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const TABLE_ENTRIES: usize = 512;
/// x87 control word after `finit`: all exceptions masked, extended precision.
const FPU_CONTROL: u16 = 0x37f;
/// SSE control and status after reset: all exceptions masked.
const MXCSR: u32 = 0x1f80;

/// `boot.rst`, "64-bit boot protocol": `__BOOT_CS` is 0x10, `__BOOT_DS` 0x18.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// Why the vCPU could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum RegsError {
    /// KVM refused.
    #[error("cannot set {what}")]
    Set {
        /// Which registers.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A table does not fit into guest memory.
    #[error("cannot write {what} to guest memory")]
    Write {
        /// Which table.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: GuestMemoryError,
    },
}

/// Sets the registers of `vcpu` so that it enters the kernel at `entry`, and writes the tables
/// they point at.
///
/// # Errors
/// When KVM refuses a register or guest memory is too small.
pub fn prepare(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: Entry) -> Result<(), RegsError> {
    let fpu = kvm_fpu {
        fcw: FPU_CONTROL,
        mxcsr: MXCSR,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).map_err(set("FPU"))?;
    let mut regs = kvm_regs {
        rip: entry.address,
        rflags: RFLAGS,
        ..Default::default()
    };
    match entry.protocol {
        Protocol::Linux64 => regs.rsi = ZERO_PAGE,
        Protocol::Pvh => regs.rbx = HVM_START_INFO,
    }
    vcpu.set_regs(&regs).map_err(set("general registers"))?;

    let mut sregs = vcpu.get_sregs().map_err(set("segment registers"))?;
    let long_mode = entry.protocol == Protocol::Linux64;
    let table = set_segments(&mut sregs, long_mode);
    memory
        .write_slice(&table, GuestAddress(GDT))
        .map_err(write("the descriptor table"))?;
    sregs.cr0 = CR0_PE | CR0_ET;
    if long_mode {
        write_page_tables(memory).map_err(write("page tables"))?;
        sregs.cr3 = PAGE_TABLES;
        sregs.cr4 = CR4_PAE;
        sregs.cr0 |= CR0_PG;
        sregs.efer = EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs).map_err(set("segment registers"))
}

fn set(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> RegsError {
    move |source| RegsError::Set { what, source }
}

fn write(what: &'static str) -> impl Fn(GuestMemoryError) -> RegsError {
    move |source| RegsError::Write { what, source }
}

/// Flat segments. Returns the descriptor table that holds them.
fn set_segments(sregs: &mut kvm_sregs, long_mode: bool) -> [u8; 40] {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE_SELECTOR,
        type_: 0xb, // Execute, read, accessed.
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..Default::default()
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3, // Read, write, accessed.
        l: 0,
        db: 1,
        ..code
    };
    let tss = kvm_segment {
        selector: TSS_SELECTOR,
        limit: 0x67,
        type_: 0xb, // Busy TSS.
        present: 1,
        ..Default::default()
    };
    sregs.cs = code;
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = tss;
    let mut table = [0; 40];
    for segment in [code, data, tss] {
        let at = usize::from(segment.selector);
        table[at..at + 8].copy_from_slice(&descriptor(&segment).to_le_bytes());
    }
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 39;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    table
}

/// A segment descriptor (AMD64 manual volume 2, §4.7) with base 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 {
        u64::from(segment.limit >> 12)
    } else {
        u64::from(segment.limit)
    };
    (limit & 0xffff)
        | u64::from(segment.type_) << 40
        | u64::from(segment.s) << 44
        | u64::from(segment.dpl) << 45
        | u64::from(segment.present) << 47
        | (limit >> 16 & 0xf) << 48
        | u64::from(segment.l) << 53
        | u64::from(segment.db) << 54
        | u64::from(segment.g) << 55
}

/// Maps the first gigabyte onto itself with 2 MiB pages: kernel, zero page and command line, as
/// `boot.rst` asks for. The kernel makes its own tables at once.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let pointers = PAGE_TABLES + PAGE_BYTES;
    let directory = pointers + PAGE_BYTES;
    let link = PAGE_PRESENT | PAGE_WRITABLE;
    memory.write_obj(pointers | link, GuestAddress(PAGE_TABLES))?;
    memory.write_obj(directory | link, GuestAddress(pointers))?;
    let mut entries = [0; TABLE_ENTRIES * 8];
    for (entry, index) in entries.chunks_exact_mut(8).zip(0_u64..) {
        let value = (index * LARGE_PAGE_BYTES) | link | PAGE_LARGE;
        entry.copy_from_slice(&value.to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(directory))
}
