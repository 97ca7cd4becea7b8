//! How containers and further processes come to be: the agent's half of the work.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;

use lazaret_protocol::container::{CreateContainer, IdMapping, NamespaceKind, Process, Rlimit};
use rustix::io::Errno;

use super::{Container, ContainerError, Environment, Host, State, prepared, release, set_limits};
use crate::birth::BirthError;
use crate::cgroup::{self, Cgroup};
use crate::connection::Connection;
use crate::device_node;
use crate::disks;
use crate::errno::Os;
use crate::instructions::{ContainerInstructions, ExecInstructions, Instructions, Rules};
use crate::launch::{self, LaunchError, Launched, Mappings, Plan, Streams};
use crate::mounts;
use crate::namespaces::Namespaces;
use crate::process;

use super::ID_BYTES_MAX;

/// Where in a container a further process goes.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Path of a cgroup below the container's; empty is the container's own.
    pub cgroup: &'a str,
    /// Whether a paused container takes it.
    pub ignore_paused: bool,
}

/// Descriptors that a child finds under the numbers they have here, beside its streams.
struct Inherited<'a> {
    streams: &'a Streams,
    fds: Vec<OwnedFd>,
}

impl Inherited<'_> {
    /// Adds a duplicate of `fd`; returns its number.
    fn pass(&mut self, fd: BorrowedFd<'_>) -> Result<RawFd, LaunchError> {
        let fd = self.streams.above(fd)?;
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        Ok(number)
    }
}

/// What is made for a child that has no right to make it.
#[derive(Default)]
struct Made {
    root_tree: Option<RawFd>,
    trees: Vec<Option<RawFd>>,
    nodes: Vec<Option<RawFd>>,
}

impl Container {
    /// Builds a container up to the point where its init process waits before `exec`; `init` finds
    /// that process of a container whose namespace is to be joined. On failure nothing is left.
    ///
    /// # Errors
    /// [`ContainerError`].
    pub async fn create(
        host: Host<'_>,
        mut wanted: CreateContainer,
        init: impl Fn(&str) -> Option<Rc<process::Process>>,
    ) -> Result<Rc<Self>, ContainerError> {
        if !valid_id(&wanted.id) {
            return Err(ContainerError::Id(wanted.id));
        }
        disks::translate(&mut wanted).map_err(ContainerError::Disks)?;
        let has_mappings = !wanted.uid_mappings.is_empty() || !wanted.gid_mappings.is_empty();
        let namespaces = Namespaces::open(&wanted.namespaces, has_mappings, init)?;
        let rules = Rules {
            seccomp: wanted.seccomp.clone(),
            personality: wanted.personality,
        };
        let parent = &host.environment.cgroup_parent;
        let interpreted = host.interpreted(true);
        let cgroup = Cgroup::create(parent, &wanted.id, &wanted.cgroup)?;
        drop(interpreted);
        let built = Self::build(host, wanted, &namespaces, &cgroup).await;
        let (id, init, channel) = match built {
            Ok(built) => built,
            Err(error) => {
                // The first error is the one to tell.
                let _ = cgroup.kill();
                let _ = cgroup.wait_empty().await;
                let _ = cgroup.remove();
                return Err(error);
            }
        };
        Ok(Rc::new(Self {
            id,
            cgroup,
            init,
            channel: Some(channel).into(),
            state: State::Created.into(),
            paused: false.into(),
            namespaces: namespaces.exec_flags(),
            own_pid_namespace: namespaces.is_new(NamespaceKind::Pid),
            user_namespace: namespaces.has(NamespaceKind::User),
            rules,
            execs: Default::default(),
        }))
    }

    async fn build(
        host: Host<'_>,
        wanted: CreateContainer,
        namespaces: &Namespaces,
        cgroup: &Cgroup,
    ) -> Result<(String, Rc<process::Process>, Connection), ContainerError> {
        let id = wanted.id.clone();
        let made_nodes = match namespaces.has(NamespaceKind::User) {
            true => wanted.devices.len(),
            false => 0,
        };
        let started = Self::start_init(host, wanted, namespaces, cgroup).await;
        device_node::remove_all(&id, made_nodes, &host.environment.nodes);
        let (process, channel) = started?;
        Ok((id, process, channel))
    }

