//! virtio-fs (virtio 1.3 §5.11): a directory of the host as a file system of the guest, over
//! FUSE messages. `device.rs` is configuration space and life cycle, `worker.rs` the queues,
//! `backend/` the file system.
//!
//! **Caches.** The guest may use what it knows of a name or a file for [`CACHE_TIMEOUT`]; then
//! it asks again, and drops cached content when size or modification time changed. So a change
//! made on the host shows in the guest within that time, except through a memory mapping nobody
//! looks up or reads meanwhile. Names that do not exist are not remembered at all: the runtime
//! adds containers while the guest runs. Writes go to the host at once (no write-back cache), so
//! that sizes and times are the host's.
//!
//! **Why `fuse-backend-rs` decodes but its `PassthroughFs` does not serve.** As of 0.14 it shows
//! node ids instead of inode numbers in `readdir` and leaves out `.` and `..`; never frees the
//! mapping of a forgotten inode, or with `use_host_ino` fails for good after 254 pairs of device
//! and mount; announces no submounts; lets the host check permissions without the caller's
//! supplementary groups; ignores default ACLs for the umask; sizes buffers by what a `getxattr`
//! asks for; clears no set-id bits on `fallocate`; answers ACL queries on file systems without
//! ACLs with an error the guest takes for a refusal; has no `COPY_FILE_RANGE` and `TMPFILE`; and
//! needs `/proc` by path at each `INIT`. Its message decoding and zero-copy transport are used.
//!
//! **Identity of files.** A file is its device, inode number and mount. Directories on another
//! device than their parent are announced as submounts, which the guest mounts with a device
//! number of their own; numbers within are the host's. A mounted *file* cannot be announced: it
//! shows a number from the upper half of the range, derived from device and inode.
//!
//! **Descriptors.** Each file in the guest's cache holds an `O_PATH` descriptor, up to half of
//! `RLIMIT_NOFILE`; more are remembered by file handle, which takes `CAP_DAC_READ_SEARCH` and a
//! file system that has them, or else the guest gets `ENFILE`.
//!
//! **What it needs of the process.** `/proc` of its own pid namespace. To serve as the root it
//! is to its guest: `CAP_CHOWN`, `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH`, `CAP_FOWNER`,
//! `CAP_FSETID`, `CAP_MKNOD`, `CAP_SETFCAP`, `CAP_SETGID`, `CAP_SETUID`. A worker unshares umask
//! and working directory from the other threads when it first needs its own.
//!
//! **Known differences to the directory itself.** Locks are between the guest's processes only.
//! `O_DIRECT` bypasses the guest's cache but not the host's. sync(2) and syncfs(2) reach the
//! host's page cache, fsync(2) its disk. ioctls on files (`chattr`) are not passed. Setting an
//! ACL never clears the set-group-id bit. Two mounts of one file are two files to the guest's
//! cache: what is written through one shows through the other after the timeout.

mod backend;
mod device;
mod worker;

use std::time::Duration;

pub use device::{Fs, FsError};

/// Longest tag, in bytes (§5.11.4).
const TAG_MAX_BYTES: usize = 36;
/// Most request queues; a thread each.
const QUEUES_MAX: u16 = 64;
/// Size of the queue for `FORGET`, which has one or two descriptors.
const PRIORITY_QUEUE_SIZE: u16 = 128;
/// Size of a request queue. A guest's requests have at most as many pages as the queue has
/// descriptors less 4: this makes room for 1 MiB, and for a few requests besides.
const REQUEST_QUEUE_SIZE: u16 = 512;
/// Most bytes of a message, and of an answer: 1 MiB of data, and headers (what `MAX_PAGES` tells
/// the guest).
const REQUEST_MAX_BYTES: usize = (1 << 20) + 4096;
/// How long the guest may use names and attributes without asking.
const CACHE_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
