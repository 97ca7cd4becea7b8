//! What a container has from its caller where `config.json` does not say: resource limits, and the
//! name of the machine. `create`, `run` and `exec` ask; the plan is told.

use lazaret_protocol::container::Rlimit;
use rustix::process::{Resource, getrlimit};

/// Resources with their numbers (`getrlimit(2)`).
const RESOURCES: [(Resource, u32); 16] = [
    (Resource::Cpu, libc::RLIMIT_CPU),
    (Resource::Fsize, libc::RLIMIT_FSIZE),
    (Resource::Data, libc::RLIMIT_DATA),
    (Resource::Stack, libc::RLIMIT_STACK),
    (Resource::Core, libc::RLIMIT_CORE),
    (Resource::Rss, libc::RLIMIT_RSS),
    (Resource::Nproc, libc::RLIMIT_NPROC),
    (Resource::Nofile, libc::RLIMIT_NOFILE),
    (Resource::Memlock, libc::RLIMIT_MEMLOCK),
    (Resource::As, libc::RLIMIT_AS),
    (Resource::Locks, libc::RLIMIT_LOCKS),
    (Resource::Sigpending, libc::RLIMIT_SIGPENDING),
    (Resource::Msgqueue, libc::RLIMIT_MSGQUEUE),
    (Resource::Nice, libc::RLIMIT_NICE),
    (Resource::Rtprio, libc::RLIMIT_RTPRIO),
    (Resource::Rttime, libc::RLIMIT_RTTIME),
];

/// The process that called, as far as containers inherit from it.
#[derive(Debug, Default)]
pub(crate) struct Caller {
    /// All its resource limits.
    pub(crate) limits: Vec<Rlimit>,
    /// Its host name (`uname(2)`, nodename).
    pub(crate) host_name: String,
}

impl Caller {
    /// Asks the kernel about this process, which has all of it from its caller.
    pub(crate) fn observe() -> Self {
        let limits = RESOURCES.iter().map(|&(resource, number)| {
            let limit = getrlimit(resource);
            Rlimit {
                resource: number,
                soft: limit.current.unwrap_or(u64::MAX),
                hard: limit.maximum.unwrap_or(u64::MAX),
            }
        });
        let names = rustix::system::uname();
        Self {
            limits: limits.collect(),
            host_name: names.nodename().to_string_lossy().into_owned(),
        }
    }
}
