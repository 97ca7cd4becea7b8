//! Starts the child that sets a container up: its birth in the right cgroup and namespaces, its
//! standard streams, its user mappings. Called by [`crate::container`]; the child goes on in
//! [`crate::init`].

use std::ffi::{CStr, CString, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use lazaret_protocol::container::{IdMapping, NamespaceKind, Process, Stdio, TimeOffset};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::birth::{Birth, BirthError, Place};
use crate::connection::Connection;
use crate::errno::Os;
use crate::instructions::{ARGUMENT, PRESERVED};
use crate::process::End;
use crate::sys::{self, Child, StringArray};

/// The child could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A descriptor it needs.
    #[error("make the {what} of the process")]
    Descriptor {
        /// Which.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Its birth.
    #[error(transparent)]
    Birth(#[from] BirthError),
    /// Its user namespace.
    #[error("write {mapping:?} to {path}")]
    Mapping {
        /// Lines of the map.
        mapping: String,
        /// File of the map.
        path: String,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
}

/// What the child is started with.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The agent's own binary.
    pub executable: &'a CStr,
    /// `CLONE_NEW*`.
    pub clone_flags: u64,
    /// Its cgroup.
    pub cgroup: BorrowedFd<'a>,
    /// Existing namespaces to be born in, as [`Birth::places`].
    pub birthplaces: &'a [Place<'a>],
    /// Offsets of the clocks of the time namespace it gets, if it gets a new one.
    pub time_offsets: Option<&'a [TimeOffset]>,
    /// Its streams.
    pub streams: &'a Streams,
    /// Descriptors it inherits under the same numbers, made by [`Streams::above`].
    pub inherited: &'a [OwnedFd],
    /// Mappings of its new user namespace.
    pub mappings: Option<Mappings<'a>>,
}

impl Plan<'_> {
    /// Whether the child finds itself in a user namespace other than the agent's.
    fn in_user_namespace(&self) -> bool {
        let mut places = self.birthplaces.iter();
        self.mappings.is_some() || places.any(|(kind, _)| *kind == NamespaceKind::User)
    }

    /// Namespaces that the child makes itself once it is root of its user namespace: what is in
    /// an ipc namespace from its beginning belongs to who makes it.
    fn late_flags(&self) -> c_int {
        let wanted = self.clone_flags & libc::CLONE_NEWIPC as u64 != 0;
        if wanted && self.in_user_namespace() {
            libc::CLONE_NEWIPC
        } else {
            0
        }
    }
}

/// What the child's descriptors are, from 0 on.
#[derive(Debug)]
pub struct Streams(Vec<Stdio>);

impl Streams {
    /// Those of `process`; with a terminal the standard streams are null at first.
    pub fn of(process: &Process) -> Self {
        let standard = match process.terminal {
            Some(_) => [Stdio::Null; PRESERVED as usize],
            None => process.stdio,
        };
        Self([&standard[..], &process.preserved].concat())
    }

    /// Number of the descriptor that comes after them: the child's end of the channel.
    fn channel(&self) -> RawFd {
        RawFd::try_from(self.0.len()).unwrap_or(RawFd::MAX)
    }

    /// Makes `fd` inheritable: a duplicate with a number that the child's own descriptors don't
    /// need.
    ///
    /// # Errors
    /// When the agent has too many descriptors.
    pub fn above(&self, fd: impl AsFd) -> Result<OwnedFd, LaunchError> {
        let lowest = self.channel().saturating_add(1);
        fcntl_dupfd_cloexec(fd, lowest).map_err(descriptor("inherited descriptor"))
    }
}

/// Mappings of a user namespace.
#[derive(Debug, Clone, Copy)]
pub struct Mappings<'a> {
    /// Of user ids.
    pub uid: &'a [IdMapping],
    /// Of group ids.
    pub gid: &'a [IdMapping],
}

/// A child that was started and has not been told anything yet.
#[derive(Debug)]
pub struct Launched {
    /// The child.
    pub child: Child,
    /// The agent's end of the socket pair.
    pub channel: Connection,
    /// The agent's ends of its streams.
    pub ends: Vec<Option<End>>,
}

/// Starts the child.
///
/// # Errors
/// [`LaunchError`]; no process is left then.
pub fn launch(plan: &Plan<'_>) -> Result<Launched, LaunchError> {
    let (ours, channel) = socket_pair("channel")?;
    let streams = plan.streams;
    let mut ends = Vec::with_capacity(streams.0.len());
    let mut theirs = Vec::with_capacity(streams.0.len() + 1);
    for stdio in &streams.0 {
        let (end, their) = stream(*stdio)?;
        ends.push(end);
        theirs.push(streams.above(their)?);
    }
    theirs.push(streams.above(channel)?);
    let gate = match plan.mappings {
        Some(_) => Some(pipe_with(PipeFlags::CLOEXEC).map_err(descriptor("gate"))?),
        None => None,
    };
    let (gate_read, gate_write) = gate.unzip();
    let late_flags = plan.late_flags();
    let start = ChildStart {
        executable: plan.executable,
        arguments: StringArray::new(vec![
            CString::from(c"lazaret-agent"),
            c_string(ARGUMENT)?,
            c_string(&streams.channel().to_string())?,
        ]),
        environment: StringArray::new(Vec::new()),
        descriptors: theirs.iter().map(AsRawFd::as_raw_fd).collect(),
        inherited: plan.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
        clocks: plan.time_offsets.map(offset_lines),
        gate: gate_read.as_ref().map(AsRawFd::as_raw_fd),
        become_root: plan.in_user_namespace(),
        late_flags,
    };
    let birth = Birth {
        flags: plan.clone_flags & !(late_flags as u64),
        cgroup: plan.cgroup,
        places: plan.birthplaces,
    };
    // SAFETY: `ChildStart::run` does nothing but system calls on data made before.
    let Some(child) = unsafe { birth.bear() }? else {
        start.run();
    };
    if let (Some(mappings), Some(gate)) = (plan.mappings, gate_write) {
        let opened = write_mappings(child.pid, mappings).and_then(|()| {
            rustix::io::write(&gate, b"!").map_err(descriptor("gate"))?;
            Ok(())
        });
        if let Err(error) = opened {
            // It waits at the gate and knows nothing yet; the reaper takes care of the rest.
            let _ = sys::pidfd_send_signal(child.pidfd.as_fd(), libc::SIGKILL);
            return Err(error);
        }
    }
    Ok(Launched {
        child,
        channel: Connection::new(ours).map_err(|error| LaunchError::Descriptor {
            what: "channel",
            source: error.into(),
        })?,
        ends,
    })
}

