//! One session of a guest with a share, from `INIT` to `DESTROY`: takes requests apart and
//! answers them.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use fuse_backend_rs::{
    abi::fuse_abi::{InHeader, Opcode, OutHeader},
    api::server::Server,
    transport::{Reader, VirtioFsWriter, Writer},
};
use vm_memory::ByteValued;

use super::{Share, descriptors::Limits, extra};
use crate::devices::{
    fs::REQUEST_MAX_BYTES,
    serve::{BrokenQueue, Request, read_start},
};

/// Bytes of the header of a message.
const HEADER_BYTES: usize = size_of::<InHeader>();
/// Bytes of the header of an answer.
const ANSWER_HEADER_BYTES: usize = size_of::<OutHeader>();

/// A share and the guest that uses it.
pub(in super::super) struct Session {
    share: Arc<Share>,
    server: Server<Arc<Share>>,
    requests: AtomicU64,
    malformed: AtomicU64,
}

impl Session {
    /// A session that was not started yet, for the directory `root` (an `O_PATH` descriptor).
    ///
    /// # Errors
    /// When `root` is no directory or `/proc` cannot be used.
    pub(in super::super) fn new(root: OwnedFd) -> io::Result<Self> {
        let share = Arc::new(Share::new(root, Limits::of_process())?);
        Ok(Self {
            server: Server::new(Arc::clone(&share)),
            share,
            requests: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
        })
    }

    /// Whether the guest has started the session and not ended it.
    pub(in super::super) fn is_started(&self) -> bool {
        self.share.started.load(Ordering::Relaxed)
    }

    /// Ends the session: forgets every inode but the root's, closes every handle.
    pub(in super::super) fn reset(&self) {
        self.share.end();
    }

    /// Calls `report` with each counter.
    pub(in super::super) fn counters(&self, report: &mut dyn FnMut(&'static str, u64)) {
        report("requests", self.requests.load(Ordering::Relaxed));
        report("malformed", self.malformed.load(Ordering::Relaxed));
        report("inodes", self.share.inodes.len() as u64);
        report("handles", self.share.handles.len() as u64);
    }

    /// Serves one message and returns the length of the answer.
    ///
    /// # Errors
    /// When the chain has no room for a message or for the answer to one.
    pub(in super::super) fn serve(&self, request: &Request<'_>) -> Result<u32, BrokenQueue> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut header = InHeader::default();
        if read_start(request, header.as_mut_slice()) < HEADER_BYTES {
            return Err(BrokenQueue::Short);
        }
        let has_answer = !is_silent(header.opcode);
        let writable: u64 = request
            .segments
            .iter()
            .filter(|segment| segment.writable)
            .map(|segment| u64::from(segment.bytes))
            .sum();
        if has_answer && writable < ANSWER_HEADER_BYTES as u64 {
            return Err(BrokenQueue::Short);
        }
        match self.answer(request, &header) {
            Ok(bytes) => Ok(bytes),
            Err(code) => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
                if has_answer {
                    write_error(request, &header, code)
                } else {
                    Ok(0)
                }
            }
        }
    }

    /// Answers a message; the error code of those that are none.
    fn answer(&self, request: &Request<'_>, header: &InHeader) -> Result<u32, i32> {
        let memory = request.memory;
        let mut reader = Reader::from_descriptor_chain(memory, request.chain.clone())
            .map_err(|_| libc::EINVAL)?;
        let mut writer =
            VirtioFsWriter::new(memory, request.chain.clone()).map_err(|_| libc::EINVAL)?;
        let readable = reader.available_bytes();
        if readable > REQUEST_MAX_BYTES || writer.available_bytes() > REQUEST_MAX_BYTES {
            return Err(libc::E2BIG);
        }
        if (header.len as usize) < HEADER_BYTES || header.len as usize > readable {
            return Err(libc::EINVAL);
        }
        if matches!(header.opcode, extra::COPY_FILE_RANGE | extra::TMPFILE) {
            let header: InHeader = reader.read_obj().map_err(|_| libc::EINVAL)?;
            let result = self
                .share
                .extra(&header, &mut reader)
                .unwrap_or_else(|| Err(io::Error::from_raw_os_error(libc::ENOSYS)));
            return write_answer(&mut writer, &header, &result).map_err(|_| libc::EINVAL);
        }
        if !is_served(header.opcode) {
            return Err(libc::ENOSYS);
        }
        let bytes = self
            .server
            .handle_message(reader, Writer::VirtioFs(writer), None, None)
            .map_err(|error| {
                tracing::debug!(opcode = header.opcode, %error, "malformed message");
                libc::EINVAL
            })?;
        if header.opcode == Opcode::Destroy as u32 {
            // The library does not say how long its answer is: a header.
            return Ok(ANSWER_HEADER_BYTES as u32);
        }
        // At most REQUEST_MAX_BYTES.
        u32::try_from(bytes).map_err(|_| libc::EIO)
    }
}

/// Messages without an answer.
fn is_silent(opcode: u32) -> bool {
    [Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt]
        .into_iter()
        .any(|silent| silent as u32 == opcode)
}

/// Messages that are handed to the library. Not: locks and poll, which stay in the guest; bmap,
/// which would show where files lie on the host's disk; ioctl, which reaches drivers; flush, since
/// closing a file on the host has nothing to tell either (and without an answer the guest saves a
/// message for each close); access, which the guest decides itself; `SYNCFS`, which would make
/// the host write out what all its other users wrote; DAX mappings, which are not offered.
fn is_served(opcode: u32) -> bool {
    use Opcode as O;
    [
        O::Lookup,
        O::Forget,
        O::Getattr,
        O::Setattr,
        O::Readlink,
        O::Symlink,
        O::Mknod,
        O::Mkdir,
        O::Unlink,
        O::Rmdir,
        O::Rename,
        O::Link,
        O::Open,
        O::Read,
        O::Write,
        O::Statfs,
        O::Release,
        O::Fsync,
        O::Setxattr,
        O::Getxattr,
        O::Listxattr,
        O::Removexattr,
        O::Init,
        O::Opendir,
        O::Readdir,
        O::Releasedir,
        O::Fsyncdir,
        O::Create,
        O::Interrupt,
        O::Destroy,
        O::BatchForget,
        O::Fallocate,
        O::Readdirplus,
        O::Rename2,
        O::Lseek,
    ]
    .into_iter()
    .any(|served| served as u32 == opcode)
}

fn write_answer(
    writer: &mut impl Write,
    header: &InHeader,
    result: &io::Result<extra::Answer>,
) -> io::Result<u32> {
    let (error, body) = match result {
        Ok(answer) => (0, answer.as_slice()),
        Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), &[][..]),
    };
    let bytes = (ANSWER_HEADER_BYTES + body.len()) as u32;
    let out = OutHeader {
        len: bytes,
        error,
        unique: header.unique,
    };
    writer.write_all(out.as_slice())?;
    writer.write_all(body)?;
    Ok(bytes)
}

fn write_error(request: &Request<'_>, header: &InHeader, code: i32) -> Result<u32, BrokenQueue> {
    let mut writer = VirtioFsWriter::new(request.memory, request.chain.clone())
        .map_err(|_| BrokenQueue::Short)?;
    let result = Err(io::Error::from_raw_os_error(code));
    write_answer(&mut writer, header, &result).map_err(|_| BrokenQueue::Short)
}
