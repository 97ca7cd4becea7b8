//! The main thread once the VM runs: waits for the VM's end and serves control requests from the
//! launch socket and the control listener. Event-driven; a client that is slow, silent or hostile
//! costs nobody else anything.

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
};

use lazaret_protocol::{
    frame::PAYLOAD_MAX_BYTES,
    vm::{ControlAnswer, ControlReply, ControlRequest, ExitReason},
};
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::{fds::Fds, launch::one_line, vm::Vm};

mod connection;
#[cfg(test)]
mod tests;

use connection::{Connection, Progress};

/// Most clients of the listener at a time. The one that has been silent longest makes room for
/// one more, so that idle connections cannot shut others out.
const CONNECTIONS_MAX: usize = 16;
/// What a console answer takes beside the console's bytes.
const ANSWER_OVERHEAD_BYTES: usize = 64;

/// Whose event it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    End,
    Listener,
    Launch,
    Client(usize),
}

impl Token {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::End => 0,
            Self::Listener => 1,
            Self::Launch => 2,
            Self::Client(index) => 3 + index as u64,
        })
    }

    fn from_data(data: EventData) -> Self {
        match data.u64() {
            0 => Self::End,
            1 => Self::Listener,
            2 => Self::Launch,
            client => Self::Client(usize::try_from(client - 3).unwrap_or(usize::MAX)),
        }
    }
}

/// A client of the listener.
#[derive(Debug)]
struct Client {
    connection: Connection,
    /// When it last did something, in events since the start.
    active: u64,
}

/// Serves a VM until its end.
#[derive(Debug)]
pub struct Server {
    vm: Vm,
    epoll: std::os::fd::OwnedFd,
    launch: Connection,
    listener: Option<UnixListener>,
    clients: Vec<Option<Client>>,
    events: u64,
}

impl Server {
    /// Serves `vm` on the launch socket and, if there is one, on `listener`.
    ///
    /// # Errors
    /// When a descriptor cannot be waited for: `listener` is no socket, for example.
    pub fn new(vm: Vm, launch: UnixStream, listener: Option<UnixListener>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        launch.set_nonblocking(true)?;
        epoll::add(&epoll, vm.end().as_fd(), Token::End.data(), EventFlags::IN)?;
        epoll::add(&epoll, &launch, Token::Launch.data(), EventFlags::IN)?;
        if let Some(listener) = &listener {
            listener.set_nonblocking(true)?;
            epoll::add(&epoll, listener, Token::Listener.data(), EventFlags::IN)?;
        }
        Ok(Self {
            vm,
            epoll,
            launch: Connection::new(launch),
            listener,
            clients: Vec::new(),
            events: 0,
        })
    }

    /// The VM.
    pub fn vm_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }

    /// Serves until the VM is over, by itself or by request.
    pub fn run(&mut self) -> ExitReason {
        loop {
            let mut event = [epoll::Event {
                flags: EventFlags::empty(),
                data: Token::End.data(),
            }];
            match epoll::wait(&self.epoll, &mut event, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for events");
                    return ExitReason::Error;
                }
            }
            self.events += 1;
            let over = match Token::from_data(event[0].data) {
                Token::End => self.vm.end().reason(),
                Token::Listener => {
                    self.accept();
                    None
                }
                Token::Launch => self.serve_launch(),
                Token::Client(index) => self.serve_client(index),
            };
            if let Some(reason) = over {
                return reason;
            }
        }
    }

    /// The launch socket is the VM's lifeline: without it the VM ends.
    fn serve_launch(&mut self) -> Option<ExitReason> {
        match self
            .launch
            .serve(&mut |request, fds| answer(&mut self.vm, request, fds))
        {
            Progress::Waiting { output } => {
                let flags = interest(output);
                epoll::modify(
                    &self.epoll,
                    self.launch.socket(),
                    Token::Launch.data(),
                    flags,
                )
                .err()
                .map(|_| ExitReason::Error)
            }
            Progress::Shutdown | Progress::Closed => Some(ExitReason::Shutdown),
        }
    }

    fn serve_client(&mut self, index: usize) -> Option<ExitReason> {
        let slot = self.clients.get_mut(index)?;
        let client = slot.as_mut()?;
        client.active = self.events;
        let vm = &mut self.vm;
        match client
            .connection
            .serve(&mut |request, fds| answer(vm, request, fds))
        {
            Progress::Waiting { output } => {
                let socket = client.connection.socket();
                let token = Token::Client(index).data();
                if epoll::modify(&self.epoll, socket, token, interest(output)).is_err() {
                    *slot = None;
                }
                None
            }
            Progress::Closed => {
                *slot = None;
                None
            }
            Progress::Shutdown => Some(ExitReason::Shutdown),
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        // What fails here concerns that client only, or passes: the next event tries again.
        let Ok((socket, _)) = listener.accept() else {
            return;
        };
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let index = self.free_client();
        if epoll::add(
            &self.epoll,
            &socket,
            Token::Client(index).data(),
            EventFlags::IN,
        )
        .is_ok()
        {
            self.clients[index] = Some(Client {
                connection: Connection::new(socket),
                active: self.events,
            });
        }
    }

    /// Index of an unused place, made by closing the longest silent client if need be.
    fn free_client(&mut self) -> usize {
        if let Some(index) = self.clients.iter().position(Option::is_none) {
            return index;
        }
        if self.clients.len() < CONNECTIONS_MAX {
            self.clients.push(None);
            return self.clients.len() - 1;
        }
        let silent = |client: &Option<Client>| client.as_ref().map_or(0, |client| client.active);
        let index = (0..self.clients.len())
            .min_by_key(|index| silent(&self.clients[*index]))
            .expect("there are CONNECTIONS_MAX clients");
        self.clients[index] = None;
        index
    }
}

fn interest(output: bool) -> EventFlags {
    if output {
        EventFlags::OUT
    } else {
        EventFlags::IN
    }
}

/// Does what `request` asks, with the descriptors that came with it. `Shutdown` is the server's to
/// act on.
fn answer(vm: &mut Vm, request: ControlRequest, fds: &mut Fds) -> ControlReply {
    tracing::debug!(?request, "control request");
    match request {
        ControlRequest::Describe => Ok(ControlAnswer::Description(vm.describe())),
        ControlRequest::Pause => {
            vm.pause();
            Ok(ControlAnswer::Done)
        }
        ControlRequest::Resume => vm
            .resume()
            .map(|()| ControlAnswer::Done)
            .map_err(|error| format!("cannot resume: {error}")),
        ControlRequest::Counters => Ok(ControlAnswer::Counters(vm.counters())),
        ControlRequest::Console => vm
            .console()
            .map(|mut output| {
                let most = PAYLOAD_MAX_BYTES - ANSWER_OVERHEAD_BYTES;
                output.drain(..output.len().saturating_sub(most));
                ControlAnswer::Console(output)
            })
            .ok_or_else(|| "this VM has no console".to_owned()),
        ControlRequest::Attach(config) => vm
            .attach(&config, fds)
            .map(|slot| ControlAnswer::Attached { slot })
            .map_err(|error| one_line(&error)),
        ControlRequest::Detach { slot } => vm
            .detach(slot)
            .map(|()| ControlAnswer::Done)
            .map_err(|error| one_line(&error)),
        ControlRequest::Shutdown => Ok(ControlAnswer::Done),
    }
}