/// Makes one stream: the agent's end of it, if it has one, and the child's.
fn stream(stdio: Stdio) -> Result<(Option<End>, OwnedFd), LaunchError> {
    const WHAT: &str = "streams";
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(descriptor(WHAT));
    let ours = |fd: OwnedFd| match rustix::io::ioctl_fionbio(&fd, true) {
        Ok(()) => Ok(fd),
        Err(errno) => Err(descriptor(WHAT)(errno)),
    };
    Ok(match stdio {
        Stdio::Null => {
            let flags = OFlags::RDWR | OFlags::CLOEXEC;
            let null = openat(CWD, "/dev/null", flags, Mode::empty()).map_err(descriptor(WHAT))?;
            (None, null)
        }
        Stdio::Input => {
            let (read, write) = pipe()?;
            (Some(End::Input(ours(write)?)), read)
        }
        Stdio::Output => {
            let (read, write) = pipe()?;
            (Some(End::Output(ours(read)?)), write)
        }
        Stdio::Both => {
            let (end, their) = socket_pair(WHAT)?;
            (Some(End::Both(end)), their)
        }
    })
}

fn socket_pair(what: &'static str) -> Result<(OwnedFd, OwnedFd), LaunchError> {
    let flags = SocketFlags::CLOEXEC;
    socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(descriptor(what))
}

/// Exit code of a child that failed before it could report anything.
const EXIT_CODE: i32 = 120;

/// Exit code of a child whose clocks could not be set.
pub const EXIT_CODE_CLOCKS: u8 = 121;

/// Everything the child needs between fork and exec, where it may not allocate.
struct ChildStart<'a> {
    executable: &'a CStr,
    arguments: StringArray,
    environment: StringArray,
    /// What becomes descriptors 0 to that of the channel; all have higher numbers now.
    descriptors: Vec<RawFd>,
    inherited: Vec<RawFd>,
    /// Lines for `timens_offsets` of a new time namespace.
    clocks: Option<String>,
    gate: Option<RawFd>,
    become_root: bool,
    late_flags: c_int,
}

impl ChildStart<'_> {
    fn run(&self) -> ! {
        if let Some(lines) = &self.clocks {
            // Before the gate: what lies behind it closes this process's own files in /proc.
            sys::attributes::enter_new_time_namespace(lines.as_bytes())
                .unwrap_or_else(|_| sys::exit_now(EXIT_CODE_CLOCKS.into()));
        }
        if let Some(gate) = self.gate {
            sys::pass_gate(gate).unwrap_or_else(|_| sys::exit_now(EXIT_CODE));
        }
        if self.become_root {
            sys::become_root()
                .and_then(|()| sys::unshare_namespaces(self.late_flags))
                .unwrap_or_else(|_| sys::exit_now(EXIT_CODE));
        }
        for (target, source) in (0..).zip(&self.descriptors) {
            sys::place_descriptor(*source, target).unwrap_or_else(|_| sys::exit_now(EXIT_CODE));
        }
        for &fd in &self.inherited {
            sys::keep_on_exec(fd).unwrap_or_else(|_| sys::exit_now(EXIT_CODE));
        }
        sys::execve(self.executable, &self.arguments, &self.environment);
        sys::exit_now(EXIT_CODE)
    }
}

/// The text of `timens_offsets` (`time_namespaces(7)`).
fn offset_lines(offsets: &[TimeOffset]) -> String {
    let line = |offset: &TimeOffset| {
        let TimeOffset {
            clock,
            seconds,
            nanoseconds,
        } = offset;
        format!("{clock} {seconds} {nanoseconds}\n")
    };
    offsets.iter().map(line).collect()
}

fn write_mappings(pid: u32, mappings: Mappings<'_>) -> Result<(), LaunchError> {
    for (file, mapping) in [("uid_map", mappings.uid), ("gid_map", mappings.gid)] {
        let path = format!("/proc/{pid}/{file}");
        let lines: String = mapping
            .iter()
            .map(|line| format!("{} {} {}\n", line.container_id, line.host_id, line.size))
            .collect();
        fs::write(&path, &lines).map_err(|error: io::Error| LaunchError::Mapping {
            mapping: lines.trim_end().replace('\n', ", "),
            path,
            source: error.into(),
        })?;
    }
    Ok(())
}

fn c_string(text: &str) -> Result<CString, LaunchError> {
    Ok(CString::new(text).map_err(|_| BirthError::Clone(Os(Errno::INVAL)))?)
}

fn descriptor(what: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |errno| LaunchError::Descriptor {
        what,
        source: Os(errno),
    }
}
