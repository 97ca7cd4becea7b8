//! User namespaces that exist for their mappings alone: an id-mapped mount takes its mapping from
//! one. Called by the share, in the monitor.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::fd::OwnedFd,
};

use lazaret_protocol::container::IdMapping;
use nix::sched::CloneFlags;
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::sys::{self, Fork};

/// Makes a user namespace with these mappings of users and groups. A child makes it and ends as
/// soon as it is held here.
///
/// # Errors
/// The kernel's.
pub(crate) fn make(uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<OwnedFd> {
    let (mut made, made_writer) = io::pipe()?;
    let (released_reader, released) = io::pipe()?;
    let pid = match sys::fork(None)? {
        Fork::Child => {
            drop(released);
            wait_in_namespace(made_writer, released_reader);
            sys::end_child()
        }
        Fork::Parent(pid) => pid,
    };
    drop(made_writer);
    let namespace = read_namespace(&mut made, pid, uids, gids);
    // The child ends when it reads the end of this pipe, also if we are killed before.
    drop(released);
    let _ = waitpid(Pid::from_raw(pid), WaitOptions::empty());
    namespace
}

/// The child's part: makes the namespace, says so, and stays until it is released.
fn wait_in_namespace(mut made: io::PipeWriter, mut released: io::PipeReader) {
    if nix::sched::unshare(CloneFlags::CLONE_NEWUSER).is_ok() && made.write_all(b"!").is_ok() {
        let _ = released.read(&mut [0]);
    }
}

fn read_namespace(
    made: &mut io::PipeReader,
    pid: i32,
    uids: &[IdMapping],
    gids: &[IdMapping],
) -> io::Result<OwnedFd> {
    made.read_exact(&mut [0])
        .map_err(|_| io::Error::other("the kernel makes no user namespace"))?;
    for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        fs::write(format!("/proc/{pid}/{file}"), lines(mappings))?;
    }
    fs::File::open(format!("/proc/{pid}/ns/user")).map(Into::into)
}

/// Mappings as the kernel reads them (`user_namespaces(7)`).
fn lines(mappings: &[IdMapping]) -> String {
    mappings
        .iter()
        .map(|line| format!("{} {} {}\n", line.container_id, line.host_id, line.size))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_lines() {
        let mapping = |container_id, host_id, size| IdMapping {
            container_id,
            host_id,
            size,
        };
        let text = lines(&[mapping(0, 1000, 1), mapping(1, 0, 1000)]);
        assert_eq!(text, "0 1000 1\n1 0 1000\n");
    }
}
