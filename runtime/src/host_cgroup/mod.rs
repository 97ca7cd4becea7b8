//! The sandbox's cgroup on the host, in which its monitor and its VMM live: made by the command
//! line before it forks the monitor, which enters it (or is born in it) before anything of the VM
//! exists; removed by whoever removes the state. Says nothing about the guest's cgroups.
//!
//! What is going to be made is written into the state first, so that `delete` finds it after any
//! of our processes was killed.
//!
//! Sources: kernel `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`; runc 1.1 for what
//! callers expect.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    plan::{self, HostLimits, Place},
    state::{StateDir, StateError},
};

mod files;
mod hierarchy;
mod make;
mod remove;
mod systemd;

pub(crate) use hierarchy::is_v1;
pub(crate) use systemd::check_running as check_systemd;

use files::LimitFile;
use hierarchy::Group;
use systemd::SystemdError;

/// The record's name in the state directory.
const RECORD: &str = "cgroup.json";

/// Lists a cgroup's processes, and takes those that are to be in it.
const PROCESSES: &str = "cgroup.procs";

/// Why the sandbox has no cgroup. Some of the wording is runc's, which callers look for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// There is nothing to make it in.
    #[error("no cgroup file system is mounted")]
    Unmounted,
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A limit that the kernel did not take.
    #[error("{field}: cannot write {value:?} to {}", path.display())]
    Limit {
        /// Field of the spec.
        field: &'static str,
        /// What was written.
        value: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing in it would run.
    #[error("container's cgroup unexpectedly frozen")]
    Frozen,
    /// Above it are processes that must not be there.
    #[error("cannot enter cgroupv2 {path:?} with domain controllers -- it is in {kind} mode")]
    Threaded {
        /// The cgroup.
        path: PathBuf,
        /// Its type, as the kernel has it.
        kind: String,
    },
    /// Its processes do not end.
    #[error("processes in cgroup {} do not end", path.display())]
    Populated {
        /// The cgroup.
        path: PathBuf,
    },
    /// Systemd did not do its part.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The record could not be written or read.
    #[error(transparent)]
    State(#[from] StateError),
}

fn io_error<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io {
        action,
        path,
        source: source.into(),
    }
}

/// What `delete` has to remove, and `update` to change.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Directories, one for each hierarchy.
    groups: Vec<Group>,
    /// Systemd's unit, if it is one.
    unit: Option<String>,
}

/// The cgroup of one sandbox.
#[derive(Debug)]
pub(crate) struct HostCgroup {
    wanted: plan::HostCgroup,
    groups: Vec<Group>,
    /// The directory, if a process can be born in it.
    cradle: Option<OwnedFd>,
    /// What the user should know.
    warnings: Vec<String>,
}

impl HostCgroup {
    /// Makes the cgroup of the sandbox that `dir` is the state of, with all limits but those that
    /// [`HostCgroup::limit_cpu`] sets. A unit of systemd's is only noted: it cannot be without a
    /// process.
    ///
    /// # Errors
    /// [`CgroupError`]; [`remove`] takes away what was made until then.
    pub(crate) fn make(dir: &StateDir, wanted: &plan::HostCgroup) -> Result<Self, CgroupError> {
        let mut cgroup = Self {
            groups: hierarchy::locate(&wanted.place)?,
            wanted: wanted.clone(),
            cradle: None,
            warnings: Vec::new(),
        };
        let is_path = matches!(wanted.place, Place::Path(_));
        if is_path {
            // What is recorded is removed if the creation fails.
            cgroup.groups.iter().try_for_each(make::check_thawed)?;
        }
        cgroup.record(dir)?;
        if is_path {
            cgroup.make_groups()?;
            if let [group] = &cgroup.groups[..]
                && group.is_v2()
            {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let fd = rustix::fs::open(&group.path, flags, Mode::empty());
                cgroup.cradle = Some(fd.map_err(io_error("open cgroup", &group.path))?);
            }
        }
        Ok(cgroup)
    }

    fn record(&self, dir: &StateDir) -> Result<(), CgroupError> {
        let unit = match &self.wanted.place {
            Place::Unit { unit, .. } => Some(unit.clone()),
            Place::Path(_) => None,
        };
        let record = Record {
            groups: self.groups.clone(),
            unit,
        };
        Ok(dir.write_part(RECORD, &record)?)
    }

    fn make_groups(&mut self) -> Result<(), CgroupError> {
        for group in &self.groups {
            if !make::make(group, &self.wanted.limits)? {
                make::check_existing(group, &mut self.warnings)?;
            }
        }
        write(&self.groups, files::of(&self.wanted.limits, self.is_v1()))
    }

    fn is_v1(&self) -> bool {
        has_v1(&self.groups)
    }

    /// What the user should know of it.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The directory for a process that is to be born in it, once.
    pub(crate) fn take_cradle(&mut self) -> Option<OwnedFd> {
        self.cradle.take()
    }

