//! Kernels and tables, well-formed and not.

use std::{fs::File, io::Write};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{
    BootError, Entry, Image, Initramfs, KernelError, Protocol,
    cmdline::{self, Device},
    kernel::{self, Loaded},
    layout, load, mptable, params,
};
use crate::vm::memory;

const MIB: u64 = 1 << 20;

fn guest() -> GuestMemoryMmap {
    memory::create(16, false).unwrap()
}

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

fn content(memory: &GuestMemoryMmap, address: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    memory
        .read_slice(&mut content, GuestAddress(address))
        .unwrap();
    content
}

/// A program header, and what the file holds for it.
#[derive(Debug, Clone)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

impl Segment {
    fn load(offset: u64, address: u64, bytes: u64) -> Self {
        Self {
            kind: 1,
            offset,
            address,
            file_bytes: bytes,
            memory_bytes: bytes,
        }
    }
}

/// An ELF file of `bytes` with `segments`; its content counts up, so that every byte is known.
fn elf(entry: u64, segments: &[Segment], bytes: usize) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend([entry, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend(0_u32.to_le_bytes());
    let count = u16::try_from(segments.len()).unwrap();
    let sizes = [64_u16, 56, count, 0, 0, 0];
    image.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
    for segment in segments {
        image.extend([segment.kind, 7].into_iter().flat_map(u32::to_le_bytes));
        let fields = [
            segment.offset,
            segment.address,
            segment.address,
            segment.file_bytes,
            segment.memory_bytes,
            4096,
        ];
        image.extend(fields.into_iter().flat_map(u64::to_le_bytes));
    }
    image.extend((image.len()..bytes).map(|at| (at % 251) as u8));
    image
}

fn note(owner: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    let lengths = [owner.len(), description.len()].map(|length| length as u32);
    note.extend(lengths.into_iter().flat_map(u32::to_le_bytes));
    note.extend(kind.to_le_bytes());
    for part in [owner, description] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A kernel at 1 MiB with `notes`.
fn kernel_with_notes(notes: &[u8]) -> Vec<u8> {
    let mut segments = vec![Segment::load(0x1000, MIB, 0x100)];
    segments.push(Segment {
        kind: 4,
        ..Segment::load(0x2000, 0, notes.len() as u64)
    });
    let mut image = elf(MIB, &segments, 0x2000);
    image.extend(notes);
    image
}

fn entry(image: &[u8]) -> Entry {
    kernel::load(&guest(), &file(image)).unwrap().entry
}

#[test]
fn segments_lie_where_they_say_however_they_are_aligned() {
    // Aligned alike with whole pages; not alike; less than a page; with an unaligned head.
    let segments = [
        Segment::load(0x1000, MIB, 0x2800),
        Segment::load(0x5010, 2 * MIB, 0x3000),
        Segment::load(0x9000, 3 * MIB, 5),
        Segment {
            memory_bytes: 0x9000,
            ..Segment::load(0xa123, 4 * MIB + 0x123, 0x3000)
        },
    ];
    let image = elf(MIB, &segments, 0xe000);
    let memory = guest();
    let loaded = kernel::load(&memory, &file(&image)).unwrap();
    assert_eq!(
        loaded,
        Loaded {
            entry: Entry {
                address: MIB,
                protocol: Protocol::Linux64
            },
            end: 4 * MIB + 0x123 + 0x9000
        }
    );
    for segment in segments {
        let (offset, bytes) = (segment.offset as usize, segment.file_bytes as usize);
        let found = content(&memory, segment.address, bytes + 4096);
        assert_eq!(found[..bytes], image[offset..offset + bytes], "{segment:?}");
        // What follows in the file does not follow in memory.
        assert!(found[bytes..].iter().all(|byte| *byte == 0), "{segment:?}");
    }
    // What the guest writes is its own.
    memory.write_obj(0_u64, GuestAddress(MIB)).unwrap();
}

#[test]
fn a_mapped_file_is_not_written_by_the_guest() {
    let image = elf(MIB, &[Segment::load(0x1000, MIB, 0x2000)], 0x3000);
    let (memory, file) = (guest(), file(&image));
    kernel::load(&memory, &file).unwrap();
    memory.write_obj(u64::MAX, GuestAddress(MIB)).unwrap();
    let mut again = vec![0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut again, 0x1000).unwrap();
    assert_eq!(again, image[0x1000..0x1008]);
}

#[test]
fn linux_is_entered_in_64_bit_mode_and_others_by_their_note() {
    let xen = note(b"Xen\0", 18, &(0x10_0080_u64).to_le_bytes());
    let linux = note(b"Linux\0", 0x100, &[0]);
    let other = note(b"GNU\0", 3, &[1; 20]);
    let pvh = Entry {
        address: MIB + 0x80,
        protocol: Protocol::Pvh,
    };
    let long = Entry {
        address: MIB,
        protocol: Protocol::Linux64,
    };
    assert_eq!(entry(&kernel_with_notes(&xen)), pvh);
    assert_eq!(
        entry(&kernel_with_notes(&[other.clone(), xen.clone()].concat())),
        pvh
    );
    assert_eq!(entry(&kernel_with_notes(&[linux, xen].concat())), long);
    assert_eq!(entry(&kernel_with_notes(&other)), long);
    assert_eq!(entry(&kernel_with_notes(b"")), long);
    // Another note of Xen's, and one cut short.
    assert_eq!(entry(&kernel_with_notes(&note(b"Xen\0", 5, &[0; 8]))), long);
    assert_eq!(
        entry(&kernel_with_notes(&note(b"Xen\0", 18, &[0; 2])[..14])),
        long
    );
}

#[test]
fn malformed_kernels_are_refused() {
    let refused = |image: &[u8]| kernel::load(&guest(), &file(image)).unwrap_err();
    let with = |segment: Segment| refused(&elf(MIB, &[segment], 0x2000));
    let base = Segment::load(0x1000, MIB, 0x100);
    assert!(matches!(refused(b""), KernelError::Read { .. }));
    assert!(matches!(refused(&[0; 100]), KernelError::NotElf));
    assert!(matches!(
        refused(&elf(MIB, &[], 100)),
        KernelError::Malformed { .. }
    ));
    let many = vec![base.clone(); 65];
    assert!(matches!(
        refused(&elf(MIB, &many, 0x2000)),
        KernelError::Malformed { .. }
    ));
    // Below 1 MiB, past memory, wrapping.
    for address in [0, 0x9_0000, 15 * MIB + 0xff_f01, 1 << 40, u64::MAX - 5] {
        let error = with(Segment {
            address,
            ..base.clone()
        });
        assert!(
            matches!(error, KernelError::SegmentPlacement { .. }),
            "{address:#x}"
        );
    }
    let error = with(Segment {
        file_bytes: 0x101,
        ..base.clone()
    });
    assert!(matches!(error, KernelError::Malformed { .. }));
    let error = with(Segment {
        offset: u64::MAX,
        ..base.clone()
    });
    assert!(matches!(error, KernelError::Malformed { .. }));
    // The file ends before the segment does: nothing is mapped that would fault later.
    let error = with(Segment {
        offset: 0x1f01,
        ..base.clone()
    });
    assert!(matches!(error, KernelError::Read { .. }));
    let notes = Segment {
        kind: 4,
        ..Segment::load(0x1000, 0, 1 << 20)
    };
    let error = refused(&elf(MIB, &[base.clone(), notes], 0x2000));
    assert!(matches!(error, KernelError::Malformed { .. }));
    let error = refused(&elf(MIB + 0x100, &[base], 0x2000));
    assert!(matches!(error, KernelError::EntryPlacement { .. }));
}

#[test]
fn the_initial_file_system_lies_high_in_low_memory() {
    let memory = guest();
    let archive: Vec<u8> = (0..10_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = |bytes: &[u8]| Image {
        kernel: file(&elf(MIB, &[Segment::load(0x1000, MIB, 0x100)], 0x2000)),
        initramfs: Some(file(bytes)),
        command_line: "quiet".into(),
        vcpus: 2,
    };
    load(&memory, &image(&archive)).unwrap();
    let address = 16 * MIB - (archive.len() as u64).next_multiple_of(4096);
    assert_eq!(content(&memory, address, archive.len()), archive);
    // The zero page says so.
    let field = |at: u64| -> u32 {
        memory
            .read_obj(GuestAddress(layout::ZERO_PAGE + at))
            .unwrap()
    };
    assert_eq!(field(0x218), address as u32);
    assert_eq!(field(0x21c), archive.len() as u32);
    assert_eq!(field(0x228), layout::COMMAND_LINE as u32);
    assert_eq!(content(&memory, layout::COMMAND_LINE, 6), b"quiet\0");
    let error = load(&guest(), &image(&vec![0; 15 << 20])).unwrap_err();
    assert!(matches!(error, BootError::InitramfsTooLarge { .. }));
}

#[test]
fn the_start_info_says_what_the_zero_page_says() {
    let memory = guest();
    let initramfs = Initramfs {
        address: 0xf0_0000,
        bytes: 0x1234,
    };
    params::write_hvm_start_info(&memory, Some(initramfs)).unwrap();
    let word = |at: u64| -> u64 { memory.read_obj(GuestAddress(at)).unwrap() };
    let info = layout::HVM_START_INFO;
    assert_eq!(word(info) as u32, 0x336e_c578);
    assert_eq!(word(info + 24), layout::COMMAND_LINE);
    let modules = word(info + 16);
    assert_eq!((word(modules), word(modules + 8)), (0xf0_0000, 0x1234));
    let map = word(info + 40);
    assert_eq!(word(info + 48), 2);
    assert_eq!((word(map), word(map + 8)), (0, layout::MP_TABLE));
    assert_eq!((word(map + 24), word(map + 32)), (MIB, 15 * MIB));
}

#[test]
fn every_guest_gets_a_seed_of_its_own() {
    let seed_of = || {
        let memory = guest();
        let note = note(b"Linux\0", 0, b"6");
        let image = Image {
            kernel: file(&kernel_with_notes(&note)),
            initramfs: None,
            command_line: String::new(),
            vcpus: 1,
        };
        load(&memory, &image).unwrap();
        // `setup_data` of the zero page, then the entry there.
        assert_eq!(
            content(&memory, layout::ZERO_PAGE + 0x250, 8),
            layout::SEED.to_le_bytes()
        );
        let head = [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0];
        assert_eq!(content(&memory, layout::SEED, 16), head);
        content(&memory, layout::SEED + 16, 32)
    };
    assert_ne!(seed_of(), seed_of());
}

#[test]
fn usable_memory_leaves_out_what_is_none() {
    let memory = memory::create(4096, false).unwrap();
    let gib = 1 << 30;
    assert_eq!(
        params::usable(&memory),
        [(0, layout::MP_TABLE), (MIB, 3 * gib - MIB), (4 * gib, gib)]
    );
}

#[test]
fn the_mp_table_is_consistent_for_any_number_of_processors() {
    for vcpus in 1..=64 {
        let table = mptable::table(vcpus);
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum(&table), 0);
        assert_eq!(
            usize::from(u16::from_le_bytes([table[4], table[5]])),
            table.len()
        );
        let space = layout::MP_POINTER - layout::MP_TABLE;
        assert!(table.len() as u64 <= space);
        let mut entries = &table[44..];
        let mut counts = [0_u16; 5];
        while let Some(kind) = entries.first() {
            counts[usize::from(*kind)] += 1;
            entries = &entries[if *kind == 0 { 20 } else { 8 }..];
        }
        assert_eq!(counts, [vcpus.into(), 1, 1, 24, 2]);
        let declared = u16::from_le_bytes([table[34], table[35]]);
        assert_eq!(declared, counts.iter().sum::<u16>());
    }
    let memory = guest();
    mptable::write(&memory, 64).unwrap();
    let pointer = content(&memory, layout::MP_POINTER, 16);
    assert_eq!(&pointer[..4], b"_MP_");
    assert_eq!(
        pointer
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte)),
        0
    );
}

