//! A hand-made FUSE client drives the device through the mock driver.

mod client;
mod kernel;
mod life;
mod malformed;
mod operations;
mod property;
