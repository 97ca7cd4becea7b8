//! What all virtio devices share: the contract of a device ([`device`]), its interrupt
//! ([`interrupt`]), the thread that serves its queues ([`worker`]), and the transport through
//! which the guest sees it ([`mmio`]).

pub mod device;
pub mod interrupt;
pub mod mmio;
#[cfg(test)]
pub mod mock;
pub mod worker;