#[test]
fn devices_come_before_the_words_of_init() {
    let device = |address, gsi| Device {
        address,
        window_kib: 4,
        gsi,
    };
    let devices = [device(0xd000_0000, 5), device(0xd000_1000, 6)];
    assert_eq!(
        cmdline::with_devices("quiet ", devices),
        "quiet virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6"
    );
    assert_eq!(
        cmdline::with_devices("quiet -- debug", [devices[0]]),
        "quiet virtio_mmio.device=4K@0xd0000000:5 -- debug"
    );
}

#[test]
fn a_command_line_that_cannot_be_one_is_refused() {
    let image = |command_line: String| Image {
        kernel: file(&elf(MIB, &[Segment::load(0x1000, MIB, 0x100)], 0x2000)),
        initramfs: None,
        command_line,
        vcpus: 1,
    };
    let longest = "x".repeat(cmdline::MAX_BYTES);
    load(&guest(), &image(longest.clone())).unwrap();
    let error = load(&guest(), &image(longest + "x")).unwrap_err();
    assert!(matches!(
        error,
        BootError::CommandLineTooLong { bytes: 2048 }
    ));
    let error = load(&guest(), &image("a\0b".into())).unwrap_err();
    assert!(matches!(error, BootError::CommandLineZero));
}

