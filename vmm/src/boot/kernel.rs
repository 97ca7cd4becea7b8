//! Loads an ELF kernel. Pages that lie whole in the file are mapped over guest memory, not
//! copied; what is left at the edges is read. The file is trusted no further than its checks: all
//! addresses, lengths and notes are bounded here.

use std::{fs::File, io, os::unix::fs::FileExt};

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::layout;
use crate::vm::memory::{self, PAGE_BYTES};

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
/// Most program headers: vmlinux has five, and one read gets them all.
const SEGMENTS_MAX: usize = 64;
/// Most bytes of notes: those of vmlinux take some hundred.
const NOTES_MAX_BYTES: u64 = 64 << 10;
/// What is copied at a time when pages cannot be mapped.
const COPY_BYTES: usize = 64 << 10;

const CLASS_64_LITTLE_ENDIAN: [u8; 6] = *b"\x7fELF\x02\x01";
const TYPE_EXECUTABLE: u16 = 2;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const NOTE_PHYS32_ENTRY: u32 = 18;

/// How the first vCPU enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// 64-bit mode at the ELF entry, zero page in `rsi` (Documentation/arch/x86/boot.rst).
    Linux64,
    /// 32-bit mode at the address of the Xen note, start info in `ebx` (PVH).
    Pvh,
}

/// Where the first vCPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Guest physical address.
    pub address: u64,
    /// State it expects.
    pub protocol: Protocol,
}

