//! A session: one process in the guest and its streams, from attaching to them until the
//! process has ended and all it wrote has arrived. Called by the monitor for a container's process,
//! by a detached exec's monitor, and by a foreground exec in the command line's own process.

use std::{
    future::pending,
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    time::Duration,
};

use lazaret_protocol::{
    agent::{Answer, ExitStatus, ProcessRef, Request, StdStream, TerminalSize},
    container::{Process, Stdio},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

use super::stdio::{self, HostEnd, Progress};
use crate::{
    agent::{Agent, AgentError, Call},
    signals, sys,
    terminal::{self, TerminalError},
};

/// After the process has ended, how long its streams may be silent before they are given up: a
/// child that outlives it can hold them open for ever. Time that a reader on the host takes does
/// not count.
const SILENCE: Duration = Duration::from_millis(200);

/// Why a session broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// A call failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Something on the host failed.
    #[error("cannot {action}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn host_error(action: &'static str) -> impl FnOnce(io::Error) -> SessionError {
    move |source| SessionError::Host { action, source }
}

/// After the process has ended, how long a reader of a descriptor beside the standard streams may
/// take nothing before it is given up. Under runc the rest would lie in the kernel's pipe.
const READER_PATIENCE: Duration = Duration::from_secs(5);

/// Where the host's side of the streams is.
pub(crate) struct HostStreams {
    /// A pty's slave, our controlling terminal, if the process's is not the caller's.
    pub(crate) pty: Option<OwnedFd>,
    /// What follows the standard streams, in the order of the process's.
    pub(crate) preserved: Vec<OwnedFd>,
}

impl HostStreams {
    /// Those of a process that a monitor is left with: if it has a terminal and somebody waits for
    /// a pty at `console`, one is made and sent there.
    ///
    /// # Errors
    /// As [`terminal::send_pty`].
    pub(super) fn detached(
        console: Option<&std::os::unix::net::UnixStream>,
        terminal: Option<TerminalSize>,
        preserved: Vec<OwnedFd>,
    ) -> Result<Self, TerminalError> {
        let pty = console
            .zip(terminal)
            .map(|(console, size)| terminal::send_pty(console, size))
            .transpose()?;
        Ok(Self { pty, preserved })
    }
}

/// One stream, attached on both sides.
struct Attached {
    stream: StdStream,
    host_in: Option<HostEnd>,
    host_out: Option<HostEnd>,
    guest: std::os::unix::net::UnixStream,
}

/// A session, ready to go.
pub(crate) struct Session {
    agent: Agent,
    process: ProcessRef,
    streams: Vec<Attached>,
    wait: Call,
    /// Terminal whose size the guest's follows.
    terminal: Option<OwnedFd>,
}

impl Session {
    /// Attaches to the streams of `process`, which `spec` describes, and asks for its end.
    ///
    /// # Errors
    /// [`SessionError`].
    pub(crate) fn attach(
        agent: Agent,
        process: ProcessRef,
        spec: &Process,
        host: HostStreams,
    ) -> Result<Self, SessionError> {
        let ends = host_ends(spec, &host).map_err(host_error("take over the standard streams"))?;
        let mut calls = Vec::with_capacity(ends.len());
        for (stream, host_in, host_out) in ends {
            let request = Request::Stream {
                process: process.clone(),
                stream,
            };
            calls.push((agent.begin(&request)?, stream, host_in, host_out));
        }
        let mut streams = Vec::with_capacity(calls.len());
        for (call, stream, host_in, host_out) in calls {
            let guest = call.finish_stream()?;
            streams.push(Attached {
                stream,
                host_in,
                host_out,
                guest,
            });
        }
        let wait = agent.begin(&Request::Wait {
            process: process.clone(),
        })?;
        let terminal = match host.pty {
            Some(slave) => Some(slave),
            None if spec.terminal.is_some() => terminal::of_caller(),
            None => None,
        };
        Ok(Self {
            agent,
            process,
            streams,
            wait,
            terminal,
        })
    }

    /// Carries the streams, forwards signals and waits for the end. All signals must be blocked.
    ///
    /// # Errors
    /// [`SessionError`]; a lost connection says nothing about why it was lost.
    pub(crate) fn run(self) -> Result<ExitStatus, SessionError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(host_error("start the reactor"))?
            .block_on(self.carry())
    }

    async fn carry(self) -> Result<ExitStatus, SessionError> {
        let Self {
            agent,
            process,
            streams,
            wait,
            terminal,
        } = self;
        let signals = signals::open().map_err(host_error("receive signals"))?;
        let signals = sys::watch(signals, Interest::READABLE)
            .map_err(|(_, error)| host_error("receive signals")(error))?;

        let (standard, preserved) = (Progress::default(), Progress::default());
        let progress = |stream| match stream {
            StdStream::Descriptor(_) => &preserved,
            _ => &standard,
        };
        let (inputs, outputs) = split(streams)?;
        let mut outputs = pin!(all(outputs
            .into_iter()
            .map(|(stream, guest, host)| stdio::to_host(guest, host, progress(stream)))));
        let mut inputs = pin!(all(inputs.into_iter().map(|(stream, host, guest)| {
            stdio::to_guest(host, guest, stream == StdStream::Terminal)
        })));
        let mut ended = pin!(wait.finish_async());
        let mut forwarding = pin!(forward(&agent, &process, &signals, terminal.as_ref()));
        let (mut inputs_done, mut outputs_done) = (false, false);
        let answer = loop {
            tokio::select! {
                answer = &mut ended => break answer?,
                () = &mut outputs, if !outputs_done => outputs_done = true,
                () = &mut inputs, if !inputs_done => inputs_done = true,
                () = &mut forwarding => {}
            }
        };
        let Answer::Exited(status) = answer else {
            return Err(AgentError::Unexpected.into());
        };
        let moved = || (standard.moved(), preserved.moved());
        let mut silence = Duration::ZERO;
        while !outputs_done {
            let before = moved();
            tokio::select! {
                () = &mut outputs => outputs_done = true,
                () = &mut forwarding => {}
                () = tokio::time::sleep(SILENCE) => {
                    silence = if moved() == before { silence + SILENCE } else { Duration::ZERO };
                    let patience = if preserved.is_writing() { READER_PATIENCE } else { SILENCE };
                    outputs_done = silence >= patience && !standard.is_writing();
                }
            }
        }
        Ok(status)
    }
}