proptest! {
    #[test]
    fn no_file_panics_the_loader(
        mut image in Just(kernel_with_notes(&note(b"Xen\0", 18, &[0; 8]))),
        changes in proptest::collection::vec((0_usize..0x2020, any::<u8>()), 0..30),
        headers in proptest::collection::vec((0_usize..0xb0, any::<u8>()), 0..30),
        cut in 0_usize..0x2100,
    ) {
        for (at, value) in changes.into_iter().chain(headers) {
            if let Some(byte) = image.get_mut(at) {
                *byte = value;
            }
        }
        image.truncate(cut.max(1));
        let memory = guest();
        if let Ok(loaded) = kernel::load(&memory, &file(&image)) {
            // Whatever was accepted can be read back without a fault.
            let end = loaded.end.min(16 * MIB);
            content(&memory, MIB, (end - MIB) as usize);
        }
    }

    #[test]
    fn no_plausible_segment_panics_the_loader(
        segments in proptest::collection::vec(
            (0_u32..6, 0_u64..0x4000, 0_u64..20 * MIB, 0_u64..0x4000, 0_u64..20 * MIB), 1..5),
        entry in 0_u64..20 * MIB,
    ) {
        let segments: Vec<_> = segments
            .into_iter()
            .map(|(kind, offset, address, file_bytes, memory_bytes)| Segment {
                kind, offset, address, file_bytes, memory_bytes,
            })
            .collect();
        let memory = guest();
        if kernel::load(&memory, &file(&elf(entry, &segments, 0x3000))).is_ok() {
            content(&memory, 0, 16 << 20);
        }
    }
}
