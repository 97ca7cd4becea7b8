//! Calls to the agent of a sandbox, through the Unix socket of its vsock device. Called by the
//! verbs and the monitor; synchronous, so that a verb needs neither threads nor a reactor, with an
//! asynchronous end for calls that are held open.
//!
//! A connection begins with the text handshake of the vsock device: `CONNECT <port>\n` answered by
//! `OK <host port>\n`. The request follows the first line without waiting for the second.

use std::{
    io::{self, Write as _},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Duration,
};

use lazaret_protocol::{
    agent::{self, Answer, Failure, Reply, Request},
    frame::{self, FrameError},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::RecvFlags,
};
use tokio::io::AsyncReadExt as _;

/// Name of the vsock device's socket in the state directory.
pub(crate) const SOCKET: &str = "vsock.sock";

/// How long a verb waits for an answer. The longest honest call is `Leave`, which waits
/// until all processes are gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest line of the handshake: `OK 4294967295\n`.
const LINE_MAX_BYTES: usize = 16;

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// The device's socket cannot be connected to: the VM has gone.
    #[error("cannot reach the sandbox's VM")]
    Connect(#[source] io::Error),
    /// The device did not connect us to the agent.
    #[error("the guest agent does not accept connections")]
    Handshake(#[source] io::Error),
    /// The agent takes too long.
    #[error("the guest agent did not answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// The call broke off.
    #[error("call to the guest agent failed")]
    Frame(#[source] FrameError),
    /// The agent said no.
    #[error(transparent)]
    Refused(Failure),
    /// The caller no longer waits.
    #[error("interrupted")]
    Interrupted,
    /// The agent answered another question.
    #[error("the guest agent gave an answer that does not belong to the call")]
    Unexpected,
}

impl AgentError {
    /// Whether the call broke off, as it does when the guest ends, rather than being refused.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Connect(_) | Self::Handshake(_) | Self::Frame(_))
    }
}

/// The agent of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    socket: PathBuf,
}

impl Agent {
    /// The agent behind the socket in the state directory `dir`, which stays open for as long as
    /// the result is used.
    pub(crate) fn new(dir: &impl AsFd) -> Self {
        // A socket's path has at most 108 bytes; by way of the descriptor it always fits.
        let fd = dir.as_fd().as_raw_fd();
        Self {
            socket: format!("/proc/self/fd/{fd}/{SOCKET}").into(),
        }
    }

    /// Sends a request without waiting for its answer.
    ///
    /// # Errors
    /// [`AgentError::Connect`] or [`AgentError::Frame`].
    pub(crate) fn begin(&self, request: &Request) -> Result<Call, AgentError> {
        let mut message = format!("CONNECT {}\n", agent::PORT).into_bytes();
        message.extend(frame::encode(request).map_err(AgentError::Frame)?);
        let mut stream = UnixStream::connect(&self.socket).map_err(AgentError::Connect)?;
        stream.write_all(&message).map_err(AgentError::Connect)?;
        Ok(Call { stream })
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) fn call(&self, request: &Request) -> Result<Answer, AgentError> {
        Ok(self.begin(request)?.finish()?.0)
    }

    /// Makes a call that is answered with [`Answer::Done`].
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) fn done(&self, request: &Request) -> Result<(), AgentError> {
        done(self.call(request)?)
    }
}

/// A call whose answer is outstanding.
#[derive(Debug)]
pub(crate) struct Call {
    stream: UnixStream,
}

