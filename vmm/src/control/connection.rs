//! One client: reads a request, has it answered, writes the reply, and only then reads the next.

use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
};

use lazaret_protocol::{
    frame,
    vm::{ControlReply, ControlRequest},
};

use crate::{fds::Fds, wire::FrameReader};

/// How far a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It waits: for the next request, or to write more of a reply.
    Waiting {
        /// Whether it waits to write.
        output: bool,
    },
    /// The client asked for the VM's end, and has its reply.
    Shutdown,
    /// The client is gone, or sent what is no request.
    Closed,
}

/// A non-blocking connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: UnixStream,
    reader: FrameReader,
    /// A reply, and how much of it is written.
    reply: Vec<u8>,
    written: usize,
    shutdown: bool,
}

impl Connection {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            reader: FrameReader::default(),
            reply: Vec::new(),
            written: 0,
            shutdown: false,
        }
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Goes on as far as it can without waiting, one request at most: others want their turn.
    pub(super) fn serve(
        &mut self,
        answer: &mut dyn FnMut(ControlRequest, &mut Fds) -> ControlReply,
    ) -> Progress {
        if self.reply.is_empty() {
            match self.reader.read(&self.socket) {
                Ok(Some(frame)) => {
                    // Descriptors that the request does not use are closed with this.
                    let mut fds = Fds::new(frame.fds);
                    let Ok(request) = frame::decode(&frame.payload) else {
                        return Progress::Closed;
                    };
                    self.shutdown = request == ControlRequest::Shutdown;
                    match frame::encode(&answer(request, &mut fds)) {
                        Ok(reply) => self.reply = reply,
                        Err(error) => {
                            tracing::error!(%error, "control reply cannot be sent");
                            return Progress::Closed;
                        }
                    }
                }
                Ok(None) => return Progress::Waiting { output: false },
                Err(_) => return Progress::Closed,
            }
        }
        self.write_reply()
    }

    fn write_reply(&mut self) -> Progress {
        while self.written < self.reply.len() {
            match self.socket.write(&self.reply[self.written..]) {
                Ok(0) => return self.gone(),
                Ok(bytes) => self.written += bytes,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    // A shutdown does not wait for a client that does not read.
                    io::ErrorKind::WouldBlock if !self.shutdown => {
                        return Progress::Waiting { output: true };
                    }
                    _ => return self.gone(),
                },
            }
        }
        self.reply = Vec::new();
        self.written = 0;
        if self.shutdown {
            Progress::Shutdown
        } else {
            Progress::Waiting { output: false }
        }
    }

    fn gone(&self) -> Progress {
        if self.shutdown {
            Progress::Shutdown
        } else {
            Progress::Closed
        }
    }
}