type Ends = (StdStream, Option<HostEnd>, Option<HostEnd>);

/// The host's ends for the streams that `spec` has.
fn host_ends(spec: &Process, host: &HostStreams) -> io::Result<Vec<Ends>> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut ends = Vec::with_capacity(3 + host.preserved.len());
    let mut standard = spec.stdio;
    if spec.terminal.is_some() {
        let (input, output) = match &host.pty {
            Some(slave) => (slave.as_fd(), slave.as_fd()),
            None => (stdin.as_fd(), stdout.as_fd()),
        };
        let (input, output) = (HostEnd::reading(input)?, HostEnd::writing(output)?);
        ends.push((StdStream::Terminal, Some(input), Some(output)));
        standard = [Stdio::Null; 3];
    }
    let fds = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let fds = fds
        .into_iter()
        .chain(host.preserved.iter().map(AsFd::as_fd));
    let kinds = standard.iter().chain(&spec.preserved);
    for (number, (kind, fd)) in (0..).zip(kinds.zip(fds)) {
        let (host_in, host_out) = match kind {
            Stdio::Null => continue,
            Stdio::Input => (Some(HostEnd::reading(fd)?), None),
            Stdio::Output => (None, Some(HostEnd::writing(fd)?)),
            Stdio::Both => {
                let (reading, writing) = HostEnd::both(fd)?;
                (Some(reading), Some(writing))
            }
        };
        ends.push((StdStream::of(number), host_in, host_out));
    }
    Ok(ends)
}

type Inputs = Vec<(StdStream, HostEnd, tokio::net::unix::OwnedWriteHalf)>;
type Outputs = Vec<(StdStream, tokio::net::unix::OwnedReadHalf, HostEnd)>;

fn split(streams: Vec<Attached>) -> Result<(Inputs, Outputs), SessionError> {
    let (mut inputs, mut outputs) = (Inputs::new(), Outputs::new());
    for stream in streams {
        let guest = stream.guest;
        // A deadline that was good for the answer is none for the data.
        guest
            .set_nonblocking(true)
            .map_err(host_error("take over a stream"))?;
        let guest = UnixStream::from_std(guest).map_err(host_error("take over a stream"))?;
        let (read, write) = guest.into_split();
        match stream.host_out {
            Some(host) => outputs.push((stream.stream, read, host)),
            None => drop(read),
        }
        match stream.host_in {
            Some(host) => inputs.push((stream.stream, host, write)),
            // Without this, dropping the half would end the stream for the guest's reader, which
            // an output stream does not have.
            None => write.forget(),
        }
    }
    Ok((inputs, outputs))
}

/// Runs all futures to their end. They are few and long: polling each at every wake-up is cheap.
async fn all(futures: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        for slot in &mut futures {
            if slot
                .as_mut()
                .is_some_and(|future| future.as_mut().poll(context).is_ready())
            {
                *slot = None;
            }
        }
        if futures.iter().all(Option::is_none) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}

/// Passes signals on to the process, and new terminal sizes. Never ends.
async fn forward(
    agent: &Agent,
    process: &ProcessRef,
    signals: &AsyncFd<OwnedFd>,
    terminal: Option<&OwnedFd>,
) {
    loop {
        let Ok(mut guard) = signals.readable().await else {
            return pending().await;
        };
        let Ok(signal) = signals::next(guard.get_inner()) else {
            guard.clear_ready();
            continue;
        };
        let Some(request) = request_for(signal, process, terminal) else {
            continue;
        };
        let result = match agent.begin(&request) {
            Ok(call) => call.finish_async().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::debug!("cannot pass on signal {signal}: {error}");
        }
    }
}

/// What a signal to us means for the process.
fn request_for(signal: i32, process: &ProcessRef, terminal: Option<&OwnedFd>) -> Option<Request> {
    match signal {
        libc::SIGWINCH => terminal.map(|terminal| Request::Resize {
            process: process.clone(),
            size: terminal::size(terminal.as_fd()),
        }),
        // These concern our own children, sockets and terminal.
        libc::SIGCHLD | libc::SIGPIPE | libc::SIGURG | libc::SIGTTIN | libc::SIGTTOU => None,
        signal => Some(Request::Signal {
            process: process.clone(),
            signal,
            all: false,
        }),
    }
}