impl Call {
    /// Waits for the answer; returns the connection with it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) fn finish(self) -> Result<(Answer, UnixStream), AgentError> {
        self.finish_within(Some(CALL_TIMEOUT))
    }

    /// The same for a call whose answer comes when somebody resumes the container.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) fn finish_when_resumed(self) -> Result<(Answer, UnixStream), AgentError> {
        self.finish_within(None)
    }

    fn finish_within(
        mut self,
        timeout: Option<Duration>,
    ) -> Result<(Answer, UnixStream), AgentError> {
        self.stream
            .set_read_timeout(timeout)
            .map_err(AgentError::Handshake)?;
        self.skip_line().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => AgentError::Timeout,
            _ => AgentError::Handshake(error),
        })?;
        let reply: Reply = frame::read(&mut self.stream).map_err(|error| match error {
            FrameError::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                AgentError::Timeout
            }
            error => AgentError::Frame(error),
        })?;
        Ok((reply.map_err(AgentError::Refused)?, self.stream))
    }

    /// Waits for [`Answer::Done`] for as long as it takes, or until one of `interrupts` becomes
    /// readable or loses its other end.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) fn finish_late(mut self, interrupts: &[BorrowedFd<'_>]) -> Result<(), AgentError> {
        // A guest that does not take the call must be as easy to leave as one that does not answer.
        self.wait_readable(interrupts)?;
        self.skip_line().map_err(AgentError::Handshake)?;
        self.wait_readable(interrupts)?;
        let reply: Reply = frame::read(&mut self.stream).map_err(AgentError::Frame)?;
        done(reply.map_err(AgentError::Refused)?)
    }

    /// Waits for bytes or the end of the connection, or for one of `interrupts`.
    fn wait_readable(&self, interrupts: &[BorrowedFd<'_>]) -> Result<(), AgentError> {
        let mut fds = vec![PollFd::new(&self.stream, PollFlags::IN)];
        fds.extend(
            interrupts
                .iter()
                .map(|&fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        loop {
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(AgentError::Handshake(error.into())),
            }
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
            if fds[1..].iter().any(|fd| !fd.revents().is_empty()) {
                return Err(AgentError::Interrupted);
            }
        }
    }

    /// Waits for [`Answer::Done`] and returns the connection, from now on a stream of bytes.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) fn finish_stream(self) -> Result<UnixStream, AgentError> {
        let (answer, stream) = self.finish()?;
        done(answer)?;
        Ok(stream)
    }

    /// Waits for the answer without blocking the reactor, for as long as it takes.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(crate) async fn finish_async(self) -> Result<Answer, AgentError> {
        self.stream
            .set_nonblocking(true)
            .map_err(AgentError::Handshake)?;
        let mut stream =
            tokio::net::UnixStream::from_std(self.stream).map_err(AgentError::Handshake)?;
        let closed = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => AgentError::Frame(FrameError::Closed),
            _ => AgentError::Frame(FrameError::Io(error)),
        };
        let mut line = Vec::with_capacity(LINE_MAX_BYTES);
        while line.last() != Some(&b'\n') {
            if line.len() == LINE_MAX_BYTES {
                return Err(AgentError::Handshake(unknown_line()));
            }
            line.push(stream.read_u8().await.map_err(AgentError::Handshake)?);
        }
        check_line(&line).map_err(AgentError::Handshake)?;
        let mut header = [0; frame::HEADER_BYTES];
        stream.read_exact(&mut header).await.map_err(closed)?;
        let bytes = frame::payload_bytes(header).map_err(AgentError::Frame)?;
        let mut payload = vec![0; bytes];
        stream.read_exact(&mut payload).await.map_err(closed)?;
        let reply: Reply = frame::decode(&payload).map_err(AgentError::Frame)?;
        reply.map_err(AgentError::Refused)
    }

    /// Takes the handshake's line off the stream, and not one byte more: what follows a stream's
    /// answer is the container's output.
    fn skip_line(&mut self) -> io::Result<()> {
        let mut line = [0; LINE_MAX_BYTES];
        let mut length = 0;
        while length < LINE_MAX_BYTES {
            // With a deadline, being stopped and continued interrupts it, without any handler.
            let (peeked, _) = rustix::io::retry_on_intr(|| {
                rustix::net::recv(&self.stream, &mut line[length..], RecvFlags::PEEK)
            })?;
            if peeked == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let piece = &line[length..length + peeked];
            let end = piece.iter().position(|&byte| byte == b'\n');
            let taken = end.map_or(peeked, |end| end + 1);
            io::Read::read_exact(&mut self.stream, &mut line[length..length + taken])?;
            length += taken;
            if end.is_some() {
                return check_line(&line[..length]);
            }
        }
        Err(unknown_line())
    }
}

fn done(answer: Answer) -> Result<(), AgentError> {
    match answer {
        Answer::Done => Ok(()),
        _ => Err(AgentError::Unexpected),
    }
}

fn check_line(line: &[u8]) -> io::Result<()> {
    let port = line
        .strip_prefix(b"OK ")
        .and_then(|rest| rest.strip_suffix(b"\n"))
        .and_then(|port| std::str::from_utf8(port).ok())
        .and_then(|port| port.parse::<u32>().ok());
    port.map(|_| ()).ok_or_else(unknown_line)
}

fn unknown_line() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "unknown handshake")
}

#[cfg(test)]
mod tests;
