//! System calls on the host's sockets: payload to and from guest memory, the `CONNECT` line, and
//! the hand-over of a socket to an acceptor. Called by the backend; knows no packets.
//!
//! Nothing here blocks, whether or not a socket is in blocking mode.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType,
    },
};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// Most parts of one transfer (`UIO_MAXIOV` of the kernel).
const PARTS_MAX: usize = 1024;

/// Longest `CONNECT` line: `CONNECT 4294967295\n`.
const LINE_BYTES_MAX: usize = 19;

/// What bytes pass through on their way from guest memory into a ring, in bytes.
const COPY_BYTES: usize = 4096;

/// Slices of guest memory that together are the payload of one or several packets. They live as
/// long as the memory they point into; their list keeps its room from one use to the next.
#[derive(Debug, Default)]
pub(super) struct GuestSlices<'m> {
    slices: Vec<VolatileSlice<'m>>,
    bytes: usize,
    parts: Parts,
}

/// The list of a transfer as the kernel reads it. Only [`GuestSlices::message`] fills it, before
/// each call.
#[derive(Debug, Default)]
struct Parts(Vec<libc::iovec>);

impl<'m> GuestSlices<'m> {
    /// Forgets all slices.
    pub(super) fn clear(&mut self) {
        self.slices.clear();
        self.bytes = 0;
    }

    /// Adds a slice at the end.
    pub(super) fn push(&mut self, slice: VolatileSlice<'m>) {
        self.bytes += slice.len();
        self.slices.push(slice);
    }

    /// Length of all slices together.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Sends as much as `socket` takes now.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now, any other error when it never will again.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (message, _) = self.message(self.bytes);
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        retry(|| {
            // SAFETY: `message` points to `self.parts`, whose entries are the addresses and
            // lengths of slices that are valid for 'm, which outlives `self`. The kernel only
            // reads them, and no Rust reference to guest memory exists.
            unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) }
        })
    }

    /// Receives what `socket` has now, at most `limit` bytes. Returns how many bytes came and how
    /// many were asked for; no bytes are the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when it has nothing now, any other error when it never will again.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: usize,
    ) -> io::Result<(usize, usize)> {
        let (mut message, asked) = self.message(limit);
        let received = retry(|| {
            // SAFETY: `message` points to `self.parts`, whose entries are the addresses and
            // lengths of slices that are valid for 'm, which outlives `self`. They are memory of
            // the guest, which the kernel may write at any time: no Rust reference to it exists.
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) }
        })?;
        Ok((received, asked))
    }

    /// Appends everything after the first `skip` bytes to `ring`.
    pub(super) fn copy_after(&self, skip: usize, ring: &mut VecDeque<u8>) {
        let mut skip = skip;
        let mut copy = [0_u8; COPY_BYTES];
        for slice in &self.slices {
            let mut from = skip.min(slice.len());
            skip -= from;
            while let Ok(rest) = slice.offset(from) {
                let bytes = rest.copy_to(&mut copy[..]);
                if bytes == 0 {
                    break;
                }
                ring.extend(&copy[..bytes]);
                from += bytes;
            }
        }
    }

    /// A message of the first `limit` bytes, or less if that takes too many parts, and its length.
    fn message(&mut self, limit: usize) -> (libc::msghdr, usize) {
        self.parts.0.clear();
        let mut bytes = 0;
        for slice in self.slices.iter().take(PARTS_MAX) {
            let part = slice.len().min(limit - bytes);
            if part == 0 {
                break;
            }
            self.parts.0.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: part,
            });
            bytes += part;
        }
        let message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: self.parts.0.as_mut_ptr(),
            msg_iovlen: self.parts.0.len(),
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        (message, bytes)
    }
}

/// Repeats a system call that a signal interrupted, and turns its result into ours.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_negative) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Sends as much of `ring` as `socket` takes now, and takes it out. Returns how many bytes.
///
/// # Errors
/// When it will never take any again.
pub(super) fn send_ring(socket: BorrowedFd<'_>, ring: &mut VecDeque<u8>) -> io::Result<usize> {
    let mut total = 0;
    while !ring.is_empty() {
        let (first, second) = ring.as_slices();
        let sent = rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                socket,
                &[IoSlice::new(first), IoSlice::new(second)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )
        });
        match sent {
            Ok(bytes) => {
                ring.drain(..bytes);
                total += bytes;
            }
            Err(rustix::io::Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(total)
}

/// What is to be read of a client that has just connected.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its line.
    Connect {
        /// The port it wants.
        port: u32,
        /// Whether there may be bytes behind the line already.
        more: bool,
    },
    /// The beginning of a line, or nothing yet.
    Unfinished,
    /// Something else, or the end.
    Refused,
}

