//! What a container has from its caller where `config.json` does not say: resource limits, and the
//! name of the machine. `create`, `run` and `exec` ask; the plan is told.

use lazaret_protocol::container::{RLIMIT_NAMES, Rlimit};
use rustix::process::{Resource, getrlimit};

/// All resources.
const RESOURCES: [Resource; RLIMIT_NAMES.len()] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
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
        let limits = RESOURCES.iter().map(|&resource| {
            let limit = getrlimit(resource);
            Rlimit {
                resource: resource as u32,
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
