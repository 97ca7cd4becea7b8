//! Answers the runtime: accepts connections, reads one request from each, replies. One thread;
//! each connection is a task of it. Called by `main`, and by tests over a Unix socket.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use lazaret_protocol::VERSION;
use lazaret_protocol::agent::{
    Answer, Failure, FailureKind, ProcessRef, Reply, Request, StdStream, TerminalSize,
};
use lazaret_protocol::container::CreateContainer;
use lazaret_protocol::frame::FrameError;
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use crate::connection::Connection;
use crate::container::{Container, ContainerError, Environment, Host, Place};
use crate::cpus::{self, CpuError};
use crate::guest::Share;
use crate::process::{End, Process};
use crate::reaper::Reaper;
use crate::{proc_files, process_list, stdio, sys, thread};

/// Where the kernel has the guest's CPUs.
const CPUS: &str = "/sys/devices/system/cpu";

/// Signals the kernel knows.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// The agent: all that lives as long as the guest.
#[derive(Debug)]
struct Agent {
    environment: Environment,
    share: Share,
    reaper: Reaper,
    /// `None` reserves the id of a container that is being made or removed.
    containers: RefCell<HashMap<String, Option<Rc<Container>>>>,
    /// Whether the last container has left.
    over: Cell<bool>,
    /// Told whenever a connection ends.
    connection_ended: Notify,
}

/// What goes on after the reply.
enum Next {
    /// Nothing.
    Close,
    /// The connection becomes a stream.
    Stream(Rc<Process>, End),
}

/// Serves calls on `listener` for as long as the guest lives.
///
/// # Errors
/// When the runtime cannot be set up or accepting fails for good.
pub fn serve(listener: OwnedFd, environment: Environment, share: Share) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let ended = Reaper::subscribe()?;
        let agent = Rc::new(Agent {
            environment,
            share,
            reaper: Reaper::default(),
            containers: RefCell::default(),
            over: Cell::new(false),
            connection_ended: Notify::new(),
        });
        let reaper = Rc::clone(&agent);
        tokio::try_join!(reaper.reaper.run(ended), accept_all(agent, listener)).map(|_| ())
    })
}

async fn accept_all(agent: Rc<Agent>, listener: OwnedFd) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&listener, true)?;
    let listener = sys::watch(listener, Interest::READABLE)?;
    loop {
        let accepted = listener
            .async_io(Interest::READABLE, |listener| {
                Ok(accept_with(listener, SocketFlags::CLOEXEC)?)
            })
            .await;
        match accepted {
            Ok(socket) => {
                let agent = Rc::clone(&agent);
                spawn_local(async move {
                    agent.serve_connection(socket).await;
                    agent.connection_ended.notify_one();
                });
            }
            Err(error) => match Errno::from_io_error(&error) {
                // The caller has gone away meanwhile.
                Some(Errno::CONNABORTED | Errno::CONNRESET | Errno::INTR) => {}
                // The end of the agent would be the end of everybody's containers. Whoever calls
                // waits in the backlog until another one is done.
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    agent.connection_ended.notified().await;
                }
                _ => return Err(error),
            },
        }
    }
}

impl Agent {
    async fn serve_connection(&self, socket: OwnedFd) {
        let Ok(connection) = Connection::new(socket) else {
            return;
        };
        let request = match connection.read_frame::<Request>().await {
            Ok(request) => request,
            // Nobody to answer.
            Err(FrameError::Closed | FrameError::Io(_)) => return,
            Err(error) => {
                let reply: Reply = Err(Failure {
                    kind: FailureKind::Invalid,
                    message: crate::errno::chain(&error),
                });
                let _ = connection.write_frame(&reply).await;
                return;
            }
        };
        let (reply, next) = match request {
            // A caller that went away takes no answer; what it waited for goes on, unless it stood
            // for a container.
            Request::Wait { process } => tokio::select! {
                reply = self.wait(&process) => (reply, Next::Close),
                () = connection.closed() => {
                    if process.exec.is_none() {
                        // It may have been removed meanwhile.
                        let _ = self.remove(&process.container).await;
                    }
                    return;
                }
            },
            Request::WatchOom { container, seen } => tokio::select! {
                reply = self.watch_oom(&container, seen) => (reply, Next::Close),
                () = connection.closed() => return,
            },
            Request::Stream { process, stream } => match self.stream(&process, stream) {
                Ok(next) => (Ok(Answer::Done), next),
                Err(failure) => (Err(failure), Next::Close),
            },
            request => (self.answer(request).await, Next::Close),
        };
        if connection.write_frame(&reply).await.is_err() {
            return;
        }
        if let Next::Stream(process, end) = next {
            stdio::carry(connection, &process, end).await;
        }
    }