/// Reads the client's `CONNECT <port>\n` and not a byte more, once it is there as a whole.
pub(super) fn read_line(client: BorrowedFd<'_>) -> Line {
    let mut bytes = [0; LINE_BYTES_MAX];
    let seen = match receive(client, &mut bytes, RecvFlags::PEEK) {
        Ok(0) => return Line::Refused,
        Ok(count) => &bytes[..count],
        Err(rustix::io::Errno::AGAIN) => return Line::Unfinished,
        Err(_) => return Line::Refused,
    };
    match parse_line(seen) {
        Parsed::Unfinished => Line::Unfinished,
        Parsed::Refused => Line::Refused,
        Parsed::Connect { port, length } => {
            let more = seen.len() > length || seen.len() == LINE_BYTES_MAX;
            let mut taken = [0; LINE_BYTES_MAX];
            if receive(client, &mut taken[..length], RecvFlags::empty()) == Ok(length) {
                Line::Connect { port, more }
            } else {
                Line::Refused
            }
        }
    }
}

fn receive(
    client: BorrowedFd<'_>,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> Result<usize, rustix::io::Errno> {
    rustix::io::retry_on_intr(|| {
        rustix::net::recv(client, &mut *bytes, flags | RecvFlags::DONTWAIT)
    })
    .map(|(count, _)| count)
}

/// What the first bytes of a client are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A line of `length` bytes that asks for `port`.
    Connect {
        /// The guest's port.
        port: u32,
        /// With the newline.
        length: usize,
    },
    /// The beginning of one.
    Unfinished,
    /// Anything else.
    Refused,
}

/// Reads the line at the start of `seen`.
pub(super) fn parse_line(seen: &[u8]) -> Parsed {
    const COMMAND: &[u8] = b"CONNECT ";
    let common = seen.len().min(COMMAND.len());
    if seen[..common] != COMMAND[..common] {
        return Parsed::Refused;
    }
    let mut number: Option<u32> = None;
    for (position, byte) in seen.iter().enumerate().skip(COMMAND.len()) {
        match (byte, number) {
            (b'0'..=b'9', _) => {
                let digit = u32::from(byte - b'0');
                number = number
                    .unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|tens| tens.checked_add(digit));
                if number.is_none() {
                    return Parsed::Refused;
                }
            }
            (b'\n', Some(port)) => {
                let length = position + 1;
                return Parsed::Connect { port, length };
            }
            _ => return Parsed::Refused,
        }
    }
    if seen.len() < LINE_BYTES_MAX {
        Parsed::Unfinished
    } else {
        Parsed::Refused
    }
}

/// Tells the client that the guest accepted, with the host's port of the connection. Whether it
/// could be told at once: an idle socket that does not take 14 bytes is not worth waiting for.
pub(super) fn send_ok(client: BorrowedFd<'_>, host_port: u32) -> bool {
    let line = format!("OK {host_port}\n");
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::send(
            client,
            line.as_bytes(),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )
    });
    sent == Ok(line.len())
}

/// Makes a stream socket pair, sends one end over `acceptor` and returns the other.
///
/// # Errors
/// When the process is out of descriptors, or the acceptor is full or closed.
pub(super) fn offer(acceptor: &OwnedFd) -> io::Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [theirs.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(
            acceptor,
            &[IoSlice::new(&[0])],
            &mut control,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )
    })?;
    Ok(ours)
}

/// Waits until `event` is readable, however long it takes.
pub(super) fn wait_readable(event: &EventFd) {
    // SAFETY: `event` is borrowed, and so open, for longer than this function uses the descriptor.
    let descriptor = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut watched = [PollFd::new(&descriptor, PollFlags::IN)];
    while rustix::event::poll(&mut watched, None) != Ok(1) {}
}
