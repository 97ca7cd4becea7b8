//! Takes requests apart (§5.2.6). The framing is the driver's choice: a request is 16 readable
//! bytes of header, readable data, writable data and one writable byte of status, however they
//! are spread over descriptors.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::{Bytes, GuestMemory};

use super::{
    DISCARD_MAX_SECTORS, QUEUE_SIZE, RANGES_MAX, SECTOR_BYTES, SEGMENT_MAX_BYTES, SEGMENTS_MAX,
    SERIAL_MAX_BYTES, ZEROES_MAX_SECTORS,
    backend::{Buffers, Clear, Disk},
};
use crate::devices::serve::{BrokenQueue, Handler, Request, Segment, read_start};

/// Bytes of a request's header.
const HEADER_BYTES: usize = 16;
/// Bytes of a range in a discard or write-zeroes request.
const RANGE_BYTES: usize = 16;
/// Flag of a range: the space may be given back.
const RANGE_UNMAP: u32 = 1;
/// No memory.
const NOTHING: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// What has happened so far.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) failures: AtomicU64,
}

/// Serves requests. One per worker.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) disk: Arc<Disk>,
    pub(super) counters: Arc<Counters>,
    pub(super) serial: [u8; SERIAL_MAX_BYTES],
    pub(super) readonly: bool,
    /// Whether writes have to be durable when they are answered.
    pub(super) write_through: bool,
}

/// Why a request fails.
#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// `VIRTIO_BLK_S_IOERR`.
    Io,
    /// `VIRTIO_BLK_S_UNSUPP`.
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::Unsupported {
            return Self::Unsupported;
        }
        tracing::debug!(%error, "disk request failed");
        Self::Io
    }
}

impl Handler for Requests {
    fn handle(&mut self, request: &Request<'_>) -> Result<u32, BrokenQueue> {
        let status = status_segment(request.segments).ok_or(BrokenQueue::Short)?;
        let result = self.serve(request);
        let (code, written) = match result {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(failure) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                let code = match failure {
                    Failure::Io => VIRTIO_BLK_S_IOERR,
                    Failure::Unsupported => VIRTIO_BLK_S_UNSUPP,
                };
                (code, 0)
            }
        };
        let last = u64::from(status.bytes) - 1;
        request
            .memory
            .write_obj(code as u8, vm_memory::GuestAddress(status.address.0 + last))
            .map_err(|_| BrokenQueue::Address {
                address: status.address.0,
                bytes: status.bytes,
            })?;
        Ok(written + 1)
    }
}

