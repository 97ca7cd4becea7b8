//! Frames with descriptors from a Unix socket, blocking or not. The launch and the control socket
//! read with this; it knows frames, not what is in them.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use lazaret_protocol::{
    frame::{self, FrameError, HEADER_BYTES},
    vm::FDS_MAX,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags};

/// What one system call reads at most. The buffer grows with what arrives, not with what the
/// header announces.
const CHUNK_BYTES: usize = 4096;

/// A frame that has arrived.
#[derive(Debug)]
pub struct Frame {
    /// Its payload.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Reads frames from one stream, and not one byte past the end of each.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl FrameReader {
    /// Reads on. `None` when the socket is non-blocking and has no more for now.
    ///
    /// # Errors
    /// When the peer closed the stream, sends too long a frame or too many descriptors, or the
    /// stream fails.
    pub fn read(&mut self, socket: &UnixStream) -> Result<Option<Frame>, FrameError> {
        loop {
            let missing = self.missing_bytes()?;
            if missing == 0 {
                self.bytes.drain(..HEADER_BYTES);
                return Ok(Some(Frame {
                    payload: std::mem::take(&mut self.bytes),
                    fds: std::mem::take(&mut self.fds),
                }));
            }
            match self.receive(socket, missing.min(CHUNK_BYTES)) {
                Ok(0) => return Err(FrameError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FrameError::Io(error)),
            }
        }
    }

    fn missing_bytes(&self) -> Result<usize, FrameError> {
        let whole = match self.bytes.first_chunk::<HEADER_BYTES>() {
            Some(header) => HEADER_BYTES + frame::payload_bytes(*header)?,
            None => HEADER_BYTES,
        };
        Ok(whole - self.bytes.len())
    }

    /// One `recvmsg` of at most `most` bytes. Returns how many there were.
    fn receive(&mut self, socket: &UnixStream, most: usize) -> io::Result<usize> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message = rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut chunk[..most])],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = ancillary {
                self.fds.extend(received);
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > FDS_MAX {
            return Err(io::Error::other("too many descriptors in one frame"));
        }
        self.bytes.extend_from_slice(&chunk[..message.bytes]);
        Ok(message.bytes)
    }
}
