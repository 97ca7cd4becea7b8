//! What all virtio devices share: the contract of a device ([`device`]), its interrupt
//! ([`interrupt`]) and the thread that serves its queues ([`worker`]).

pub mod device;
pub mod interrupt;
#[cfg(test)]
pub mod mock;
pub mod worker;
