//! QEMU's microvm with the guest's kernel and an initramfs that ends the VM at once: what a start
//! costs a VMM that was not made for containers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use rootfs_builder::initramfs::guest_initramfs;
use rustix::system::{RebootCommand, reboot};

use crate::runtime::run;
use crate::start::Spread;

/// Guest memory in MiB.
const GUEST_MIB: &str = "128";

/// Whether this process is the first one of the VM.
pub(crate) fn is_first_process() -> bool {
    std::process::id() == 1
}

/// Ends the VM: QEMU exits at a reset.
pub(crate) fn end_vm() -> ! {
    let error = reboot(RebootCommand::Restart);
    // The end of the first process is a panic of the kernel, which resets as well.
    panic!("cannot reset: {error:?}");
}

/// How QEMU is called.
pub(crate) struct Microvm<'a> {
    pub(crate) program: &'a str,
    pub(crate) arguments: &'a [String],
    pub(crate) kernel: &'a Path,
}

impl Microvm<'_> {
    /// Boots and ends it `runs` times.
    pub(crate) fn measure(&self, scratch: &Path, runs: u32) -> Result<Spread> {
        let initramfs = scratch.join("microvm.cpio");
        let program = fs::read(std::env::current_exe()?)?;
        fs::write(&initramfs, guest_initramfs(&program)?).context("cannot write the initramfs")?;
        let mut seconds = Vec::new();
        for _ in 0..=runs {
            let started = Instant::now();
            run(&mut self.command(&initramfs))?;
            seconds.push(started.elapsed().as_secs_f64());
        }
        Ok(Spread::of(seconds.split_off(1)))
    }

    fn command(&self, initramfs: &Path) -> Command {
        let mut command = Command::new(self.program);
        command
            .args(self.arguments)
            .args([
                "-M",
                "microvm,acpi=off,isa-serial=off",
                "-accel",
                "kvm",
                "-cpu",
                "host",
            ])
            .args([
                "-m",
                GUEST_MIB,
                "-display",
                "none",
                "-no-reboot",
                "-nodefaults",
            ])
            .args(["-append", "reboot=t panic=-1 quiet"])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(initramfs)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}
