//! The host side: a file or block device, read and written at once with the memory of the guest.
//! Called by the worker, from several threads at a time; it must not know requests.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::{
    fs::{
        FallocateFlags, FileType, OFlags, SeekFrom, fallocate, fcntl_getfl, fdatasync, fstat,
        ioctl_blkpbszget, ioctl_blksszget, seek,
    },
    io::{Errno, pwrite},
};

use super::SECTOR_BYTES;

/// Block sizes a disk may have, in bytes.
const BLOCK_BYTES: std::ops::RangeInclusive<u32> = 512..=(64 << 10);

/// What zeros are written from when the file system cannot make them.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can be asked for nothing.
    #[error("cannot examine the file")]
    Examine(#[from] Errno),
    /// It is a directory, a pipe or the like.
    #[error("neither a regular file nor a block device")]
    Kind,
    /// It was opened without the access the disk needs, or so that writes would go elsewhere.
    #[error("file is opened {how}")]
    Access {
        /// How it is opened.
        how: &'static str,
    },
    /// It is smaller than a sector.
    #[error("file of {bytes} bytes has no whole sector")]
    Empty {
        /// Its size.
        bytes: u64,
    },
}

/// A disk. Positions and lengths are in bytes.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    capacity: u64,
    logical_block: u32,
    physical_block: u32,
}

/// What is done to a range without data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clear {
    /// The content does not matter any more.
    Discard,
    /// It reads as zeros from now on; the space may be given back.
    Unmap,
    /// It reads as zeros from now on and keeps its space.
    Zero,
}

impl Disk {
    /// The disk in `file`; bytes past the last whole sector are not part of it.
    pub(super) fn new(file: OwnedFd, readonly: bool) -> Result<Self, DiskError> {
        check_access(fcntl_getfl(&file)?, readonly)?;
        let status = fstat(&file)?;
        let (logical_block, physical_block) = match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => {
                let physical = u32::try_from(status.st_blksize).unwrap_or(0);
                (*BLOCK_BYTES.start(), physical)
            }
            FileType::BlockDevice => (ioctl_blksszget(&file)?, ioctl_blkpbszget(&file)?),
            _ => return Err(DiskError::Kind),
        };
        let bytes = seek(&file, SeekFrom::End(0))?;
        let capacity = bytes / SECTOR_BYTES * SECTOR_BYTES;
        if capacity == 0 {
            return Err(DiskError::Empty { bytes });
        }
        let usable = |bytes: u32| bytes.is_power_of_two() && BLOCK_BYTES.contains(&bytes);
        let logical_block = if usable(logical_block) {
            logical_block
        } else {
            *BLOCK_BYTES.start()
        };
        Ok(Self {
            file: File::from(file),
            capacity,
            logical_block,
            physical_block: if usable(physical_block) {
                physical_block.max(logical_block)
            } else {
                logical_block
            },
        })
    }

    /// A multiple of [`SECTOR_BYTES`].
    pub(super) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(super) fn logical_block(&self) -> u32 {
        self.logical_block
    }

    pub(super) fn physical_block(&self) -> u32 {
        self.physical_block
    }

    /// Fills `buffers` from position `at`.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` when it has become shorter.
    pub(super) fn read(&self, buffers: &mut Buffers<'_>, at: u64) -> io::Result<()> {
        buffers.transfer(at, io::ErrorKind::UnexpectedEof, |buffers, count, at| {
            // SAFETY: `buffers` points to `count` iovecs, each of them a part of guest memory
            // that stays mapped while `Buffers` borrows it and that no Rust reference points to.
            unsafe { libc::preadv64(self.file.as_raw_fd(), buffers, count, at) }
        })
    }

    /// Writes `buffers` to position `at`.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn write(&self, buffers: &mut Buffers<'_>, at: u64) -> io::Result<()> {
        buffers.transfer(at, io::ErrorKind::WriteZero, |buffers, count, at| {
            // SAFETY: as for reading; the memory is only read here.
            unsafe { libc::pwritev64(self.file.as_raw_fd(), buffers, count, at) }
        })
    }

    /// Makes all that was written durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    /// Clears `bytes` from position `at`.
    ///
    /// # Errors
    /// `Unsupported` for a discard the file system cannot do; else the file's.
    pub(super) fn clear(&self, how: Clear, at: u64, bytes: u64) -> io::Result<()> {
        let flags = FallocateFlags::KEEP_SIZE
            | match how {
                Clear::Discard | Clear::Unmap => FallocateFlags::PUNCH_HOLE,
                Clear::Zero => FallocateFlags::ZERO_RANGE,
            };
        match fallocate(&self.file, flags, at, bytes) {
            Err(Errno::OPNOTSUPP) if how == Clear::Discard => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Err(Errno::OPNOTSUPP) => self.write_zeroes(at, bytes),
            result => Ok(result?),
        }
    }

    fn write_zeroes(&self, mut at: u64, bytes: u64) -> io::Result<()> {
        let end = at + bytes;
        while at < end {
            let part =
                usize::try_from(end - at).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            match pwrite(&self.file, &ZEROES[..part], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => at += written as u64,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn check_access(flags: OFlags, readonly: bool) -> Result<(), DiskError> {
    let access = |how| Err(DiskError::Access { how });
    if flags.contains(OFlags::PATH) {
        return access("as a path only");
    }
    match flags & OFlags::RWMODE {
        OFlags::WRONLY => access("for writing only"),
        OFlags::RDONLY if !readonly => access("for reading only"),
        _ if flags.contains(OFlags::APPEND) && !readonly => access("for appending"),
        _ => Ok(()),
    }
}

/// Parts of guest memory, in the order of a request.
pub(super) struct Buffers<'a> {
    parts: &'a mut [libc::iovec],
}

impl<'a> Buffers<'a> {
    /// # Safety
    /// Each part must be guest memory that stays mapped for `'a`.
    pub(super) unsafe fn new(parts: &'a mut [libc::iovec]) -> Self {
        Self { parts }
    }

    /// Calls `io` with what is left and where it belongs until it has moved all bytes.
    ///
    /// # Errors
    /// What `io` leaves in `errno`, or `none_left` when it moves nothing.
    pub(super) fn transfer(
        &mut self,
        at: u64,
        none_left: io::ErrorKind,
        io: impl Fn(*const libc::iovec, libc::c_int, i64) -> isize,
    ) -> io::Result<()> {
        let mut at = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        loop {
            while self.parts.first().is_some_and(|part| part.iov_len == 0) {
                self.skip_first();
            }
            if self.parts.is_empty() {
                return Ok(());
            }
            // A request has fewer segments than a queue has descriptors.
            let count = libc::c_int::try_from(self.parts.len()).unwrap_or(libc::c_int::MAX);
            match io(self.parts.as_ptr(), count, at) {
                0 => return Err(none_left.into()),
                moved if moved > 0 => {
                    at += moved as i64;
                    self.consume(moved.cast_unsigned());
                }
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn skip_first(&mut self) {
        let parts = std::mem::take(&mut self.parts);
        self.parts = &mut parts[1..];
    }

    fn consume(&mut self, mut bytes: usize) {
        while let Some(first) = self.parts.first_mut() {
            if bytes < first.iov_len {
                first.iov_base = first.iov_base.wrapping_byte_add(bytes);
                first.iov_len -= bytes;
                return;
            }
            bytes -= first.iov_len;
            self.skip_first();
        }
    }
}
