//! The emulated host: a Linux machine with working KVM, played by QEMU's software emulator.
//!
//! Machines without hardware virtualisation (build machines, many CI runners) cannot boot Linux
//! in a VM. Here QEMU emulates a bare-metal AMD machine with SVM; a small Linux with `kvm_amd`
//! boots on it and runs one command. That command sees a real `/dev/kvm` and the same files as
//! the machine outside, on a throw-away overlay.
//!
//! There is no initramfs and no guest image: the kernel mounts the machine's own root over 9p
//! and starts the very program that started QEMU as its first process ([`is_guest`] and
//! [`guest::run`]). Standard streams, the job and the exit status travel over virtio-serial
//! ports, so they are binary clean and nothing is left on disk.
//!
//! Called by `cargo xtask emu`, the end-to-end tests and the benchmarks. Knows nothing of
//! containers or of Lazaret; the kernel is built by `cargo xtask kernel`.

pub mod guest;
mod launch;
mod options;
mod qemu;
mod relay;
mod terminal;
mod wire;

pub use guest::is_guest;
pub use launch::{Cgroups, Command, Host, Mode, Outcome, Streams};
pub use options::HostOptions;
pub use qemu::Qemu;
