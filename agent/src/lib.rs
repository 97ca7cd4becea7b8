//! `lazaret-agent`: PID 1 of a Lazaret guest. It makes containers out of the guest kernel's
//! namespaces, mounts and control groups, and answers the runtime over vsock.
//!
//! Two programs live in this one binary. The agent proper ([`guest`], [`server`], [`container`],
//! [`process`], …) serves calls on one thread; only what a container can keep waiting is done on others
//! ([`mod@thread`]). The set-up of a container or of a further process in it ([`init`]) runs in a child
//! that executes this binary anew and has one thread.
//!
//! The agent must not know OCI's `config.json`, images, or anything of the host.

pub mod attributes;
pub mod birth;
pub mod bpf_compiler;
pub mod capabilities;
pub mod cgroup;
pub mod connection;
pub mod container;
pub mod cpus;
pub mod device_filter;
pub mod device_node;
pub mod disks;
pub mod errno;
pub mod guest;
pub mod init;
pub mod instructions;
pub mod launch;
pub mod loopback;
pub mod mounts;
pub mod namespaces;
pub mod pipe;
pub mod proc_files;
pub mod process;
pub mod process_list;
pub mod reaper;
pub mod rootfs;
pub mod seccomp;
pub mod server;
pub mod stdio;
pub mod sys;
pub mod thread;