    async fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Hello { version } => hello(version),
            Request::CreateContainer(wanted) => self.create(*wanted).await,
            Request::StartContainer { container } => {
                self.container(&container)?.start(self.host()).await?;
                Ok(Answer::Done)
            }
            Request::Exec {
                process,
                spec,
                cgroup,
                ignore_paused,
            } => {
                let container = self.container(&process.container)?;
                let Some(name) = &process.exec else {
                    return Err(invalid("an exec needs a name".to_owned()));
                };
                let place = Place {
                    cgroup: &cgroup,
                    ignore_paused,
                };
                let process = container.exec(self.host(), name, *spec, place).await?;
                Ok(Answer::Process { pid: process.pid() })
            }
            Request::Signal {
                process,
                signal,
                all,
            } => self.signal(&process, signal, all),
            Request::Resize { process, size } => self.resize(&process, size),
            Request::ListProcesses { container, after } => self.list(&container, after).await,
            Request::ReadProc { container, path } => self.read_proc(&container, path).await,
            Request::ReadCgroup { container, files } => {
                let contents = self.container(&container)?.cgroup().read(&files);
                Ok(Answer::Files(contents.map_err(ContainerError::from)?))
            }
            Request::UpdateCgroup { container, files } => {
                let written = self.container(&container)?.cgroup().update(&files);
                written.map_err(ContainerError::from)?;
                Ok(Answer::Done)
            }
            Request::SetCpus { count } => set_cpus(count),
            Request::WatchOom { container, seen } => self.watch_oom(&container, seen).await,
            Request::Pause { container } => {
                self.container(&container)?.pause().await?;
                Ok(Answer::Done)
            }
            Request::Resume { container } => {
                self.container(&container)?.resume().await?;
                Ok(Answer::Done)
            }
            Request::RemoveContainer { container } => self.remove(&container).await,
            Request::Leave { container } => self.leave(&container).await,
            Request::Wait { process } => self.wait(&process).await,
            // Turned into a stream by the caller, who holds the connection.
            Request::Stream { process, stream } => {
                self.stream(&process, stream).map(|_| Answer::Done)
            }
        }
    }

    fn host(&self) -> Host<'_> {
        Host {
            environment: &self.environment,
            reaper: &self.reaper,
        }
    }

    fn container(&self, id: &str) -> Result<Rc<Container>, Failure> {
        let containers = self.containers.borrow();
        let found = containers.get(id).and_then(Option::clone);
        found.ok_or_else(|| not_found(format!("container {id:?} does not exist")))
    }

    async fn list(&self, container: &str, after: u32) -> Reply {
        let pids = self.container(container)?.cgroup().processes();
        let pids = pids.map_err(ContainerError::from)?;
        // A command line lies in the process's memory, which may be a file of a FUSE server of its own.
        let described = thread::run("ps", move || process_list::describe(&pids, after)).await;
        Ok(Answer::Processes(
            described.map_err(|error| system(&error))?,
        ))
    }

    async fn read_proc(&self, container: &str, path: String) -> Reply {
        let first = Rc::clone(self.container(container)?.init());
        let content = match first.status() {
            None => {
                let pid = first.pid();
                // What the container has mounted may be a FUSE server of its own.
                thread::run("proc", move || proc_files::read(pid, &path))
                    .await
                    .flatten()
                    .map_err(|error| system(&error))?
            }
            // Its pid may be another process's.
            Some(_) => None,
        };
        Ok(Answer::Files(vec![content]))
    }

    async fn create(&self, wanted: CreateContainer) -> Reply {
        self.share.mounted().map_err(|error| system(&error))?;
        crate::guest::mount_lazily(&wanted.mounts).map_err(|error| system(&error))?;
        let id = wanted.id.clone();
        if self.over.get() {
            return Err(Failure {
                kind: FailureKind::State,
                message: "the sandbox is ending".to_owned(),
            });
        }
        if self.containers.borrow().contains_key(&id) {
            return Err(Failure {
                kind: FailureKind::Exists,
                message: format!("container {id:?} exists already"),
            });
        }
        if !self.containers.borrow().is_empty() {
            // What the kernel remembers of the share may be of a container that had this id.
            self.share.release_unused();
        }
        self.containers.borrow_mut().insert(id.clone(), None);
        let init = |id: &str| Some(Rc::clone(self.container(id).ok()?.init()));
        let created = Container::create(self.host(), wanted, init).await;
        let mut containers = self.containers.borrow_mut();
        match created {
            Ok(container) => {
                let pid = container.init().pid();
                let watched = Rc::clone(&container);
                spawn_local(async move { watched.end_with_init().await });
                containers.insert(id, Some(container));
                Ok(Answer::Process { pid })
            }
            Err(error) => {
                containers.remove(&id);
                Err(error.into())
            }
        }
    }

    fn signal(&self, name: &ProcessRef, signal: i32, all: bool) -> Reply {
        if !SIGNALS.contains(&signal) {
            return Err(invalid(format!("signal {signal} is not one of 1 to 64")));
        }
        let container = self.container(&name.container)?;
        let process = container.process(name)?;
        if all {
            container.signal_all(signal)?;
        } else {
            container.signal(&process, signal)?;
        }
        Ok(Answer::Done)
    }

    fn resize(&self, name: &ProcessRef, size: TerminalSize) -> Reply {
        let process = self.container(&name.container)?.process(name)?;
        match process.resize(size) {
            Ok(true) => Ok(Answer::Done),
            Ok(false) => Err(not_found(format!("{} has no terminal", name_of(name)))),
            Err(error) => Err(system(&error)),
        }
    }

    async fn wait(&self, name: &ProcessRef) -> Reply {
        let container = self.container(&name.container)?;
        Ok(Answer::Exited(container.wait(name).await?))
    }

    async fn watch_oom(&self, id: &str, seen: u64) -> Reply {
        let container = self.container(id)?;
        tokio::select! {
            // What the kernel killed before the end is told before the end.
            biased;
            kills = container.cgroup().wait_for_oom(seen) => {
                Ok(Answer::OomKills(kills.map_err(ContainerError::from)?))
            }
            status = container.init().wait() => Ok(Answer::Exited(status)),
        }
    }

    fn stream(&self, name: &ProcessRef, stream: StdStream) -> Result<Next, Failure> {
        use crate::process::StreamError;
        let process = self.container(&name.container)?.process(name)?;
        match process.take_stream(stream) {
            Ok(end) => Ok(Next::Stream(process, end)),
            Err(error) => Err(Failure {
                kind: match error {
                    StreamError::Absent(_) => FailureKind::NotFound,
                    StreamError::Attached(_) => FailureKind::Exists,
                },
                message: format!("{} {error}", name_of(name)),
            }),
        }
    }

    async fn remove(&self, id: &str) -> Reply {
        let container = self.container(id)?;
        container.remove().await?;
        self.containers.borrow_mut().remove(id);
        Ok(Answer::Done)
    }

    async fn leave(&self, id: &str) -> Reply {
        let removed = self.remove(id).await;
        // Even if a process does not end.
        let last = self.containers.borrow().keys().all(|other| other == id);
        if last {
            // What was written is on the host already: the kernel writes through, and mapped files
            // when they are unmapped.
            self.over.set(true);
        } else {
            self.share.release_unused();
        }
        removed?;
        Ok(Answer::Left { last })
    }
}

