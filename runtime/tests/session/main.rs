//! Whole sessions of `lazaret` without a VM: the real binary, the real monitor, real mount
//! namespaces, and a stand-in for the VMM and the agent. Needs root and `/dev/kvm`, as `lazaret`
//! itself; what needs a real guest is in `tests/e2e`.

#![allow(clippy::unwrap_used, reason = "a failed test is what it is for")]

mod boot;
mod cgroup;
mod exec;
mod fake;
mod harness;
mod hooks;
mod lifecycle;
mod limits;
mod loss;
mod proc;
mod share;
mod streams;
mod terminal;
mod usage;

/// Not a test: what the fake VMM's process executes. See [`harness::Place`].
#[test]
fn becomes_the_fake() {
    if let Ok(fd) = std::env::var(fake::LAUNCH_FD) {
        fake::serve(fd.parse().unwrap());
    }
}
