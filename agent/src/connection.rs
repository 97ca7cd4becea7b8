//! One connection of the runtime, or the channel to a container's init: a stream socket that the
//! agent's main thread waits on. Whether it is vsock or a Unix socket makes no difference here.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_protocol::frame::{self, FrameError, HEADER_BYTES};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, Shutdown, recv, recvmsg, send,
    shutdown,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// A connected stream socket in non-blocking mode.
#[derive(Debug)]
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Registers `socket` with the running tokio runtime.
    ///
    /// # Errors
    /// When it cannot be made non-blocking or be registered.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: sys::watch(socket, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// The socket itself.
    pub fn socket(&self) -> &AsyncFd<OwnedFd> {
        &self.socket
    }

    /// The socket, which the runtime does not wait on any more.
    pub fn into_socket(self) -> OwnedFd {
        self.socket.into_inner()
    }

    /// Receives up to `buffer.len()` bytes; 0 is the peer's half-close.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket
            .async_io(Interest::READABLE, |socket| {
                let (bytes, _) = recv(socket, &mut *buffer, RecvFlags::empty())?;
                Ok(bytes)
            })
            .await
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// Those of `send(2)`; never a `SIGPIPE`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(self.socket.get_ref(), bytes, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(Errno::AGAIN) => self.writable_again().await?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until the socket may take bytes again, after it refused some with `EAGAIN`. Writers
    /// try first and wait then, never the other way round: [`Connection::refuses_writes`] consumes
    /// the same readiness.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn writable_again(&self) -> io::Result<()> {
        self.socket.ready(Interest::WRITABLE).await?.clear_ready();
        Ok(())
    }

    /// Tells the peer that nothing more comes. A connection that is gone already is no error.
    pub fn shutdown_write(&self) {
        // The only failures are those of a connection that has ended, which is what is wanted.
        let _ = shutdown(self.socket.get_ref(), Shutdown::Write);
    }

    /// Returns when the peer takes no more bytes, which a mere half-close of its own direction
    /// does not mean. What the peer still sends is discarded.
    pub async fn closed(&self) {
        let mut scrap = [0; 64];
        while matches!(self.read(&mut scrap).await, Ok(1..)) {}
        self.refuses_writes().await;
    }

    /// The second half of [`Connection::closed`], after the peer's half-close was seen.
    pub async fn refuses_writes(&self) {
        loop {
            // A socket whose peer has closed becomes writable, with an error; so each change of
            // writability is a reason to look.
            let Ok(mut guard) = self.socket.ready(Interest::WRITABLE).await else {
                return;
            };
            // Sending nothing fails if and only if sending something would.
            if send(self.socket.get_ref(), &[], SendFlags::NOSIGNAL).is_err() {
                return;
            }
            guard.clear_ready();
        }
    }

    /// Receives one frame and not one byte more.
    ///
    /// # Errors
    /// As [`frame::read`].
    pub async fn read_frame<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        let mut header = [0; HEADER_BYTES];
        self.read_exact(&mut header).await?;
        self.read_payload(header).await
    }

    /// Like [`Connection::read_frame`], for a Unix socket whose peer may attach one descriptor to
    /// the frame's first byte. `None` when the peer closed instead of sending.
    ///
    /// # Errors
    /// As [`frame::read`].
    pub async fn read_frame_with_fd<T: DeserializeOwned>(
        &self,
    ) -> Result<Option<(T, Option<OwnedFd>)>, FrameError> {
        let mut header = [0; HEADER_BYTES];
        let (received, fd) = self
            .socket
            .async_io(Interest::READABLE, |socket| {
                receive_with_fd(socket.as_fd(), &mut header)
            })
            .await
            .map_err(FrameError::Io)?;
        if received == 0 {
            return Ok(None);
        }
        self.read_exact(&mut header[received..]).await?;
        Ok(Some((self.read_payload(header).await?, fd)))
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As [`frame::write`].
    pub async fn write_frame<T: Serialize>(&self, value: &T) -> Result<(), FrameError> {
        let bytes = frame::encode(value)?;
        self.write_all(&bytes).await.map_err(FrameError::Io)
    }

    async fn read_payload<T: DeserializeOwned>(
        &self,
        header: [u8; HEADER_BYTES],
    ) -> Result<T, FrameError> {
        let mut payload = vec![0; frame::payload_bytes(header)?];
        self.read_exact(&mut payload).await?;
        frame::decode(&payload)
    }

    async fn read_exact(&self, mut buffer: &mut [u8]) -> Result<(), FrameError> {
        while !buffer.is_empty() {
            match self.read(buffer).await.map_err(FrameError::Io)? {
                0 => return Err(FrameError::Closed),
                bytes => buffer = &mut buffer[bytes..],
            }
        }
        Ok(())
    }
}

fn receive_with_fd(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = retry(|| {
        recvmsg(
            socket,
            &mut [io::IoSliceMut::new(buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((received.bytes, fd))
}

/// Repeats a system call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
