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

/// Quarters of `RLIMIT_NOFILE` that a share may use; the rest is for the VMM's other devices,
/// whose connections would otherwise fail because a guest looked at many files.
const SHARE_QUARTERS: u64 = 3;
/// Stands in for an unlimited `RLIMIT_NOFILE`: the kernel's own default for `fs.nr_open`.
const UNLIMITED: u64 = 1 << 20;

/// The right to hold one more descriptor; given back when dropped.
#[derive(Debug)]
pub(super) struct Lease(Arc<DescriptorShare>);

/// Counts the descriptors of one share.
#[derive(Debug)]
pub(super) struct DescriptorShare {
    limit: u64,
    leased: AtomicU64,
}

impl DescriptorShare {
    /// Raises `RLIMIT_NOFILE` to the hard limit, because each file a guest has in its cache
    /// holds one descriptor, and takes the share's part of it.
    pub(super) fn new() -> Arc<Self> {
        let limits = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limits.maximum,
            maximum: limits.maximum,
        };
        let current = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => limits.maximum,
            Err(_) => limits.current,
        };
        Self::with_limit(current.unwrap_or(UNLIMITED) / 4 * SHARE_QUARTERS)
    }

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
