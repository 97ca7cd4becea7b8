//! `--preserve-fds` and listening sockets: descriptors that a caller left to this process for the
//! container. A descriptor is an object of this host's kernel, and the container has another; what
//! can be carried is a stream of bytes. Called by `create`, `run` and `exec`; says what each
//! descriptor is, or why it cannot come along.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use lazaret_protocol::container::{PRESERVED_MAX, Stdio};
use rustix::{
    fs::{FileType, OFlags},
    net::{SocketType, sockopt},
};

use super::{VerbError, option_error};
use crate::{monitor::stdio, sys};

/// First descriptor that is not a standard stream.
const FIRST: RawFd = 3;

const KERNELS: &str = "it belongs to this host's kernel";
const NO_STREAM: &str = "it is not a stream of bytes";
const TWO_WAYS: &str = "only what is opened either for reading or for writing is a stream of bytes";

/// Descriptors for the container's process, from [`FIRST`] on.
#[derive(Debug, Default)]
pub(super) struct Preserved {
    /// What they are.
    pub(super) kinds: Vec<Stdio>,
    /// And themselves: the process that carries them lets go of them when it does.
    pub(super) fds: Vec<OwnedFd>,
}

/// Takes over `count` descriptors beside the standard streams. To be called before anything is
/// opened that is not closed on exec.
///
/// # Errors
/// [`VerbError`], which names the first that cannot come along.
pub(super) fn take(count: u32) -> Result<Preserved, VerbError> {
    let mut preserved = Preserved::default();
    if count as usize > PRESERVED_MAX {
        return Err(option_error(
            "--preserve-fds",
            format!("at most {PRESERVED_MAX} descriptors can be passed into a VM, not {count}"),
        ));
    }
    for (index, number) in (0..count).zip(FIRST..) {
        let Some(fd) = sys::inherited(number) else {
            // As runc, which looks at each.
            return Err(VerbError::WrongStatus(format!(
                "unable to stat preserved-fd {index} (of {count}): stat /proc/self/fd/{number}: no \
                 such file or directory"
            )));
        };
        let refused = |(what, why): (String, &str)| {
            option_error(
                "--preserve-fds",
                format!("descriptor {number}, {what}, cannot be passed into a VM: {why}"),
            )
        };
        let kind = kind(fd.as_fd()).map_err(refused)?;
        if let Some(other) = preserved.reads_as(fd.as_fd(), kind) {
            let why = "what one of them reads, the other does not";
            return Err(refused((format!("a duplicate of descriptor {other}"), why)));
        }
        preserved.kinds.push(kind);
        preserved.fds.push(fd);
    }
    Ok(preserved)
}

impl Preserved {
    /// The descriptor before `fd` that takes from the same source.
    fn reads_as(&self, fd: BorrowedFd<'_>, kind: Stdio) -> Option<RawFd> {
        let reads = |kind: &Stdio| matches!(kind, Stdio::Input | Stdio::Both);
        if !reads(&kind) {
            return None;
        }
        let stdin = std::io::stdin();
        let kinds = [Stdio::Input].into_iter().chain(self.kinds.iter().copied());
        let fds = [stdin.as_fd()]
            .into_iter()
            .chain(self.fds.iter().map(|fd| fd.as_fd()));
        let mut earlier = kinds.zip(fds).filter(|(kind, _)| reads(kind));
        let same = earlier.find(|(_, other)| sys::is_same_description(fd, *other));
        same.map(|(_, other)| other.as_raw_fd())
    }
}

/// What `fd` is carried as; if it cannot be, what it is and why not.
fn kind(fd: BorrowedFd<'_>) -> Result<Stdio, (String, &'static str)> {
    let refused = |what: &str, why| Err((what.to_owned(), why));
    let (Ok(stat), Ok(flags)) = (rustix::fs::fstat(fd), rustix::fs::fcntl_getfl(fd)) else {
        return refused("which cannot be examined", KERNELS);
    };
    if flags.contains(OFlags::PATH) {
        return refused("a path (O_PATH)", KERNELS);
    }
    let one_way = |what: &str| match flags & OFlags::ACCMODE {
        OFlags::RDONLY => Ok(Stdio::Input),
        OFlags::WRONLY => Ok(Stdio::Output),
        _ => refused(&format!("{what} opened for reading and writing"), TWO_WAYS),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => one_way("a FIFO"),
        FileType::Socket => socket(fd),
        FileType::RegularFile => match name(fd) {
            Some(name) if name.starts_with('/') => one_way("a file"),
            other => refused(&other.unwrap_or_default(), KERNELS),
        },
        FileType::CharacterDevice if stdio::is_null(&stat) => Ok(Stdio::Null),
        FileType::CharacterDevice if rustix::termios::isatty(fd) => {
            refused("a terminal", "others would miss what is typed there")
        }
        FileType::CharacterDevice => refused("a character device", KERNELS),
        FileType::BlockDevice => refused("a block device", KERNELS),
        FileType::Directory => refused("a directory", KERNELS),
        _ => refused(&name(fd).unwrap_or_default(), KERNELS),
    }
}

