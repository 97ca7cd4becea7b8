//! Making directories in the hierarchies, ready for a process to enter. With cgroup v2 every
//! directory above must pass the controllers on; with v1 the controller `cpuset` must be filled in
//! from above.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{CgroupError, hierarchy::Group, io_error, write_file};
use crate::plan::HostLimits;

/// What marks a cgroup that was not ours alone; in an extended attribute, so that it goes with it.
pub(super) const SHARED: &str = "trusted.lazaret.shared";

/// Controllers without which the directories above are asked to pass on what they have: those of
/// our limits and of what callers read.
const EXPECTED: [&str; 5] = ["cpuset", "cpu", "io", "memory", "pids"];

/// Deepest path: the kernel's longest path holds no more sensible names.
pub(super) const DEPTH_MAX: usize = 128;

/// Makes the group's directory; tells whether it is new. Directories above it that were made for
/// it stay, as with runc, unless it cannot be made.
///
/// # Errors
/// [`CgroupError::Io`].
pub(super) fn make(group: &Group, limits: &HostLimits) -> Result<bool, CgroupError> {
    let mut made = Vec::new();
    let result = make_directories(&group.path, &mut made).and_then(|is_new| {
        if group.is_v2() && !group.is_secondary {
            pass_controllers(group)?;
        } else if group.has("cpuset") {
            fill_cpuset(group, limits)?;
        }
        Ok(is_new)
    });
    if result.is_err() {
        for path in made.iter().rev() {
            // The first error is the one to tell.
            let _ = fs::remove_dir(path);
        }
    }
    result
}

/// Makes a directory and those above it; notes each that is new.
fn make_directories(path: &Path, made: &mut Vec<PathBuf>) -> Result<bool, CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => {
            made.push(path.to_owned());
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match path.parent() {
            Some(parent) => {
                make_directories(parent, made)?;
                make_directories(path, made)
            }
            None => Err(io_error("make cgroup", path)(error)),
        },
        Err(error) => Err(io_error("make cgroup", path)(error)),
    }
}

/// Has every directory above the group's pass on all controllers it has, unless the group has the
/// expected ones already. What cannot be passed on is missed when its limit is set.
fn pass_controllers(group: &Group) -> Result<(), CgroupError> {
    let has = |path: &Path| {
        let path = path.join("cgroup.controllers");
        fs::read_to_string(&path).map_err(io_error("read", &path))
    };
    let own = has(&group.path)?;
    let own: Vec<&str> = own.split_whitespace().collect();
    if EXPECTED.iter().all(|name| own.contains(name)) {
        return Ok(());
    }
    let mut above: Vec<&Path> = group.path.ancestors().skip(1).collect();
    above.retain(|path| path.starts_with(&group.top));
    for path in above.into_iter().rev() {
        let all = has(path)?;
        let all: Vec<String> = all
            .split_whitespace()
            .map(|name| format!("+{name}"))
            .collect();
        let file = path.join("cgroup.subtree_control");
        if all.is_empty() || write_file(&file, &all.join(" ")).is_ok() {
            continue;
        }
        for name in all {
            let _ = write_file(&file, &name);
        }
    }
    Ok(())
}

/// Gives the group, and those above it, the CPUs and memory nodes without which no process can
/// enter: the limits' in the group itself, else those of the directory above.
fn fill_cpuset(group: &Group, limits: &HostLimits) -> Result<(), CgroupError> {
    let mut paths: Vec<&Path> = group.path.ancestors().collect();
    paths.retain(|path| path.starts_with(&group.top) && *path != group.top);
    for path in paths.into_iter().rev() {
        for (name, wanted) in [("cpuset.cpus", &limits.cpus), ("cpuset.mems", &limits.mems)] {
            // The limit is written with the others, which names its field if it cannot be.
            if path == group.path && !wanted.is_empty() {
                continue;
            }
            let file = path.join(name);
            let current = fs::read_to_string(&file).map_err(io_error("read", &file))?;
            if current.trim().is_empty() {
                let above = path.parent().unwrap_or(path).join(name);
                let value = fs::read_to_string(&above).map_err(io_error("read", &above))?;
                write_file(&file, value.trim()).map_err(io_error("write", &file))?;
            }
        }
    }
    Ok(())
}

/// Looks at a directory that was there before: processes in it are a warning, in runc's words, and
/// a mark that keeps them from being killed when it is removed.
///
/// # Errors
/// [`CgroupError::Io`].
pub(super) fn check_existing(group: &Group, warnings: &mut Vec<String>) -> Result<(), CgroupError> {
    let count = processes(&group.path)?.len();
    if count > 0 {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&group.path, SHARED, b"1", flags)
            .map_err(io_error("mark cgroup", &group.path))?;
        let text = format!("container's cgroup is not empty: {count} process(es) found");
        // One for each hierarchy would be too many.
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }
    Ok(())
}

/// Refuses a directory that is there and frozen, before anything is done to it.
///
/// # Errors
/// [`CgroupError::Frozen`].
pub(super) fn check_thawed(group: &Group) -> Result<(), CgroupError> {
    let frozen = |name: &str, value: &str| {
        fs::read_to_string(group.path.join(name)).is_ok_and(|text| text.trim_end() == value)
    };
    if frozen("cgroup.freeze", "1") || frozen("freezer.state", "FROZEN") {
        return Err(CgroupError::Frozen);
    }
    Ok(())
}

/// Processes in a directory and below.
///
/// # Errors
/// [`CgroupError::Io`]; what is gone has none.
pub(super) fn processes(path: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut found = Vec::new();
    collect(path, 0, &mut found)?;
    Ok(found)
}

fn collect(path: &Path, depth: usize, found: &mut Vec<i32>) -> Result<(), CgroupError> {
    let file = path.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
        // A threaded one lists none itself.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(io_error("read", &file)(error)),
    }
    if depth < DEPTH_MAX {
        for child in children(path)? {
            collect(&child, depth + 1, found)?;
        }
    }
    Ok(())
}

/// Directories directly in one.
///
/// # Errors
/// [`CgroupError::Io`]; what is gone has none.
pub(super) fn children(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let failed = |error| io_error::<io::Error>("read cgroup", path)(error);
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whether an error says that what it is about is gone: a file of a cgroup that is being removed
/// answers that there is no such device.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