fn hello(version: u32) -> Reply {
    if version != VERSION {
        return Err(Failure {
            kind: FailureKind::Version,
            message: format!("the agent speaks version {VERSION}, the runtime version {version}"),
        });
    }
    let release = rustix::system::uname();
    Ok(Answer::Hello {
        version: VERSION,
        kernel_release: release.release().to_string_lossy().into_owned(),
    })
}

fn name_of(process: &ProcessRef) -> String {
    match &process.exec {
        Some(exec) => format!("exec {exec:?} of container {:?}", process.container),
        None => format!("container {:?}", process.container),
    }
}

fn not_found(message: String) -> Failure {
    Failure {
        kind: FailureKind::NotFound,
        message,
    }
}

fn invalid(message: String) -> Failure {
    Failure {
        kind: FailureKind::Invalid,
        message,
    }
}

fn set_cpus(count: u32) -> Reply {
    match cpus::set_online(Path::new(CPUS), count) {
        Ok(()) => Ok(Answer::Done),
        Err(error @ CpuError::None) => Err(invalid(error.to_string())),
        Err(error) => Err(system(&error)),
    }
}

fn system(error: &dyn std::error::Error) -> Failure {
    Failure {
        kind: FailureKind::System,
        message: crate::errno::chain(error),
    }
}
