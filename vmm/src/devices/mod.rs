//! The virtio devices, a folder each, all of the same shape: `mod.rs` (the section of the virtio
//! specification, constants and limits), `device.rs` (configuration space, features, life cycle),
//! `worker.rs` (the queues), `backend.rs` (the host side) and `tests.rs`.
