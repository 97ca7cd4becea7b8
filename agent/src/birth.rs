//! The birth of a child in namespaces that exist already, and which only a new process can be in, or
//! only one that never comes back. Called by [`crate::launch`]; knows nothing of containers.
//!
//! The agent may enter a pid namespace and leave it again, as this concerns its children alone. Out
//! of a user namespace no way leads back. So a process in between enters that one, and bears the child
//! as a sibling of its own: the agent is its parent as it is that of every other. The process in
//! between is in no cgroup of a container and keeps the agent's ids, with which it may put the child
//! into its cgroup as long as that belongs to the agent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use lazaret_protocol::container::NamespaceKind;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags, pidfd_open, set_dumpable_behavior};

use crate::errno::Os;
use crate::namespaces::{self, NamespaceError};
use crate::sys::{self, Child};

/// A child could not be born.
#[derive(Debug, thiserror::Error)]
pub enum BirthError {
    /// Entering a namespace it shall be born in.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// What is needed for it.
    #[error("prepare the process that sets the container up")]
    Prepare(#[source] Os),
    /// The birth itself.
    #[error("start the process that sets the container up")]
    Clone(#[source] Os),
}

/// An existing namespace, or a pidfd of a process in it.
pub type Place<'a> = (NamespaceKind, BorrowedFd<'a>);

/// How a child is born.
#[derive(Debug, Clone, Copy)]
pub struct Birth<'a> {
    /// `CLONE_NEW*` of the new namespaces it is born with.
    pub flags: u64,
    /// Its cgroup.
    pub cgroup: BorrowedFd<'a>,
    /// The existing namespaces it is born in: a pid namespace alone, or any with a user namespace as
    /// the last.
    pub places: &'a [Place<'a>],
}

impl Birth<'_> {
    /// Forks the child. Returns `None` in it.
    ///
    /// # Errors
    /// [`BirthError`]; there is no child then.
    ///
    /// # Safety
    /// As for [`sys::clone3`].
    pub unsafe fn bear(&self) -> Result<Option<Child>, BirthError> {
        match self.places {
            // SAFETY: the caller's obligation.
            [] => unsafe { sys::clone3(self.flags, Some(self.cgroup)) }.map_err(clone),
            // SAFETY: as above.
            [(NamespaceKind::Pid, place)] => unsafe { self.bear_in_pid_namespace(*place) },
            // SAFETY: as above.
            _ => unsafe { self.bear_by_another() },
        }
    }

    /// # Safety
    /// As for [`sys::clone3`].
    unsafe fn bear_in_pid_namespace(
        &self,
        place: BorrowedFd<'_>,
    ) -> Result<Option<Child>, BirthError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let own = openat(CWD, "/proc/self/ns/pid", flags, Mode::empty()).map_err(prepare)?;
        // This changes where children are born, nothing about the agent itself.
        namespaces::join(NamespaceKind::Pid, place)?;
        // SAFETY: the caller's obligation.
        let born = unsafe { sys::clone3(self.flags, Some(self.cgroup)) };
        if !matches!(born, Ok(None)) {
            namespaces::join(NamespaceKind::Pid, own.as_fd())?;
        }
        born.map_err(clone)
    }

    /// # Safety
    /// As for [`sys::clone3`].
    unsafe fn bear_by_another(&self) -> Result<Option<Child>, BirthError> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(prepare)?;
        // SAFETY: the process in between does nothing but system calls, and what the child of its does
        // is the caller's obligation.
        match unsafe { sys::clone3(0, None) }.map_err(prepare)? {
            // The reaper takes care of it.
            Some(_) => drop(write),
            None => {
                // SAFETY: as above.
                unsafe { self.be_another(&write) };
                return Ok(None);
            }
        }
        let mut note = [0; NOTE_BYTES];
        let length = rustix::io::read(&read, &mut note).map_err(prepare)?;
        if length != NOTE_BYTES {
            return Err(prepare(Errno::CHILD));
        }
        self.understand(Note::from_bytes(note)).map(Some)
    }

    /// The process in between: enters the namespaces, bears the child there, says what came of it
    /// and ends. Returns in the child.
    ///
    /// # Safety
    /// As for [`sys::clone3`].
    unsafe fn be_another(&self, agent: &OwnedFd) {
        let mut note = Note {
            entered: 0,
            result: 0,
        };
        if let Err(errno) = self.enter(&mut note.entered) {
            note.result = -errno.raw_os_error();
        } else {
            let flags = self.flags | libc::CLONE_PARENT as u64;
            // SAFETY: the caller's obligation.
            match unsafe { sys::clone3(flags, Some(self.cgroup)) } {
                Ok(None) => return,
                Ok(Some(child)) => note.result = child.pid.cast_signed(),
                Err(errno) => note.result = -errno.raw_os_error(),
            }
        }
        // If the agent cannot be told it notices that: it waits for these bytes or for the end.
        let _ = rustix::io::write(agent, &note.to_bytes());
        sys::exit_now(0)
    }

    /// Enters the namespaces and counts them. Only system calls.
    fn enter(&self, entered: &mut i32) -> Result<(), Errno> {
        // Who is in them must not get at a process with the agent's ids and descriptors.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        for (kind, place) in self.places {
            namespaces::enter(*kind, *place)?;
            *entered += 1;
        }
        Ok(())
    }

    fn understand(&self, note: Note) -> Result<Child, BirthError> {
        let Note { entered, result } = note;
        if result < 0 {
            let source = Os(Errno::from_raw_os_error(-result));
            let at = usize::try_from(entered).unwrap_or(usize::MAX);
            let place = self.places.get(at);
            return Err(match place {
                Some((kind, _)) => NamespaceError::Join {
                    kind: *kind,
                    source,
                }
                .into(),
                None => BirthError::Clone(source),
            });
        }
        let pid = Pid::from_raw(result).ok_or_else(|| prepare(Errno::CHILD))?;
        // It is a child of ours and nobody has waited for it yet, so the pid is nobody else's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(prepare)?;
        Ok(Child {
            pid: result.cast_unsigned(),
            pidfd,
        })
    }
}

/// What the process in between says at its end.
#[derive(Debug, Clone, Copy)]
struct Note {
    /// How many of the namespaces it has entered.
    entered: i32,
    /// The child's pid, or less than zero: the error.
    result: i32,
}

/// Length of a [`Note`] in the pipe.
const NOTE_BYTES: usize = size_of::<u64>();

impl Note {
    fn to_bytes(self) -> [u8; NOTE_BYTES] {
        let (high, low) = (self.entered.cast_unsigned(), self.result.cast_unsigned());
        (u64::from(high) << 32 | u64::from(low)).to_ne_bytes()
    }

    fn from_bytes(bytes: [u8; NOTE_BYTES]) -> Self {
        let both = u64::from_ne_bytes(bytes);
        Self {
            entered: ((both >> 32) as u32).cast_signed(),
            result: (both as u32).cast_signed(),
        }
    }
}

fn clone(errno: Errno) -> BirthError {
    BirthError::Clone(Os(errno))
}

fn prepare(errno: Errno) -> BirthError {
    BirthError::Prepare(Os(errno))
}
