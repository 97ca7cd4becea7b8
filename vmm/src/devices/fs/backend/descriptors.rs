//! How many file descriptors a guest may make the VMM hold. Asked by the tables of inodes and
//! handles for each descriptor they keep.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Of four parts of `RLIMIT_NOFILE`: those for files in the guest's cache (past which they are
/// remembered by file handle), and those for files the guest has open. The last part is for the
/// VMM's other devices, whose connections would otherwise fail because of a guest's files.
const CACHED_PARTS: u64 = 2;
const OPEN_PARTS: u64 = 1;
/// What `RLIMIT_NOFILE` is raised to if the process may: the kernel's default `fs.nr_open`. Also
/// stands in for no limit at all.
const WANTED: u64 = 1 << 20;

/// The right to hold one more descriptor; given back when dropped.
#[derive(Debug)]
pub(super) struct Lease(Arc<DescriptorShare>);

/// Counts descriptors of one kind.
#[derive(Debug)]
pub(super) struct DescriptorShare {
    limit: u64,
    leased: AtomicU64,
}

/// The limits of a share.
pub(super) struct Limits {
    pub(super) cached: Arc<DescriptorShare>,
    pub(super) open: Arc<DescriptorShare>,
}

impl Limits {
    /// Raises `RLIMIT_NOFILE` as far as it goes, and takes the share's parts of it.
    pub(super) fn of_process() -> Self {
        let part = raise() / 4;
        Self {
            cached: DescriptorShare::with_limit(part * CACHED_PARTS),
            open: DescriptorShare::with_limit(part * OPEN_PARTS),
        }
    }
}

fn raise() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let (current, maximum) = (before.current, before.maximum);
    // The first takes a capability if it is more than the hard limit.
    for wanted in [Some(WANTED).max(maximum), maximum] {
        let limits = Rlimit {
            current: wanted,
            maximum: wanted,
        };
        if setrlimit(Resource::Nofile, limits).is_ok() {
            return wanted.unwrap_or(WANTED);
        }
    }
    current.unwrap_or(WANTED)
}

impl DescriptorShare {
    /// A share of at most `limit` descriptors.
    pub(super) fn with_limit(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            leased: AtomicU64::new(0),
        })
    }

    /// Takes the right to hold one more descriptor.
    ///
    /// # Errors
    /// `ENFILE` when there is none left.
    pub(super) fn lease(self: &Arc<Self>) -> io::Result<Lease> {
        if self.leased.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.leased.fetch_sub(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(Lease(Arc::clone(self)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leased.fetch_sub(1, Ordering::Relaxed);
    }
}
