//! The MP configuration table (Intel MultiProcessor Specification 1.4): how a guest without ACPI
//! learns of its processors, the IOAPIC and the interrupt lines.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

/// Inputs of KVM's IOAPIC: GSI 0 to 23.
pub const IOAPIC_PINS: u8 = 24;
/// Guest address of the IOAPIC.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Guest address of each vCPU's local APIC.
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;

const SPEC_REVISION: u8 = 4;
const APIC_VERSION: u8 = 0x14;
const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;
const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXT_INT: u8 = 3;
const PROCESSOR_ENABLED: u8 = 1;
const PROCESSOR_BOOT: u8 = 2;
/// Family 6 with an on-chip FPU and APIC; guests take the truth from CPUID.
const PROCESSOR_SIGNATURE: u32 = 0x600;
const PROCESSOR_FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Writes pointer and table for `vcpus` processors with APIC ids from 0.
///
/// # Errors
/// When guest memory ends below 640 KiB.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(vcpus), GuestAddress(layout::MP_TABLE))?;
    memory.write_slice(&pointer(), GuestAddress(layout::MP_POINTER))
}

/// The floating pointer structure, §4.1.
fn pointer() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(b"_MP_");
    let table = u32::try_from(layout::MP_TABLE).expect("the table lies below 1 MiB");
    bytes[4..8].copy_from_slice(&table.to_le_bytes());
    bytes[8] = 1; // Length in units of 16 bytes.
    bytes[9] = SPEC_REVISION;
    bytes[10] = checksum(&bytes);
    bytes
}

/// The configuration table, §4.2 and §4.3.
pub(super) fn table(vcpus: u8) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::with_capacity(20 * usize::from(vcpus) + 256);
    for apic_id in 0..vcpus {
        let boot = if apic_id == 0 { PROCESSOR_BOOT } else { 0 };
        entries.extend([ENTRY_PROCESSOR, apic_id, APIC_VERSION]);
        entries.push(PROCESSOR_ENABLED | boot);
        entries.extend(PROCESSOR_SIGNATURE.to_le_bytes());
        entries.extend(PROCESSOR_FEATURES.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([ENTRY_BUS, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([ENTRY_IOAPIC, ioapic_id, APIC_VERSION, 1]);
    entries.extend(IOAPIC_ADDRESS.to_le_bytes());
    // Flags 0: polarity and trigger are those of the bus, for ISA active high and edge, which is
    // what an irqfd delivers.
    for pin in 0..IOAPIC_PINS {
        entries.extend([ENTRY_IO_INTERRUPT, INTERRUPT_INT, 0, 0]);
        entries.extend([ISA_BUS, pin, ioapic_id, pin]);
    }
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_EXT_INT, 0, 0]);
    entries.extend([ISA_BUS, 0, 0, 0]);
    entries.extend([ENTRY_LOCAL_INTERRUPT, INTERRUPT_NMI, 0, 0]);
    entries.extend([ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let count = u16::from(vcpus) + 2 + u16::from(IOAPIC_PINS) + 2;
    let mut table = header(entries.len(), count);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

fn header(entry_bytes: usize, count: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(44);
    header.extend(b"PCMP");
    let bytes = u16::try_from(44 + entry_bytes).expect("255 processors take less than 6 KiB");
    header.extend(bytes.to_le_bytes());
    header.extend([SPEC_REVISION, 0]);
    header.extend(b"LAZARET MICROVM     ");
    header.extend([0; 6]);
    header.extend(count.to_le_bytes());
    header.extend(LOCAL_APIC_ADDRESS.to_le_bytes());
    header.extend([0; 4]);
    header
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}
