//! As whom, and with which umask, a worker thread creates files. User, group, capabilities,
//! umask and working directory are taken as properties of the thread, so workers do not disturb
//! each other or the rest of the VMM.
//!
//! Permission is the guest kernel's business (it mounts virtio-fs with `default_permissions`):
//! it knows supplementary groups, namespaces and capabilities of the caller; the host would check
//! again and know less. So a thread takes on the *owner* a new file shall have, but keeps its own
//! capabilities.

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{Gid, Mode, Uid},
    process::{fchdir, umask},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, capabilities, set_capabilities,
        set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
    },
};

#[derive(Clone, Copy)]
struct Thread {
    /// The umask it has now.
    umask: u32,
    own_uid: u32,
    own_gid: u32,
    capabilities: CapabilitySets,
}

thread_local! {
    static THREAD: Cell<Option<Thread>> = const { Cell::new(None) };
}

/// Gives the calling thread a umask (0) and a working directory (`proc_fds`, which is
/// `/proc/self/fd`) of its own, the first time it is called.
///
/// The working directory is there for the extended attributes: they are the one thing that can
/// be reached neither through an `O_PATH` descriptor nor relative to a directory descriptor.
pub(super) fn enter(proc_fds: BorrowedFd<'_>) -> io::Result<()> {
    thread(proc_fds).map(drop)
}

fn thread(proc_fds: BorrowedFd<'_>) -> io::Result<Thread> {
    if let Some(thread) = THREAD.get() {
        return Ok(thread);
    }
    // SAFETY: CLONE_FS separates umask, root and working directory of this thread from the
    // others'. No code relies on sharing them; descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    fchdir(proc_fds)?;
    umask(Mode::empty());
    let thread = Thread {
        umask: 0,
        own_uid: rustix::process::geteuid().as_raw(),
        own_gid: rustix::process::getegid().as_raw(),
        capabilities: capabilities(None)?,
    };
    THREAD.set(Some(thread));
    Ok(thread)
}

/// While it lives, the thread creates files as somebody else.
#[must_use]
pub(super) struct Creator {
    thread: Thread,
    uid_changed: bool,
    gid_changed: bool,
}

impl Creator {
    /// Makes the thread create files with owner `uid`, group `gid` and `mask`.
    ///
    /// # Errors
    /// `EINVAL` for ids that are none, `EPERM` when the VMM may not take them on.
    pub(super) fn new(proc_fds: BorrowedFd<'_>, uid: u32, gid: u32, mask: u32) -> io::Result<Self> {
        // -1 means "leave it as it is" to the system calls: the file would become root's.
        if uid == u32::MAX || gid == u32::MAX {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut thread = thread(proc_fds)?;
        let mask = mask & 0o777;
        // A mask stays until another one is wanted: most callers have the same.
        if thread.umask != mask {
            umask(Mode::from_raw_mode(mask));
            thread.umask = mask;
            THREAD.set(Some(thread));
        }
        let mut creator = Self {
            thread,
            uid_changed: false,
            gid_changed: false,
        };
        // The group first: without user 0 it could not be changed.
        if gid != thread.own_gid {
            set_thread_res_gid(None::<Gid>, Gid::from_raw(gid), None::<Gid>)?;
            creator.gid_changed = true;
        }
        if uid != thread.own_uid {
            set_thread_res_uid(None::<Uid>, Uid::from_raw(uid), None::<Uid>)?;
            creator.uid_changed = true;
            // Leaving user 0 emptied the effective set.
            set_capabilities(None, thread.capabilities)?;
        }
        Ok(creator)
    }
}

impl Drop for Creator {
    fn drop(&mut self) {
        // Real and saved ids never changed, so the way back is always open.
        let uid = if self.uid_changed {
            let own = Uid::from_raw(self.thread.own_uid);
            set_thread_res_uid(None::<Uid>, own, None::<Uid>)
        } else {
            Ok(())
        };
        let gid = if self.gid_changed {
            let own = Gid::from_raw(self.thread.own_gid);
            set_thread_res_gid(None::<Gid>, own, None::<Gid>)
        } else {
            Ok(())
        };
        if let Err(error) = uid.and(gid) {
            tracing::error!(%error, "thread cannot return to its own identity");
            // Going on would serve one user's requests as another.
            std::process::abort();
        }
    }
}

/// While it lives, the thread lacks `CAP_FSETID`: the host then clears set-user-id and
/// set-group-id bits when it changes a file, as it would for an ordinary user.
#[must_use]
pub(super) struct WithoutFsetid {
    restore: Option<CapabilitySets>,
}

impl WithoutFsetid {
    /// Drops the capability if the thread has it.
    ///
    /// # Errors
    /// Whatever `capset(2)` returns.
    pub(super) fn new(proc_fds: impl AsFd) -> io::Result<Self> {
        let sets = thread(proc_fds.as_fd())?.capabilities;
        if !sets.effective.contains(CapabilitySet::FSETID) {
            return Ok(Self { restore: None });
        }
        set_capabilities(
            None,
            CapabilitySets {
                effective: sets.effective - CapabilitySet::FSETID,
                ..sets
            },
        )?;
        Ok(Self {
            restore: Some(sets),
        })
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        // The capability is still permitted. If raising it failed all the same, files would lose
        // set-id bits they should keep: a lesser evil than ending the sandbox.
        if let Some(sets) = self.restore
            && let Err(error) = set_capabilities(None, sets)
        {
            tracing::error!(%error, "thread cannot raise CAP_FSETID again");
        }
    }
}
