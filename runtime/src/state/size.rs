//! The size of a container's VM, as the record keeps it: `update` and `ps` measure by it.

use serde::{Deserialize, Serialize};

/// Size of a VM, which it keeps for its whole life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmSize {
    /// Guest memory, in MiB.
    pub(crate) memory_mib: u64,
    /// Virtual CPUs.
    pub(crate) vcpus: u8,
}