    async fn start_init(
        host: Host<'_>,
        wanted: CreateContainer,
        namespaces: &Namespaces,
        cgroup: &Cgroup,
    ) -> Result<(Rc<process::Process>, Connection), ContainerError> {
        let environment = host.environment;
        let in_user_namespace = namespaces.has(NamespaceKind::User);
        let birthplaces = namespaces.birthplaces();
        let streams = Streams::of(&wanted.process);
        let mut inherited = Inherited {
            streams: &streams,
            fds: Vec::new(),
        };
        let mut joined = Vec::new();
        for (kind, fd) in &namespaces.joined {
            if birthplaces.iter().all(|(place, _)| place != kind) {
                joined.push((*kind, inherited.pass(fd.as_fd())?));
            }
        }
        let mut made = Made::default();
        if in_user_namespace {
            made = make_for_user_namespace(environment, &wanted, &mut inherited)?;
        }
        let launched = launch::launch(&Plan {
            executable: &environment.executable,
            clone_flags: namespaces.clone_flags(),
            cgroup: cgroup.as_fd(),
            birthplaces: &birthplaces,
            time_offsets: namespaces
                .is_new(NamespaceKind::Time)
                .then_some(&wanted.time_offsets),
            streams: &streams,
            inherited: &inherited.fds,
            mappings: namespaces.is_new(NamespaceKind::User).then_some(Mappings {
                uid: &wanted.uid_mappings,
                gid: &wanted.gid_mappings,
            }),
        })?;
        drop(inherited);
        if in_user_namespace {
            // Not before somebody was put into it, for which it has to be the agent's.
            let (uid, gid) = (root_id(&wanted.uid_mappings), root_id(&wanted.gid_mappings));
            cgroup.delegate(uid, gid)?;
        }
        let limits = wanted.process.rlimits.clone();
        let score = wanted.process.oom_score_adj;
        let _interpreted = host.interpreted(wanted.seccomp.is_some());
        let instructions = Instructions::Container(Box::new(ContainerInstructions {
            container: wanted,
            share: environment.share.display().to_string(),
            staging: environment.staging.display().to_string(),
            cgroup: cgroup.path().display().to_string(),
            joined,
            root_tree: made.root_tree,
            trees: made.trees,
            nodes: made.nodes,
        }));
        guide(host, launched, &instructions, score, &limits).await
    }

    /// Runs a further process in the container.
    ///
    /// # Errors
    /// [`ContainerError`]; nothing is left of the process then.
    pub async fn exec(
        &self,
        host: Host<'_>,
        name: &str,
        wanted: Process,
        place: Place<'_>,
    ) -> Result<Rc<process::Process>, ContainerError> {
        self.require_alive("exec in")?;
        if self.paused.get() && !place.ignore_paused {
            return Err(self.wrong_state("cannot exec in a paused container"));
        }
        if self.execs.borrow().contains_key(name) {
            return Err(ContainerError::ExecExists(name.to_owned()));
        }
        self.execs.borrow_mut().insert(name.to_owned(), None);
        let started = self.start_exec(host, wanted, place.cgroup).await;
        let mut execs = self.execs.borrow_mut();
        match &started {
            Ok(process) => execs.insert(name.to_owned(), Some(Rc::clone(process))),
            Err(_) => execs.remove(name),
        };
        drop(execs);
        started
    }

