//! A mock driver reads and writes a disk in a temporary file, compared with a model in memory.

use std::{
    fs::{self, File},
    os::fd::OwnedFd,
};

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::{Block, BlockError, backend::Buffers};
use crate::virtio::{
    device::{ActivateError, RestoreError, VirtioDevice},
    mock::{Buffer, Malformed, MockDriver},
};

const SECTORS: u64 = 256;
const DISK_BYTES: usize = SECTORS as usize * 512;
const FLUSH: u64 = 1 << 9;
const EVENT_IDX: u64 = 1 << 29;

const IN: u32 = 0;
const OUT: u32 = 1;
const SYNC: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

struct Client {
    dir: TempDir,
    device: Block,
    driver: MockDriver,
    scratch: u64,
}

fn disk(dir: &TempDir, readonly: bool) -> OwnedFd {
    let path = dir.path().join("disk");
    File::options()
        .read(true)
        .write(!readonly)
        .open(path)
        .unwrap()
        .into()
}

fn pattern(seed: usize) -> Vec<u8> {
    (0..DISK_BYTES)
        .map(|index| (index / 512 * 7 + index + seed) as u8)
        .collect()
}

impl Client {
    fn new(readonly: bool, features: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk"), pattern(0)).unwrap();
        let mut device = Block::new(disk(&dir, readonly), "serial-1", readonly, 2).unwrap();
        let mut driver = MockDriver::new(&device, 256);
        driver.activate(&mut device, features).unwrap();
        let scratch = driver.alloc(2 << 20);
        Self {
            dir,
            device,
            driver,
            scratch,
        }
    }

    fn content(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("disk")).unwrap()
    }

    /// Sends a request in pieces of at most `piece` bytes. Returns status, data, bytes used.
    fn call(
        &mut self,
        kind: u32,
        sector: u64,
        out: &[u8],
        room: u32,
        piece: u32,
    ) -> (u8, Vec<u8>, u32) {
        let mut message = [kind.to_le_bytes(), [0; 4]].concat();
        message.extend(sector.to_le_bytes());
        message.extend(out);
        let reply = self.scratch + (1 << 20);
        let memory = &self.driver.memory;
        memory
            .write_slice(&message, GuestAddress(self.scratch))
            .unwrap();
        memory
            .write_slice(&vec![0xee; room as usize + 1], GuestAddress(reply))
            .unwrap();
        let mut chain = pieces(Buffer::readable(self.scratch, message.len() as u32), piece);
        chain.extend(pieces(Buffer::writable(reply, room + 1), piece));
        self.driver.rings[0].add(&chain);
        self.driver.notify(0);
        let used = self.driver.wait_used(0, 1)[0].1;
        let mut answer = self.driver.content(Buffer::writable(reply, room + 1));
        let status = answer.pop().unwrap();
        (status, answer, used)
    }

    fn simple(&mut self, kind: u32, sector: u64, out: &[u8], room: u32) -> u8 {
        self.call(kind, sector, out, room, 64 << 10).0
    }

    fn counter(&self, name: &str) -> u64 {
        let mut found = None;
        self.device.counters(&mut |counter, value| {
            if counter == name {
                found = Some(value);
            }
        });
        found.unwrap()
    }
}

