//! A session: one process in the guest and its standard streams, from attaching to them until the
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
    agent::{Answer, ExitStatus, ProcessRef, Request, StdStream},
    container::{Process, Stdio},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

use super::stdio::{self, HostEnd, Progress};
use crate::{
    agent::{Agent, AgentError, Call},
    signals, sys, terminal,
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

/// Where the host's side of the streams is.
pub(crate) enum HostStreams {
    /// Our own standard streams, also when the process has a terminal.
    Inherited,
    /// A pty's slave, our controlling terminal.
    Pty(OwnedFd),
}

/// One stream, attached on both sides.
struct Attached {
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
            calls.push((agent.begin(&request)?, host_in, host_out));
        }
        let mut streams = Vec::with_capacity(calls.len());
        for (call, host_in, host_out) in calls {
            let guest = call.finish_stream()?;
            streams.push(Attached {
                host_in,
                host_out,
                guest,
            });
        }
        let wait = agent.begin(&Request::Wait {
            process: process.clone(),
        })?;
        let terminal = match host {
            HostStreams::Pty(slave) => Some(slave),
            HostStreams::Inherited if spec.terminal.is_some() => terminal::of_caller(),
            HostStreams::Inherited => None,
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

        let progress = Progress::default();
        let has_terminal = streams
            .iter()
            .any(|stream| stream.host_in.is_some() && stream.host_out.is_some());
        let (inputs, outputs) = split(streams)?;
        let mut outputs = pin!(all(outputs
            .into_iter()
            .map(|(guest, host)| stdio::to_host(guest, host, &progress))));
        let mut inputs = pin!(all(inputs
            .into_iter()
            .map(|(host, guest)| stdio::to_guest(host, guest, has_terminal))));
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
        while !outputs_done {
            let before = progress.chunks();
            tokio::select! {
                () = &mut outputs => outputs_done = true,
                () = &mut forwarding => {}
                () = tokio::time::sleep(SILENCE) => {
                    outputs_done = progress.chunks() == before && !progress.is_writing();
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
    if spec.terminal.is_some() {
        let (input, output) = match host {
            HostStreams::Pty(slave) => (slave.as_fd(), slave.as_fd()),
            HostStreams::Inherited => (stdin.as_fd(), stdout.as_fd()),
        };
        let ends = (HostEnd::reading(input)?, HostEnd::writing(output)?);
        return Ok(vec![(StdStream::Terminal, Some(ends.0), Some(ends.1))]);
    }
    let mut ends = Vec::with_capacity(3);
    if spec.stdio[0] == Stdio::Pipe {
        let end = HostEnd::reading(stdin.as_fd())?;
        ends.push((StdStream::Stdin, Some(end), None));
    }
    if spec.stdio[1] == Stdio::Pipe {
        let end = HostEnd::writing(stdout.as_fd())?;
        ends.push((StdStream::Stdout, None, Some(end)));
    }
    if spec.stdio[2] == Stdio::Pipe {
        let end = HostEnd::writing(stderr.as_fd())?;
        ends.push((StdStream::Stderr, None, Some(end)));
    }
    Ok(ends)
}

type Inputs = Vec<(HostEnd, tokio::net::unix::OwnedWriteHalf)>;
type Outputs = Vec<(tokio::net::unix::OwnedReadHalf, HostEnd)>;

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
            Some(host) => outputs.push((read, host)),
            None => drop(read),
        }
        match stream.host_in {
            Some(host) => inputs.push((host, write)),
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
