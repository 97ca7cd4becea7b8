//! `lazaret-vmm`: one process, one KVM virtual machine, one sandbox.
//!
//! The VMM knows memory, CPUs, devices and file descriptors. It knows nothing of OCI, containers
//! or images, and opens no path: whatever a VM may touch arrives as a descriptor with the
//! [`lazaret_protocol::vm::Launch`] frame.

pub mod boot;
pub mod bus;
pub mod control;
pub mod devices;
pub mod fds;
pub mod launch;
pub mod vcpu;
pub mod virtio;
pub mod vm;
pub mod wire;