fn pieces(buffer: Buffer, piece: u32) -> Vec<Buffer> {
    (0..buffer.bytes)
        .step_by(piece as usize)
        .map(|at| Buffer {
            address: buffer.address + u64::from(at),
            bytes: piece.min(buffer.bytes - at),
            ..buffer
        })
        .collect()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn data_goes_both_ways_however_it_is_cut() {
    let mut client = Client::new(false, FLUSH);
    for piece in [97, 511, 512, 4096, 64 << 10] {
        let data: Vec<u8> = pattern(piece as usize)[..8192].to_vec();
        assert_eq!(client.call(OUT, 3, &data, 0, piece).0, OK);
        assert_eq!(client.content()[3 * 512..3 * 512 + 8192], data);
        let (status, read, used) = client.call(IN, 2, &[], 9216, piece);
        assert_eq!((status, used), (OK, 9217));
        assert_eq!(read, client.content()[1024..1024 + 9216]);
    }
    let (status, all, _) = client.call(IN, 0, &[], DISK_BYTES as u32, 64 << 10);
    assert_eq!((status, all), (OK, client.content()));
    assert_eq!(client.counter("writes"), 5);
    assert_eq!(client.counter("bytes_read"), 5 * 9216 + DISK_BYTES as u64);
}

#[test]
fn header_and_status_may_share_descriptors_with_data() {
    let mut client = Client::new(false, FLUSH);
    // Whole messages in one descriptor each.
    let (status, read, _) = client.call(IN, 5, &[], 512, 1 << 20);
    assert_eq!(
        (status, read),
        (OK, client.content()[5 * 512..6 * 512].to_vec())
    );
    assert_eq!(client.call(OUT, 6, &[9; 512], 0, 1 << 20).0, OK);
    assert_eq!(client.content()[6 * 512..7 * 512], [9; 512]);
}

#[test]
fn nothing_outside_the_disk_is_touched() {
    let mut client = Client::new(false, FLUSH);
    for (sector, bytes) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 511),
        (0, 1),
        (0, 513),
    ] {
        let data = vec![7; bytes as usize];
        assert_eq!(
            client.simple(OUT, sector, &data, 0),
            IOERR,
            "write {sector}"
        );
        assert_eq!(
            client.simple(IN, sector, &[], bytes),
            IOERR,
            "read {sector}"
        );
        let sectors = bytes.div_ceil(512);
        for kind in [DISCARD, ZEROES] {
            let message = range(sector, sectors, 0);
            if sector > 0 {
                assert_eq!(client.simple(kind, 0, &message, 0), IOERR, "clear {sector}");
            }
        }
    }
    assert_eq!(client.content(), pattern(0));
    assert_eq!(client.simple(IN, SECTORS - 1, &[], 512), OK);
    assert_eq!(client.simple(IN, SECTORS, &[], 0), OK);
}

#[test]
fn ranges_are_cleared() {
    let mut client = Client::new(false, FLUSH);
    let mut model = pattern(0);
    for (kind, flags, sector, sectors) in [
        (ZEROES, 0, 3, 5),
        (ZEROES, 1, 32, 16),
        (DISCARD, 0, 64, 8),
        (ZEROES, 0, 70, 0),
    ] {
        let message = range(sector, sectors, flags);
        assert_eq!(client.simple(kind, 0, &message, 0), OK, "{kind} {flags}");
        model[sector as usize * 512..(sector as usize + sectors as usize) * 512].fill(0);
    }
    assert_eq!(client.content(), model);
    let several: Vec<u8> = (0..32)
        .flat_map(|index| range(100 + index * 2, 1, 0))
        .collect();
    assert_eq!(client.simple(ZEROES, 0, &several, 0), OK);
    for index in 0..32 {
        model[(100 + index * 2) * 512..(101 + index * 2) * 512].fill(0);
    }
    assert_eq!(client.content(), model);
    let too_many: Vec<u8> = (0..33).flat_map(|_| range(0, 1, 0)).collect();
    for (message, status) in [
        (too_many, IOERR),
        (vec![], IOERR),
        (vec![0; 15], IOERR),
        (range(0, 1, 2), UNSUPP),
        (range(0, u32::MAX, 0), IOERR),
    ] {
        assert_eq!(client.simple(ZEROES, 0, &message, 0), status);
    }
    assert_eq!(client.simple(DISCARD, 0, &range(0, 1, 1), 0), UNSUPP);
    assert_eq!(client.content(), model);
}

#[test]
fn a_readonly_disk_is_not_written() {
    let mut client = Client::new(true, FLUSH);
    for kind in [OUT, DISCARD, ZEROES] {
        assert_eq!(client.simple(kind, 0, &[0; 512], 0), IOERR);
    }
    assert_eq!(client.simple(SYNC, 0, &[], 0), OK);
    assert_eq!(client.simple(IN, 0, &[], 512), OK);
    assert_eq!(client.content(), pattern(0));
    assert_ne!(client.device.features() & (1 << 5), 0);
    assert_eq!(client.device.features() & (1 << 13 | 1 << 14), 0);
    // Even if the file could be written.
    let device = Block::new(disk(&client.dir, false), "", true, 1).unwrap();
    assert_ne!(device.features() & (1 << 5), 0);
}

