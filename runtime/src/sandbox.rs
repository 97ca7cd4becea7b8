//! Sandboxes with several containers: which one a new container joins, because it names a namespace
//! of a container in it, and what a container that goes leaves to the others. Called by `create`,
//! `delete` and the monitor; the VM itself is the monitor's.
//!
//! The sockets of the VM are linked into the directory of each of its containers. So every verb
//! finds them where it looks, also when the container that the VM was made for is deleted, and the
//! number of links tells whether there is anybody to look for.

use std::path::{Path, PathBuf};

use lazaret_protocol::agent::Request;
use oci_spec::runtime::Spec;
use rustix::{
    fs::{AtFlags, CWD},
    io::Errno,
};

use crate::{
    agent::{self, Agent},
    host_cgroup, log,
    monitor::CONTROL_SOCKET,
    plan::Join,
    process::ProcessId,
    share,
    state::{Record, StateDir, StateError, Status, Store, VmSize},
};

/// Why a container cannot join a sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// The namespaces are of different VMs.
    #[error(
        "linux.namespaces: containers {first} and {second} are in different sandboxes: only one can \
         be joined"
    )]
    Several {
        /// The container of a path.
        first: String,
        /// That of another one.
        second: String,
    },
    /// The states cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
}

/// A sandbox to join.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    /// Id of the container that the VM was made for.
    pub(crate) owner: String,
    /// The VM.
    pub(crate) vmm: ProcessId,
    /// Its size.
    pub(crate) size: Option<VmSize>,
    /// Directory of a container in it.
    member: PathBuf,
}

impl Sandbox {
    /// The sandbox whose containers' namespaces `spec` names by `/proc/PID/ns/…`, where `PID` is the
    /// pid of such a container, and which paths these are.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub(crate) fn find(
        spec: &Spec,
        store: &Store,
    ) -> Result<(Option<Self>, Vec<Join>), SandboxError> {
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_deref());
        let paths = (namespaces.unwrap_or_default().iter())
            .filter_map(|namespace| namespace.path().as_ref());
        let mut sandbox: Option<Self> = None;
        let mut joins: Vec<Join> = Vec::new();
        let mut dirs = None;
        for path in paths {
            let Some(pid) = pid_of(path) else {
                continue;
            };
            let dirs = match &mut dirs {
                Some(dirs) => dirs,
                None => dirs.insert(store.list()?),
            };
            let Some((dir, record)) = container_of(pid, dirs)? else {
                continue;
            };
            let id = dir.id().as_str();
            match &sandbox {
                Some(found) if found.vmm != record.vmm => {
                    return Err(SandboxError::Several {
                        first: joins[0].container.clone(),
                        second: id.to_owned(),
                    });
                }
                Some(_) => {}
                None => {
                    sandbox = Some(Self {
                        owner: record.sandbox.unwrap_or_else(|| id.to_owned()),
                        vmm: record.vmm,
                        size: record.vm,
                        member: dir.path().to_owned(),
                    });
                }
            }
            joins.push(Join {
                path: path.clone(),
                container: id.to_owned(),
                user_namespace: record.user_namespace,
            });
        }
        Ok((sandbox, joins))
    }

    /// Links the VM's sockets into the directory of a container that joins.
    ///
    /// # Errors
    /// As `link(2)`.
    pub(crate) fn link_sockets(&self, dir: &StateDir) -> Result<(), Errno> {
        for name in [CONTROL_SOCKET, agent::SOCKET] {
            rustix::fs::linkat(CWD, self.member.join(name), dir, name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Directory of the container that the VM was made for, where its share was mounted first.
    pub(crate) fn owner_dir(&self, dir: &StateDir) -> PathBuf {
        dir.path().with_file_name(&self.owner)
    }

    /// Takes away what a container has in the sandbox.
    pub(crate) fn withdraw(&self, dir: &StateDir) {
        let request = Request::RemoveContainer {
            container: dir.id().as_str().to_owned(),
        };
        // Most often it is gone already.
        if let Err(error) = Agent::new(dir).done(&request) {
            tracing::debug!("{}", log::chain(&error));
        }
        let owner = self.owner_dir(dir);
        if let Err(error) = share::withdraw(self.vmm, &owner, dir.id().as_str()) {
            // It lasts no longer than the VM.
            tracing::debug!("cannot take the files out of the sandbox: {error}");
        }
    }
}

/// The pid in `/proc/PID/ns/…`.
fn pid_of(path: &Path) -> Option<i32> {
    let rest = path.to_str()?.strip_prefix("/proc/")?;
    let (pid, rest) = rest.split_once('/')?;
    rest.starts_with("ns/").then(|| pid.parse().ok()).flatten()
}

/// The container that the process `pid` stands for, if its VM is there.
fn container_of(pid: i32, dirs: &[StateDir]) -> Result<Option<(&StateDir, Record)>, StateError> {
    for dir in dirs {
        let (status, record) = dir.status()?;
        if let Some(record) = record
            && record.monitor.pid == pid
            && matches!(status, Status::Created | Status::Running | Status::Paused)
        {
            return Ok(Some((dir, record)));
        }
    }
    Ok(None)
}

/// Whether the VM has or had other containers.
pub(crate) fn is_shared(dir: &StateDir) -> bool {
    let socket = rustix::fs::statat(dir, agent::SOCKET, AtFlags::SYMLINK_NOFOLLOW);
    socket.is_ok_and(|socket| socket.st_nlink > 1)
}

/// Leaves the VM of a container that has ended to the others in it, if there are any; tells whether.
///
/// # Errors
/// When the states cannot be read.
pub(crate) fn leave(dir: &StateDir, record: &Record) -> Result<bool, StateError> {
    if !is_shared(dir) {
        return Ok(false);
    }
    let mut heir = None;
    for other in dir.siblings()? {
        // One that cannot be read has no say in the end of this one.
        if let Ok((_, Some(theirs))) = other.status()
            && theirs.vmm == record.vmm
            && theirs.monitor.is_alive()
        {
            heir = Some(other);
            break;
        }
    }
    let Some(heir) = heir else {
        return Ok(false);
    };
    let sandbox = Sandbox {
        owner: (record.sandbox.clone()).unwrap_or_else(|| dir.id().as_str().to_owned()),
        vmm: record.vmm,
        size: record.vm,
        member: heir.path().to_owned(),
    };
    sandbox.withdraw(dir);
    let owner = sandbox.owner_dir(dir);
    if let Err(error) = share::hand_over(record.vmm, &owner, dir.path(), heir.path()) {
        // Nobody can join the sandbox then, but it goes on.
        tracing::warn!("cannot keep the sandbox's files in place: {error}");
    }
    if let Err(error) = host_cgroup::hand_over(dir, &heir, record.vmm.pid) {
        tracing::warn!("{}", log::chain(&error));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_path_names_a_pid() {
        assert_eq!(pid_of(Path::new("/proc/17/ns/ipc")), Some(17));
        for path in [
            "/proc/self/ns/ipc",
            "/run/netns/a",
            "/proc/17",
            "/proc/17/root",
            "17/ns/ipc",
        ] {
            assert_eq!(pid_of(Path::new(path)), None, "{path}");
        }
    }
}
