//! The types that cross a boundary of Lazaret.
//!
//! Two wires exist. The runtime and the VMM talk over a Unix socket ([`vm`]); the runtime and the
//! guest agent talk over vsock ([`agent`], with the container description in [`container`] and
//! [`hook`]). Both carry [`frame`]s: a length and a postcard-encoded value, with a hard maximum.
//!
//! This crate opens no file and no socket, and knows neither OCI's JSON nor KVM.

#![forbid(unsafe_code)]

pub mod agent;
pub mod container;
pub mod frame;
pub mod hook;
pub mod vm;

/// Version of both wires. It changes with every change to a type of this crate; peers of different
/// versions refuse each other in [`agent::Request::Hello`] and [`vm::Launch`].
pub const VERSION: u32 = 5;

#[cfg(test)]
mod tests;