#[test]
fn identity_flush_and_the_unknown() {
    let mut client = Client::new(false, FLUSH);
    let (status, id, used) = client.call(GET_ID, 0, &[], 20, 7);
    assert_eq!((status, used), (OK, 21));
    assert_eq!(&id, b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0");
    let (_, id, used) = client.call(GET_ID, 0, &[], 6, 64);
    assert_eq!((&id[..], used), (&b"serial"[..], 7));
    assert_eq!(client.simple(SYNC, 0, &[], 0), OK);
    assert_eq!(client.counter("flushes"), 1);
    for kind in [2, 3, 5, 10, 15, 24, u32::MAX] {
        assert_eq!(client.simple(kind, 0, &[], 512), UNSUPP, "{kind}");
    }
}

#[test]
fn segments_are_no_larger_and_no_more_than_offered() {
    let mut client = Client::new(false, FLUSH);
    let scratch = client.driver.alloc(256 << 10);
    let header = client.driver.readable(&[0; 16]);
    let status = client.driver.writable(1);
    let large = [header, Buffer::writable(scratch, 128 << 10), status];
    let larger = [header, Buffer::writable(scratch, (128 << 10) + 512), status];
    for (chain, code) in [(large, OK), (larger, IOERR)] {
        client.driver.rings[0].add(&chain);
        client.driver.notify(0);
        client.driver.wait_used(0, 1);
        assert_eq!(client.driver.content(status), [code]);
    }
    // 254 segments of data, header and status: a whole queue.
    let mut chain = vec![header];
    chain.extend((0..254).map(|_| Buffer::writable(scratch, 512)));
    chain.push(status);
    client.driver.rings[0].add(&chain);
    client.driver.notify(0);
    client.driver.wait_used(0, 1);
    assert_eq!(client.driver.content(status), [OK]);
}

#[test]
fn short_and_broken_chains() {
    for how in Malformed::ALL {
        let mut client = Client::new(false, FLUSH);
        let scratch = client.driver.alloc(64 << 10);
        client.driver.rings[0].add_malformed(how, scratch);
        client.driver.notify(0);
        if how == Malformed::OneByteWritable {
            // Room for a status, and that is what it gets.
            client.driver.wait_used(0, 1);
            let status = client.driver.content(Buffer::writable(scratch, 1));
            assert_eq!(status, [IOERR]);
        } else {
            client.driver.wait_needs_reset();
        }
        assert_eq!(client.device.pause().len(), 2, "{how:?}");
        assert_eq!(client.content(), pattern(0));
    }
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let mut client = Client::new(false, FLUSH);
    let path = client.dir.path().join("disk");
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(1024)
        .unwrap();
    assert_eq!(client.simple(IN, 1, &[], 1024), IOERR);
    assert_eq!(client.simple(IN, 0, &[], 1024), OK);
}

#[test]
fn configuration_space_says_what_holds() {
    let client = Client::new(false, FLUSH);
    let mut space = [0xff; 64];
    client.device.read_config(0, &mut space);
    let u32_at = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(space[..8], SECTORS.to_le_bytes());
    assert_eq!((u32_at(8), u32_at(12), u32_at(20)), (128 << 10, 254, 512));
    assert_eq!(space[34..36], [2, 0]);
    assert_eq!((u32_at(40), u32_at(52), space[56]), (32, 32, 1));
    assert_eq!(space[60..], [0; 4]);
    let mut one = [0xff; 4];
    client.device.read_config(34, &mut one);
    assert_eq!(one, [2, 0, 0, 0]);
    assert_ne!(client.device.features() & (1 << 12), 0, "MQ");
    let single = Block::new(disk(&client.dir, false), "", false, 1).unwrap();
    assert_eq!(single.features() & (1 << 12), 0, "MQ");
    assert_eq!(
        (client.device.device_type(), client.device.kind()),
        (2, "blk")
    );
}

#[test]
fn bad_arguments_are_named() {
    let client = Client::new(false, FLUSH);
    let file = || disk(&client.dir, false);
    for serial in ["a\0", "twenty-one characters"] {
        let result = Block::new(file(), serial, false, 1);
        assert!(matches!(result, Err(BlockError::Serial { .. })));
    }
    for queues in [0, 65] {
        let result = Block::new(file(), "", false, queues);
        assert!(matches!(result, Err(BlockError::Queues { .. })));
    }
    let empty = client.dir.path().join("empty");
    fs::write(&empty, [0; 511]).unwrap();
    let path = client.dir.path().join("disk");
    for unusable in [
        disk(&client.dir, true),
        File::open(client.dir.path()).unwrap().into(),
        File::options()
            .read(true)
            .write(true)
            .open(&empty)
            .unwrap()
            .into(),
        File::options()
            .read(true)
            .append(true)
            .open(&path)
            .unwrap()
            .into(),
        File::options().write(true).open(&path).unwrap().into(),
    ] {
        let result = Block::new(unusable, "", false, 1);
        assert!(matches!(result, Err(BlockError::File { .. })), "{result:?}");
    }
}

#[test]
fn pause_resume_save_restore() {
    let mut client = Client::new(false, FLUSH | EVENT_IDX);
    let queues = client.device.pause();
    assert_eq!(queues.len(), 2);
    let header = client.driver.readable(&[0; 16]);
    let data = client.driver.writable(512);
    let status = client.driver.writable(1);
    client.driver.rings[1].add(&[header, data, status]);
    let saved = client.device.save();
    let mut other = Block::new(disk(&client.dir, false), "serial-1", false, 2).unwrap();
    other.restore(&saved).unwrap();
    client
        .driver
        .resume(&mut other, queues, FLUSH | EVENT_IDX)
        .unwrap();
    assert_eq!(client.driver.wait_used(1, 1)[0].1, 513);
    assert_eq!(client.driver.content(data), pattern(0)[..512]);
    for (serial, readonly, queues) in [
        ("other", false, 2),
        ("serial-1", true, 2),
        ("serial-1", false, 1),
    ] {
        let mut other = Block::new(disk(&client.dir, false), serial, readonly, queues).unwrap();
        let result = other.restore(&saved);
        assert!(matches!(result, Err(RestoreError::Mismatch { .. })));
    }
    assert!(matches!(
        other.restore(&[]),
        Err(RestoreError::Malformed(_))
    ));
    let mut activation = client.driver.activation(0);
    activation.queues.remove(0);
    let error = client.device.activate(activation).unwrap_err();
    assert!(matches!(error, ActivateError::MissingQueue { index: 0 }));
}

#[test]
fn transfers_go_on_until_everything_is_moved() {
    let lengths = [3_usize, 0, 5, 0, 0, 9, 0];
    for most in 1..20 {
        let mut memory = [0_u8; 17];
        let mut next = memory.as_mut_ptr();
        let mut parts = lengths.map(|iov_len| {
            let iov_base = next.cast();
            next = next.wrapping_add(iov_len);
            libc::iovec { iov_base, iov_len }
        });
        // SAFETY: the parts are parts of `memory`, which lives to the end of the round.
        let mut buffers = unsafe { Buffers::new(&mut parts) };
        let moved = std::cell::Cell::new(0);
        let result = buffers.transfer(1000, std::io::ErrorKind::UnexpectedEof, |part, _, at| {
            assert_eq!(at, 1000 + moved.get() as i64);
            // SAFETY: `transfer` hands out one part at least.
            let part = unsafe { *part };
            assert!(part.iov_len > 0, "an empty part moves nothing");
            assert_eq!(
                part.iov_base.cast_const(),
                memory.as_ptr().wrapping_add(moved.get()).cast()
            );
            let bytes = most.min(17 - moved.get());
            moved.set(moved.get() + bytes);
            bytes as isize
        });
        result.unwrap();
        assert_eq!(moved.get(), 17);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Read {
        sector: u64,
        sectors: u32,
        piece: u32,
    },
    Write {
        sector: u64,
        sectors: u32,
        piece: u32,
        fill: u8,
    },
    Clear {
        kind: u32,
        flags: u32,
        sector: u64,
        sectors: u32,
    },
    Raw {
        kind: u32,
        sector: u64,
        bytes: usize,
        room: u32,
    },
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    let sector = || prop_oneof![4 => 0..SECTORS + 4, 1 => any::<u64>()];
    let sectors = || 0..24_u32;
    let piece = || prop_oneof![Just(512_u32), Just(4096), 300..20_000_u32];
    prop_oneof![
        (sector(), sectors(), piece()).prop_map(|(sector, sectors, piece)| Step::Read {
            sector,
            sectors,
            piece
        }),
        (sector(), sectors(), piece(), any::<u8>()).prop_map(|(sector, sectors, piece, fill)| {
            Step::Write {
                sector,
                sectors,
                piece,
                fill,
            }
        }),
        (
            prop_oneof![Just(DISCARD), Just(ZEROES)],
            0..3_u32,
            sector(),
            sectors()
        )
            .prop_map(|(kind, flags, sector, sectors)| Step::Clear {
                kind,
                flags,
                sector,
                sectors
            }),
        (0..30_u32, sector(), 0..2000_usize, 0..2000_u32).prop_map(
            |(kind, sector, bytes, room)| Step::Raw {
                kind,
                sector,
                bytes,
                room
            }
        ),
        Just(Step::Pause),
    ]
}

/// The part of the model a request is about, if it is on the disk.
fn on_disk(sector: u64, sectors: u32) -> Option<std::ops::Range<usize>> {
    let end = sector.checked_add(u64::from(sectors))?;
    (end <= SECTORS).then(|| sector as usize * 512..end as usize * 512)
}

fn check(client: &mut Client, model: &mut [u8], step: &Step) {
    match *step {
        Step::Read {
            sector,
            sectors,
            piece,
        } => {
            let (status, data, _) = client.call(IN, sector, &[], sectors * 512, piece);
            match on_disk(sector, sectors) {
                Some(range) => assert_eq!((status, &data[..]), (OK, &model[range])),
                None => assert_eq!(status, IOERR),
            }
        }
        Step::Write {
            sector,
            sectors,
            piece,
            fill,
        } => {
            let data = vec![fill; sectors as usize * 512];
            let status = client.call(OUT, sector, &data, 0, piece).0;
            match on_disk(sector, sectors) {
                Some(range) => {
                    assert_eq!(status, OK);
                    model[range].copy_from_slice(&data);
                }
                None => assert_eq!(status, IOERR),
            }
        }
        Step::Clear {
            kind,
            flags,
            sector,
            sectors,
        } => {
            let status = client.simple(kind, 0, &range(sector, sectors, flags), 0);
            let allowed = flags == 0 || (flags == 1 && kind == ZEROES);
            match (allowed, on_disk(sector, sectors)) {
                (false, _) => assert_eq!(status, UNSUPP),
                (true, None) => assert_eq!(status, IOERR),
                (true, Some(range)) => {
                    assert_eq!(status, OK);
                    model[range].fill(0);
                }
            }
        }
        Step::Raw {
            kind,
            sector,
            bytes,
            room,
        } => {
            // Zeros for data: what is a write or a clear may fill with zeros or do nothing.
            let status = client.simple(kind, sector, &vec![0; bytes], room);
            assert!(status <= UNSUPP);
            if kind == OUT && status == OK {
                let range = on_disk(sector, (bytes / 512) as u32).unwrap();
                model[range].fill(0);
            }
        }
        Step::Pause => {
            let queues = client.device.pause();
            client
                .driver
                .resume(&mut client.device, queues, FLUSH)
                .unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_sequence_of_requests_agrees_with_a_model(
        steps in prop::collection::vec(step(), 1..40),
        flush in any::<bool>(),
    ) {
        let mut client = Client::new(false, if flush { FLUSH } else { 0 });
        let mut model = pattern(0);
        for step in &steps {
            check(&mut client, &mut model, step);
        }
        prop_assert_eq!(client.content(), model);
        prop_assert!(!client.driver.interrupt.needs_reset());
    }
}