    async fn start_exec(
        &self,
        host: Host<'_>,
        wanted: Process,
        below: &str,
    ) -> Result<Rc<process::Process>, ContainerError> {
        let streams = Streams::of(&wanted);
        let init = streams.above(self.init.pidfd())?;
        let number = init.as_raw_fd();
        let inherited = [init];
        let birthplaces = [(NamespaceKind::Pid, self.init.pidfd())];
        let launch = |cgroup: BorrowedFd<'_>| {
            launch::launch(&Plan {
                executable: &host.environment.executable,
                clone_flags: 0,
                cgroup,
                birthplaces: &birthplaces,
                time_offsets: None,
                streams: &streams,
                inherited: &inherited,
                mappings: None,
            })
        };
        let chosen = match below {
            "" => None,
            path => Some(self.cgroup.open_below(path)?),
        };
        let launched = match launch(chosen.as_ref().map_or(self.cgroup.as_fd(), AsFd::as_fd)) {
            // The container made cgroups below its own, which may then hold no process itself.
            Err(LaunchError::Birth(BirthError::Clone(Os(Errno::BUSY)))) if chosen.is_none() => {
                let mount = &host.environment.cgroup_mount;
                let cgroup = cgroup::open_cgroup_of(self.init.pid(), mount);
                let cgroup = cgroup
                    .map_err(BirthError::Clone)
                    .map_err(LaunchError::from)?;
                launch(cgroup.as_fd())?
            }
            Err(LaunchError::Birth(BirthError::Clone(Os(Errno::BUSY)))) => {
                return Err(self.cgroup.refused(below, Errno::BUSY).into());
            }
            launched => launched?,
        };
        let limits = wanted.rlimits.clone();
        let score = wanted.oom_score_adj;
        let _interpreted = host.interpreted(self.rules.seccomp.is_some());
        let instructions = Instructions::Exec(Box::new(ExecInstructions {
            process: wanted,
            init: number,
            namespaces: self.namespaces.bits(),
            user_namespace: self.user_namespace,
            rules: self.rules.clone(),
        }));
        let (process, channel) = guide(host, launched, &instructions, score, &limits).await?;
        match release(&channel, &process).await {
            Ok(()) => Ok(process),
            Err(error) => Err(abandon(&process, error).await),
        }
    }
}

/// Makes what a child in a user namespace, which has no rights over the guest's mounts and
/// devices, needs of them.
fn make_for_user_namespace(
    environment: &Environment,
    wanted: &CreateContainer,
    inherited: &mut Inherited<'_>,
) -> Result<Made, ContainerError> {
    let mut made = Made::default();
    let share = &environment.share;
    let root = mounts::clone_root(share, &wanted.root)?;
    made.root_tree = Some(inherited.pass(root.as_fd())?);
    for mount in &wanted.mounts {
        let tree = mounts::clone_source(share, mount)?;
        let tree = tree.map(|tree| inherited.pass(tree.as_fd())).transpose()?;
        made.trees.push(tree);
    }
    for node in device_node::make_all(wanted, &environment.nodes)? {
        let node = node.map(|node| inherited.pass(node.as_fd())).transpose()?;
        made.nodes.push(node);
    }
    Ok(made)
}

/// Takes a child from its birth to the point where only `exec` is left. On failure it is gone.
async fn guide(
    host: Host<'_>,
    launched: Launched,
    instructions: &Instructions,
    oom_score_adj: Option<i32>,
    limits: &[Rlimit],
) -> Result<(Rc<process::Process>, Connection), ContainerError> {
    let Launched {
        child,
        channel,
        ends,
    } = launched;
    let process = Rc::new(process::Process::new(child, ends));
    host.reaper.watch(&process);
    let guided = async {
        if let Some(value) = oom_score_adj {
            let path = format!("/proc/{}/oom_score_adj", process.pid());
            std::fs::write(path, value.to_string()).map_err(|error| {
                let source = error.into();
                ContainerError::OomScore { value, source }
            })?;
        }
        let told = channel.write_frame(instructions).await;
        match prepared(&channel, &process).await {
            Ok(Some(terminal)) => process
                .set_terminal(terminal)
                .map_err(ContainerError::Terminal)?,
            Ok(None) => {}
            // If the child could not be told, that is why it has nothing good to report.
            Err(ContainerError::Gone { .. }) if told.is_err() => {
                told.map_err(ContainerError::Channel)?;
            }
            Err(error) => return Err(error),
        }
        set_limits(&process, limits)
    };
    match guided.await {
        Ok(()) => Ok((process, channel)),
        Err(error) => Err(abandon(&process, error).await),
    }
}

/// Ends a child that is of no use any more.
async fn abandon(process: &process::Process, error: ContainerError) -> ContainerError {
    // ESRCH: it has ended by itself.
    let _ = process.signal(libc::SIGKILL);
    process.wait().await;
    error
}

/// The id outside that is root inside.
fn root_id(mappings: &[IdMapping]) -> u32 {
    let root = mappings.iter().find(|mapping| mapping.container_id == 0);
    root.map_or(0, |mapping| mapping.host_id)
}

fn valid_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(allowed) && id != "." && id != ".."
}