    /// Brings this process into the cgroup, unless it was born there.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub(crate) fn enter(&mut self, born_inside: bool) -> Result<(), CgroupError> {
        if born_inside {
            return Ok(());
        }
        if let Place::Unit { slice, unit, .. } = &self.wanted.place {
            systemd::start(slice, unit, &self.wanted, self.is_v1())?;
            self.make_groups()?;
        }
        for group in &self.groups {
            join(group)?;
        }
        Ok(())
    }

    /// Sets the limits on CPU time, which would make the guest's boot take longer by as much.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub(crate) fn limit_cpu(&self) -> Result<(), CgroupError> {
        let limits = &self.wanted.limits;
        if let Place::Unit { unit, .. } = &self.wanted.place {
            systemd::limit_cpu(unit, limits)?;
        }
        write(&self.groups, files::cpu_time(limits, self.is_v1()))
    }

    /// The path under which the kernel has killed for want of memory, if it has.
    pub(crate) fn killed_for_memory(&self) -> Option<&Path> {
        let group = self.groups.iter().find(|group| group.has("memory"))?;
        let name = if group.is_v2() {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        let text = std::fs::read_to_string(group.path.join(name)).ok()?;
        let mut counts = text
            .lines()
            .filter_map(|line| line.strip_prefix("oom_kill "));
        counts
            .any(|count| count != "0")
            .then_some(group.path.as_path())
    }

    /// Takes this process out of the cgroup, so that it can remove it.
    pub(crate) fn leave(&self) {
        for group in &self.groups {
            // Where it fails, the cgroup stays until somebody deletes the container.
            let _ = write_file(&group.top.join(PROCESSES), "0");
        }
    }
}

fn has_v1(groups: &[Group]) -> bool {
    groups.iter().any(|group| !group.is_v2())
}

fn write(groups: &[Group], files: Vec<LimitFile>) -> Result<(), CgroupError> {
    for file in files {
        match groups.iter().find(|group| group.has(file.controller)) {
            Some(group) => file.write(&group.path)?,
            None if file.optional => {}
            None => return Err(file.error(Path::new(file.controller), Errno::NOENT.into())),
        }
    }
    Ok(())
}

/// Changes what the sandbox that `dir` is the state of may use.
///
/// # Errors
/// [`CgroupError`]; what was written before stays.
pub(crate) fn update(dir: &StateDir, limits: &HostLimits) -> Result<(), CgroupError> {
    let Some(record) = dir.read_part::<Record>(RECORD)? else {
        return Ok(());
    };
    let is_v1 = has_v1(&record.groups);
    if let Some(unit) = &record.unit {
        systemd::limit(unit, limits, is_v1)?;
    }
    write(&record.groups, files::of(limits, is_v1))?;
    write(&record.groups, files::cpu_time(limits, is_v1))
}

/// Moves this process into a cgroup.
fn join(group: &Group) -> Result<(), CgroupError> {
    let path = group.path.join(PROCESSES);
    write_file(&path, "0").map_err(|source| {
        let kind = std::fs::read_to_string(group.path.join("cgroup.type"));
        match (source.kind(), kind) {
            (io::ErrorKind::Unsupported, Ok(kind)) => CgroupError::Threaded {
                path: group.path.clone(),
                kind: kind.trim_end().to_owned(),
            },
            _ => io_error("enter cgroup by", &path)(source),
        }
    })
}

/// Moves process `pid` from the cgroup of the sandbox that `from` is the state of to that of `to`, if
/// it is there.
///
/// # Errors
/// [`CgroupError`].
pub(crate) fn hand_over(from: &StateDir, to: &StateDir, pid: i32) -> Result<(), CgroupError> {
    let (Some(from), Some(to)) = (
        from.read_part::<Record>(RECORD)?,
        to.read_part::<Record>(RECORD)?,
    ) else {
        return Ok(());
    };
    let number = pid.to_string();
    let is_in = |group: &Group| {
        let processes = std::fs::read_to_string(group.path.join(PROCESSES));
        processes.is_ok_and(|processes| processes.lines().any(|line| line == number))
    };
    if !from.groups.iter().any(is_in) {
        return Ok(());
    }
    for group in &to.groups {
        let path = group.path.join(PROCESSES);
        write_file(&path, &number).map_err(io_error("move lazaret-vmm by", &path))?;
    }
    Ok(())
}

/// Ends what is left in the cgroup of the sandbox that `dir` is the state of, and removes it.
///
/// # Errors
/// [`CgroupError`]; a cgroup that is gone, or was never made, is none.
pub(crate) fn remove(dir: &StateDir) -> Result<(), CgroupError> {
    let Some(record) = dir.read_part::<Record>(RECORD)? else {
        return Ok(());
    };
    if let Some(unit) = &record.unit
        && let Err(error) = systemd::stop(unit)
    {
        // Without it the directories can still be removed.
        tracing::warn!("{}", crate::log::chain(&error));
    }
    let groups = record.groups.iter();
    let results: Vec<_> = groups.map(|group| remove::remove(&group.path)).collect();
    results.into_iter().collect()
}

/// Writes one value to a file that must be there.
fn write_file(path: &Path, value: &str) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    // The kernel takes a value in one write or not at all.
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests;