fn socket(fd: BorrowedFd<'_>) -> Result<Stdio, (String, &'static str)> {
    let refused = |what: &str, why| Err((what.to_owned(), why));
    if sockopt::socket_type(fd) != Ok(SocketType::STREAM) {
        refused("a socket for messages", NO_STREAM)
    } else if sockopt::socket_acceptconn(fd) == Ok(true) {
        refused("a listening socket", "its network is not the VM's")
    } else if rustix::net::getpeername(fd).is_err() {
        refused("a socket that is not connected", NO_STREAM)
    } else {
        Ok(Stdio::Both)
    }
}

/// What the kernel calls it: `anon_inode:[eventfd]`.
fn name(fd: BorrowedFd<'_>) -> Option<String> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let name = std::fs::read_link(link).ok()?;
    Some(name.to_string_lossy().into_owned())
}

/// Refuses listening sockets that a service manager left to process `pid`, which is this one
/// (`sd_listen_fds(3)`), as runc would pass them on; those for another process are none of ours.
///
/// # Errors
/// [`VerbError::Option`].
pub(super) fn check_activation(
    variable: impl Fn(&str) -> Option<String>,
    pid: i32,
) -> Result<(), VerbError> {
    let number = |name: &str| variable(name).and_then(|text| text.parse::<i32>().ok());
    match number("LISTEN_FDS") {
        Some(count @ 1..) if number("LISTEN_PID") == Some(pid) => Err(option_error(
            "LISTEN_FDS",
            format!(
                "{count} listening socket{} cannot be passed into a VM, whose network is not this \
                 host's",
                if count == 1 { "" } else { "s" }
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::{event::EventfdFlags, fs::Mode, net::AddressFamily, pty::OpenptFlags};

    use super::*;

    fn activation(variables: &[(&str, &str)], pid: i32) -> Result<(), String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|&(_, value)| value.to_owned())
        };
        check_activation(variable, pid).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_a_stream_is_carried_and_the_rest_named() {
        use std::{
            fs::File,
            net::{TcpListener, UdpSocket},
            os::unix::net::UnixStream,
        };

        let kind = |fd: &dyn AsFd| kind(fd.as_fd()).map_err(|(what, _)| what);
        let refused = |what: &str| Err(what.to_owned());
        let (reader, writer) = std::io::pipe().unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        let file = File::open("/etc/passwd").unwrap();
        let null = File::open("/dev/null").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let messages = UdpSocket::bind("127.0.0.1:0").unwrap();
        let stream = (AddressFamily::UNIX, SocketType::STREAM);
        let unconnected = rustix::net::socket(stream.0, stream.1, None).unwrap();
        let terminal = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        let events = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let path = rustix::fs::open("/etc", OFlags::PATH, Mode::empty()).unwrap();
        for (fd, expected) in [
            (&reader as &dyn AsFd, Ok(Stdio::Input)),
            (&writer, Ok(Stdio::Output)),
            (&one, Ok(Stdio::Both)),
            (&file, Ok(Stdio::Input)),
            (&null, Ok(Stdio::Null)),
            (&listener, refused("a listening socket")),
            (&messages, refused("a socket for messages")),
            (&unconnected, refused("a socket that is not connected")),
            (&terminal, refused("a terminal")),
            (&events, refused("anon_inode:[eventfd]")),
            (&path, refused("a path (O_PATH)")),
        ] {
            assert_eq!(kind(fd), expected);
        }
    }

    #[test]
    fn more_than_can_be_carried_are_refused() {
        assert_eq!(
            take(65).unwrap_err().to_string(),
            "--preserve-fds: at most 64 descriptors can be passed into a VM, not 65"
        );
    }

    #[test]
    fn only_sockets_for_this_process_are_refused() {
        for ours in [
            &[][..],
            &[("LISTEN_FDS", "1")],
            &[("LISTEN_FDS", "1"), ("LISTEN_PID", "6")],
            &[("LISTEN_FDS", "0"), ("LISTEN_PID", "5")],
            &[("LISTEN_FDS", "x"), ("LISTEN_PID", "5")],
            &[("LISTEN_PID", "5")],
        ] {
            assert_eq!(activation(ours, 5), Ok(()), "{ours:?}");
        }
        let error = activation(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "5")], 5).unwrap_err();
        assert_eq!(
            error,
            "LISTEN_FDS: 2 listening sockets cannot be passed into a VM, whose network is not \
             this host's"
        );
    }
}