impl Requests {
    /// Serves one request and returns how many bytes of data were written to guest memory.
    fn serve(&self, request: &Request<'_>) -> Result<u32, Failure> {
        let mut header = [0; HEADER_BYTES];
        if read_start(request, &mut header) < HEADER_BYTES {
            return Err(Failure::Io);
        }
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64_at(&header, 8);
        match kind {
            VIRTIO_BLK_T_IN => self.read(request, sector),
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => self.identify(request),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
                if self.readonly =>
            {
                Err(Failure::Io)
            }
            VIRTIO_BLK_T_OUT => self.write(request, sector),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.clear(request, kind == VIRTIO_BLK_T_DISCARD)
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn read(&self, request: &Request<'_>, sector: u64) -> Result<u32, Failure> {
        let mut parts = [NOTHING; QUEUE_SIZE as usize];
        let (mut buffers, bytes) = data(request, true, &mut parts)?;
        let at = self.position(sector, bytes)?;
        self.disk.read(&mut buffers, at)?;
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        // Bounded by SEGMENTS_MAX and SEGMENT_MAX_BYTES.
        u32::try_from(bytes).map_err(|_| Failure::Io)
    }

    fn write(&self, request: &Request<'_>, sector: u64) -> Result<u32, Failure> {
        let mut parts = [NOTHING; QUEUE_SIZE as usize];
        let (mut buffers, bytes) = data(request, false, &mut parts)?;
        let at = self.position(sector, bytes)?;
        self.disk.write(&mut buffers, at)?;
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters
            .bytes_written
            .fetch_add(bytes, Ordering::Relaxed);
        self.written()
    }

    fn flush(&self) -> Result<u32, Failure> {
        if !self.readonly {
            self.disk.flush()?;
        }
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }

    fn identify(&self, request: &Request<'_>) -> Result<u32, Failure> {
        let mut left = &self.serial[..];
        for segment in writable_data(request.segments) {
            let bytes = left.len().min(segment.bytes as usize);
            request
                .memory
                .write_slice(&left[..bytes], segment.address)
                .map_err(|_| Failure::Io)?;
            left = &left[bytes..];
        }
        Ok((SERIAL_MAX_BYTES - left.len()) as u32)
    }

    fn clear(&self, request: &Request<'_>, discard: bool) -> Result<u32, Failure> {
        let mut message = [0; HEADER_BYTES + RANGES_MAX * RANGE_BYTES];
        let readable: u64 = request
            .segments
            .iter()
            .filter(|segment| !segment.writable)
            .map(|segment| u64::from(segment.bytes))
            .sum();
        let bytes = read_start(request, &mut message);
        if readable != bytes as u64 {
            return Err(Failure::Io);
        }
        let (ranges, rest) = message[HEADER_BYTES..bytes].as_chunks::<RANGE_BYTES>();
        if ranges.is_empty() || !rest.is_empty() {
            return Err(Failure::Io);
        }
        for range in ranges {
            let (sector, last) = (u64_at(range, 0), u64_at(range, 8));
            let (sectors, flags) = (last as u32, (last >> 32) as u32);
            let (how, most) = match (discard, flags) {
                (true, 0) => (Clear::Discard, DISCARD_MAX_SECTORS),
                (false, 0) => (Clear::Zero, ZEROES_MAX_SECTORS),
                (false, RANGE_UNMAP) => (Clear::Unmap, ZEROES_MAX_SECTORS),
                _ => return Err(Failure::Unsupported),
            };
            let bytes = u64::from(sectors) * SECTOR_BYTES;
            let at = self.position(sector, bytes)?;
            if sectors > most {
                return Err(Failure::Io);
            }
            if sectors > 0 {
                self.disk.clear(how, at, bytes)?;
            }
        }
        self.written()
    }

    fn written(&self) -> Result<u32, Failure> {
        if self.write_through {
            self.disk.flush()?;
        }
        Ok(0)
    }

    /// Where `bytes` from `sector` on begin, if they are on the disk and whole sectors.
    fn position(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let at = sector.checked_mul(SECTOR_BYTES).ok_or(Failure::Io)?;
        let end = at.checked_add(bytes).ok_or(Failure::Io)?;
        if end > self.disk.capacity() || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Failure::Io);
        }
        Ok(at)
    }
}

/// The segment whose last byte is the status.
fn status_segment(segments: &[Segment]) -> Option<Segment> {
    let last = segments.iter().rfind(|segment| segment.bytes > 0)?;
    last.writable.then_some(*last)
}

/// Writable segments without the status.
fn writable_data(segments: &[Segment]) -> impl Iterator<Item = Segment> {
    trimmed(segments, 0, true)
}

/// Segments of one direction, without the first `skip` bytes of the readable ones or the last
/// byte of the writable ones; no empty ones.
fn trimmed(segments: &[Segment], mut skip: u32, writable: bool) -> impl Iterator<Item = Segment> {
    let status = segments.iter().rposition(|segment| segment.bytes > 0);
    segments
        .iter()
        .enumerate()
        .filter(move |(_, segment)| segment.writable == writable)
        .map(move |(position, segment)| {
            let cut = if writable { 0 } else { skip.min(segment.bytes) };
            skip -= cut;
            let end = u32::from(writable && Some(position) == status);
            Segment {
                address: vm_memory::GuestAddress(segment.address.0 + u64::from(cut)),
                bytes: segment.bytes - cut - end,
                ..*segment
            }
        })
        .filter(|segment| segment.bytes > 0)
}

/// The data of a request as memory of the VMM, and its length.
fn data<'a>(
    request: &'a Request<'_>,
    writable: bool,
    parts: &'a mut [libc::iovec; QUEUE_SIZE as usize],
) -> Result<(Buffers<'a>, u64), Failure> {
    let (mut count, mut bytes) = (0, 0);
    for segment in trimmed(request.segments, HEADER_BYTES as u32, writable) {
        if segment.bytes > SEGMENT_MAX_BYTES || count == SEGMENTS_MAX {
            return Err(Failure::Io);
        }
        let slice = request
            .memory
            .get_slice(segment.address, segment.bytes as usize)
            .map_err(|_| Failure::Io)?;
        parts[count] = libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        count += 1;
        bytes += u64::from(segment.bytes);
    }
    // SAFETY: each part is a slice of guest memory, which the request borrows for 'a and which is
    // plainly mapped: its pointers stay good without a guard.
    let buffers = unsafe { Buffers::new(&mut parts[..count]) };
    Ok((buffers, bytes))
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
