//! Guests of a few instructions: a script of accesses that 32-bit code performs one by one, and
//! kernels of raw code; and what runs them, `/dev/kvm`. For the tests of this crate and, by path, those of the process; it knows
//! nothing of the VMM.

use std::{fs::File, io::Write, os::fd::OwnedFd};

/// Where code is loaded and entered.
pub(crate) const CODE: u64 = 0x10_0000;
const INTERRUPT_TABLE: usize = 0x1000;
const SCRIPT: usize = 0x2000;
/// Counts the interrupts a script's guest has had.
pub(crate) const INTERRUPTS: u64 = 0x10_3000;
/// First interrupt vector of GSI 0 in scripts.
pub(crate) const VECTOR_START: u32 = 0x30;

/// `/dev/kvm`. Without it none of these tests can say anything.
pub(crate) fn kvm() -> OwnedFd {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("these tests need /dev/kvm, readable and writable")
        .into()
}

/// What runs a script:
///
/// ```text
///   start:     mov $0x80000, %esp; lidt 0x100200; mov $0x102000, %esi
///   next:      lodsl; mov %eax, %ecx; lodsl; mov %eax, %edx; lodsl
///              cmp $1, %ecx; je write; … cmp $6, %ecx; je until
///              mov $0xfe, %al; out %al, $0x64; hlt
///   write:     mov %eax, (%edx); jmp next
///   read:      mov (%edx), %ecx; mov %ecx, (%eax); jmp next
///   wait:      cli; cmp %eax, (%edx); je next; sti; hlt; jmp wait
///   outb:      out %al, %dx; jmp next
///   inb:       mov %eax, %ecx; in %dx, %al; mov %al, (%ecx); jmp next
///   until:     cmp %eax, (%edx); jne until; jmp next
///   interrupt: incl 0x103000; movl $0, 0xfee000b0; add $12, %esp; jmp wait (at 0x100100)
///              .word 0x7ff; .long 0x101000                                 (at 0x100200)
/// ```
///
/// Interrupts come at `hlt` only, so that the handler needs no `iret` (which a KVM that emulates
/// the guest's kernel mode may lack).
const START: [u8; 94] = [
    0xbc, 0x00, 0x00, 0x08, 0x00, 0x0f, 0x01, 0x1d, 0x00, 0x02, 0x10, 0x00, 0xbe, 0x00, 0x20, 0x10,
    0x00, 0xad, 0x89, 0xc1, 0xad, 0x89, 0xc2, 0xad, 0x83, 0xf9, 0x01, 0x74, 0x1e, 0x83, 0xf9, 0x02,
    0x74, 0x1d, 0x83, 0xf9, 0x03, 0x74, 0x1e, 0x83, 0xf9, 0x04, 0x74, 0x22, 0x83, 0xf9, 0x05, 0x74,
    0x20, 0x83, 0xf9, 0x06, 0x74, 0x22, 0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0x89, 0x02, 0xeb, 0xd2, 0x8b,
    0x0a, 0x89, 0x08, 0xeb, 0xcc, 0xfa, 0x39, 0x02, 0x74, 0xc7, 0xfb, 0xf4, 0xeb, 0xf7, 0xee, 0xeb,
    0xc0, 0x89, 0xc1, 0xec, 0x88, 0x01, 0xeb, 0xb9, 0x39, 0x02, 0x75, 0xfc, 0xeb, 0xb3,
];
const INTERRUPT_HANDLER: [u8; 24] = [
    0xff, 0x05, 0x00, 0x30, 0x10, 0x00, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00,
    0x83, 0xc4, 0x0c, 0xe9, 0x2d, 0xff, 0xff, 0xff,
];
const INTERRUPT_TABLE_POINTER: [u8; 6] = [0xff, 0x07, 0x00, 0x10, 0x10, 0x00];

/// One step of a script; addresses are guest physical, accesses 32 bits wide.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// Writes to memory or a register.
    Write(u32, u32),
    /// Reads from the first address and stores at the second.
    Read(u32, u32),
    /// Halts until an interrupt has made the memory at the address equal the value.
    HaltUntil(u32, u32),
    /// Writes a byte to a port.
    Out(u16, u8),
    /// Reads a byte from a port and stores it at the address.
    In(u16, u32),
    /// Spins until the memory at the address equals the value.
    SpinUntil(u32, u32),
}

/// Steps that let GSI `gsi` interrupt the first vCPU.
pub(crate) fn enable_interrupt(gsi: u32) -> Vec<Step> {
    let (select, window) = (0xfec0_0000, 0xfec0_0010);
    let entry = 0x10 + 2 * gsi;
    vec![
        // The older interrupt controllers have the same inputs: what they deliver would be taken
        // for the device's.
        Step::Out(0x21, 0xff),
        Step::Out(0xa1, 0xff),
        Step::Write(0xfee0_00f0, 0x1ff),
        Step::Write(select, entry + 1),
        Step::Write(window, 0),
        Step::Write(select, entry),
        Step::Write(window, VECTOR_START + gsi),
    ]
}

/// A PVH kernel that performs `steps` and resets.
pub(crate) fn script(steps: &[Step]) -> File {
    let mut code = vec![0; SCRIPT];
    code[..START.len()].copy_from_slice(&START);
    code[0x100..][..INTERRUPT_HANDLER.len()].copy_from_slice(&INTERRUPT_HANDLER);
    code[0x200..][..INTERRUPT_TABLE_POINTER.len()].copy_from_slice(&INTERRUPT_TABLE_POINTER);
    // 256 gates to the handler at 0x100100, code selector 0x10.
    let gate = 0x0010_8e00_0010_0100_u64;
    for entry in code[INTERRUPT_TABLE..][..256 * 8].chunks_exact_mut(8) {
        entry.copy_from_slice(&gate.to_le_bytes());
    }
    for step in steps {
        let words = match *step {
            Step::Write(address, value) => [1, address, value],
            Step::Read(address, to) => [2, address, to],
            Step::HaltUntil(address, value) => [3, address, value],
            Step::Out(port, value) => [4, port.into(), value.into()],
            Step::In(port, to) => [5, port.into(), to],
            Step::SpinUntil(address, value) => [6, address, value],
        };
        code.extend(words.into_iter().flat_map(u32::to_le_bytes));
    }
    code.extend([0; 12]);
    kernel(&code, true)
}

/// An ELF kernel of raw `code`, entered at its start: by PVH, or else in 64-bit mode.
pub(crate) fn kernel(code: &[u8], pvh: bool) -> File {
    let segments: u16 = if pvh { 2 } else { 1 };
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend([2_u16, 62].into_iter().flat_map(u16::to_le_bytes));
    image.extend(1_u32.to_le_bytes());
    image.extend([CODE, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend(0_u32.to_le_bytes());
    let sizes = [64, 56, segments, 0, 0, 0];
    image.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
    let mut segment = |kind: u32, offset: u64, address: u64, bytes: u64| {
        image.extend([kind, 7].into_iter().flat_map(u32::to_le_bytes));
        let fields = [offset, address, address, bytes, bytes, 4096];
        image.extend(fields.into_iter().flat_map(u64::to_le_bytes));
    };
    segment(1, 0x1000, CODE, code.len() as u64);
    if pvh {
        segment(4, 0x200, 0, 20);
    }
    image.resize(0x200, 0);
    image.extend([4_u32, 4, 18].into_iter().flat_map(u32::to_le_bytes));
    image.extend(b"Xen\0");
    image.extend((CODE as u32).to_le_bytes());
    image.resize(0x1000, 0);
    image.extend(code);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    file
}