/// A kernel in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// Where it starts.
    pub entry: Entry,
    /// First guest address past it.
    pub end: u64,
}

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// Which part.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The file is of another kind.
    #[error("not an x86_64 ELF executable (a bzImage must be unpacked to vmlinux first)")]
    NotElf,
    /// The headers contradict themselves or exceed a limit.
    #[error("malformed ELF file: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// A segment lies where there is no memory for it.
    #[error("segment at {address:#x} of {bytes} bytes lies outside of guest memory above 1 MiB")]
    SegmentPlacement {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The entry point is not in a segment.
    #[error("entry point {address:#x} is in no segment")]
    EntryPlacement {
        /// Guest physical address.
        address: u64,
    },
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

#[derive(Debug, Default)]
struct Notes {
    /// The image is a Linux kernel: its ELF entry is `startup_64`.
    linux: bool,
    pvh_entry: Option<u32>,
}

/// Loads the kernel in `file`.
///
/// # Errors
/// When the file is no kernel, is malformed, or does not fit into `memory`.
pub fn load(memory: &GuestMemoryMmap, file: &File) -> Result<Loaded, KernelError> {
    let (elf_entry, segments) = read_headers(file)?;
    let mut notes = Notes::default();
    let mut end = layout::HIGH_START;
    for segment in &segments {
        match segment.kind {
            SEGMENT_LOAD => end = end.max(load_segment(memory, file, segment)?),
            SEGMENT_NOTE => read_notes(file, segment, &mut notes)?,
            _ => {}
        }
    }
    let entry = choose_entry(elf_entry, &notes);
    let inside = |segment: &&Segment| {
        segment.kind == SEGMENT_LOAD
            && (segment.address..segment.address + segment.memory_bytes).contains(&entry.address)
    };
    if segments.iter().find(inside).is_none() {
        let Entry { address, .. } = entry;
        return Err(KernelError::EntryPlacement { address });
    }
    Ok(Loaded { entry, end })
}

/// Linux is entered in 64-bit mode, past the work its PVH entry does to get there; other kernels
/// by PVH if they have the note.
fn choose_entry(elf_entry: u64, notes: &Notes) -> Entry {
    match notes.pvh_entry {
        Some(address) if !notes.linux => Entry {
            address: address.into(),
            protocol: Protocol::Pvh,
        },
        _ => Entry {
            address: elf_entry,
            protocol: Protocol::Linux64,
        },
    }
}

fn read_headers(file: &File) -> Result<(u64, Vec<Segment>), KernelError> {
    let mut header = [0; HEADER_BYTES];
    read_at(file, &mut header, 0, "the ELF header")?;
    if header[..6] != CLASS_64_LITTLE_ENDIAN
        || u16_at(&header, 16) != TYPE_EXECUTABLE
        || u16_at(&header, 18) != MACHINE_X86_64
    {
        return Err(KernelError::NotElf);
    }
    let count = usize::from(u16_at(&header, 56));
    if usize::from(u16_at(&header, 54)) != SEGMENT_BYTES {
        let what = "size of a program header";
        return Err(KernelError::Malformed { what });
    }
    if !(1..=SEGMENTS_MAX).contains(&count) {
        let what = "number of program headers";
        return Err(KernelError::Malformed { what });
    }
    let mut table = vec![0; count * SEGMENT_BYTES];
    read_at(file, &mut table, u64_at(&header, 32), "program headers")?;
    let segments = table
        .chunks_exact(SEGMENT_BYTES)
        .map(|raw| Segment {
            kind: u32_at(raw, 0),
            offset: u64_at(raw, 8),
            address: u64_at(raw, 24),
            file_bytes: u64_at(raw, 32),
            memory_bytes: u64_at(raw, 40),
        })
        .collect();
    Ok((u64_at(&header, 24), segments))
}

/// Returns the first guest address past the segment.
fn load_segment(
    memory: &GuestMemoryMmap,
    file: &File,
    segment: &Segment,
) -> Result<u64, KernelError> {
    let Segment {
        offset,
        address,
        file_bytes,
        memory_bytes,
        ..
    } = *segment;
    if file_bytes > memory_bytes || offset.checked_add(file_bytes).is_none() {
        let what = "length of a segment";
        return Err(KernelError::Malformed { what });
    }
    let bytes = memory_bytes;
    let placement = KernelError::SegmentPlacement { address, bytes };
    let Some(end) = address.checked_add(bytes) else {
        return Err(placement);
    };
    let fits = usize::try_from(bytes)
        .is_ok_and(|length| memory.check_range(GuestAddress(address), length));
    if address < layout::HIGH_START || !fits {
        return Err(placement);
    }
    place(memory, file, offset, GuestAddress(address), file_bytes).map_err(|source| {
        KernelError::Read {
            what: "a segment",
            source,
        }
    })?;
    Ok(end)
}

/// Puts `bytes` of `file` from `offset` at `address`: whole pages by mapping, if both are aligned
/// alike and the file can be mapped; the rest by reading. Guest memory there must be fresh.
pub(super) fn place(
    memory: &GuestMemoryMmap,
    file: &File,
    offset: u64,
    address: GuestAddress,
    bytes: u64,
) -> io::Result<()> {
    let GuestAddress(start) = address;
    let head = start.next_multiple_of(PAGE_BYTES) - start;
    let whole = bytes.saturating_sub(head) / PAGE_BYTES * PAGE_BYTES;
    let alike = (offset % PAGE_BYTES) == (start % PAGE_BYTES);
    // A mapping past the file's end would fault when the guest touches it.
    let present = file.metadata()?.len() >= offset.saturating_add(bytes);
    if !present {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mapped = alike
        && whole > 0
        && memory::can_map_files(memory)
        && memory::map_file(
            memory,
            GuestAddress(start + head),
            file,
            offset + head,
            whole,
        )
        .is_ok();
    if !mapped {
        return copy(memory, file, offset, start, bytes);
    }
    copy(memory, file, offset, start, head)?;
    let done = head + whole;
    copy(memory, file, offset + done, start + done, bytes - done)
}

fn copy(
    memory: &GuestMemoryMmap,
    file: &File,
    mut offset: u64,
    mut address: u64,
    mut bytes: u64,
) -> io::Result<()> {
    let chunk = usize::try_from(bytes).map_or(COPY_BYTES, |bytes| bytes.min(COPY_BYTES));
    let mut buffer = vec![0; chunk];
    while bytes > 0 {
        let length = usize::try_from(bytes).map_or(chunk, |bytes| bytes.min(chunk));
        file.read_exact_at(&mut buffer[..length], offset)?;
        memory
            .write_slice(&buffer[..length], GuestAddress(address))
            .map_err(io::Error::other)?;
        offset += length as u64;
        address += length as u64;
        bytes -= length as u64;
    }
    Ok(())
}

fn read_notes(file: &File, segment: &Segment, notes: &mut Notes) -> Result<(), KernelError> {
    if segment.file_bytes > NOTES_MAX_BYTES {
        let what = "length of the notes";
        return Err(KernelError::Malformed { what });
    }
    let length = usize::try_from(segment.file_bytes).expect("the bound fits");
    let mut bytes = vec![0; length];
    read_at(file, &mut bytes, segment.offset, "notes")?;
    parse_notes(&bytes, notes);
    Ok(())
}

/// A note is three lengths and kinds of 32 bits, the owner and the description, each padded to
/// four bytes. Whatever follows a truncated one is ignored.
fn parse_notes(mut bytes: &[u8], notes: &mut Notes) {
    while let Some((header, rest)) = bytes.split_at_checked(12) {
        let owner_bytes = u32_at(header, 0) as usize;
        let description_bytes = u32_at(header, 4) as usize;
        let Some((owner, rest)) = rest.split_at_checked(owner_bytes.next_multiple_of(4)) else {
            return;
        };
        let padded = description_bytes.next_multiple_of(4).min(rest.len());
        let (description, rest) = rest.split_at(padded);
        match owner {
            b"Linux\0\0\0" => notes.linux = true,
            b"Xen\0" if u32_at(header, 8) == NOTE_PHYS32_ENTRY && description.len() >= 4 => {
                notes.pvh_entry = Some(u32_at(description, 0));
            }
            _ => {}
        }
        bytes = rest;
    }
}

fn read_at(
    file: &File,
    buffer: &mut [u8],
    offset: u64,
    what: &'static str,
) -> Result<(), KernelError> {
    file.read_exact_at(buffer, offset)
        .map_err(|source| KernelError::Read { what, source })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N]
        .try_into()
        .expect("callers checked the length")
}
