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
    vm::{ControlAnswer, ControlReply, ControlRequest, ExitReason, LIFELINES_MAX},
};
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::{fds::Fds, launch::one_line, vm::Vm};

mod connection;
#[cfg(test)]
mod tests;

use connection::{Connection, Progress};

/// Most clients of the listener at a time, beside those that are lifelines. The one that has been
/// silent longest makes room for one more, so that idle connections cannot shut others out.
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
    /// Whether the VM lives at least as long.
    lifeline: bool,
}

/// Serves a VM until its end.
#[derive(Debug)]
pub struct Server {
    vm: Vm,
    epoll: std::os::fd::OwnedFd,
    /// The first lifeline, until it closes.
    launch: Option<Connection>,
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
            launch: Some(Connection::new(launch)),
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

    fn serve_launch(&mut self) -> Option<ExitReason> {
        let launch = self.launch.as_mut()?;
        let vm = &mut self.vm;
        // It is a lifeline by nature.
        let mut held = true;
        match launch.serve(&mut |request, fds| answer(vm, request, fds, &mut held)) {
            Progress::Waiting { output } => {
                let token = Token::Launch.data();
                epoll::modify(&self.epoll, launch.socket(), token, interest(output))
                    .err()
                    .map(|_| ExitReason::Error)
            }
            Progress::Shutdown => Some(ExitReason::Shutdown),
            Progress::Closed => {
                self.launch = None;
                self.without_lifeline()
            }
        }
    }

    fn serve_client(&mut self, index: usize) -> Option<ExitReason> {
        let may_hold = self.lifelines() < LIFELINES_MAX;
        let slot = self.clients.get_mut(index)?;
        let client = slot.as_mut()?;
        client.active = self.events;
        let vm = &mut self.vm;
        let lifeline = &mut client.lifeline;
        let progress = client.connection.serve(&mut |request, fds| {
            if request == ControlRequest::Hold && !may_hold && !*lifeline {
                return Err(format!("the VM has {LIFELINES_MAX} lifelines already"));
            }
            answer(vm, request, fds, lifeline)
        });
        let closed = match progress {
            Progress::Shutdown => return Some(ExitReason::Shutdown),
            Progress::Closed => true,
            Progress::Waiting { output } => {
                let socket = client.connection.socket();
                let token = Token::Client(index).data();
                epoll::modify(&self.epoll, socket, token, interest(output)).is_err()
            }
        };
        if closed {
            *slot = None;
        }
        self.without_lifeline()
    }

    /// Lifelines beside the launch socket.
    fn lifelines(&self) -> usize {
        let clients = self.clients.iter().flatten();
        clients.filter(|client| client.lifeline).count()
    }

    /// The VM's end, when nobody holds it any more.
    fn without_lifeline(&self) -> Option<ExitReason> {
        (self.launch.is_none() && self.lifelines() == 0).then_some(ExitReason::Shutdown)
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
                lifeline: false,
            });
        }
    }

    /// Index of an unused place, made by closing the longest silent client if need be.
    fn free_client(&mut self) -> usize {
        if let Some(index) = self.clients.iter().position(Option::is_none) {
            return index;
        }
        if self.clients.len() < CONNECTIONS_MAX + self.lifelines() {
            self.clients.push(None);
            return self.clients.len() - 1;
        }
        let idle = (self.clients.iter().enumerate())
            .filter_map(|(index, client)| Some((index, client.as_ref()?)))
            .filter(|(_, client)| !client.lifeline)
            .min_by_key(|(_, client)| client.active);
        let (index, _) = idle.expect("there are CONNECTIONS_MAX clients beside the lifelines");
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

/// Does what `request` asks, with the descriptors that came with it, of a client that may become a
/// lifeline. `Shutdown` is the server's to act on.
fn answer(
    vm: &mut Vm,
    request: ControlRequest,
    fds: &mut Fds,
    lifeline: &mut bool,
) -> ControlReply {
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
        ControlRequest::Hold => {
            *lifeline = true;
            Ok(ControlAnswer::Done)
        }
        ControlRequest::Shutdown => Ok(ControlAnswer::Done),
    }
}
