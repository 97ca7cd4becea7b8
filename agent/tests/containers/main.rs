//! Containers made by a real agent, called over its wire on a Unix socket, on this machine's own
//! kernel. Needs root and a static busybox.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod harness;
mod hooks;
mod isolation;
mod lifecycle;
mod live;
mod mounts;
mod process;
mod rules;
mod stdio;
mod terminal;
mod user;
mod wire;
