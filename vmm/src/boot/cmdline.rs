//! The kernel command line: the runtime's words and one entry for each virtio-mmio device, which
//! is how a kernel without ACPI finds them (Linux, `drivers/virtio/virtio_mmio.c`).

use std::fmt::Write;

/// Longest command line in bytes, without the zero: `COMMAND_LINE_SIZE` of Linux on x86 less one.
pub const MAX_BYTES: usize = 2047;

/// A device on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Guest address of its registers.
    pub address: u64,
    /// Length of its register window, in KiB.
    pub window_kib: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// Appends `devices` to `words`. Before a ` -- ` in `words` if there is one: what follows it goes
/// to the guest's init.
pub fn with_devices(words: &str, devices: impl IntoIterator<Item = Device>) -> String {
    let (kernel, init) = match words.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (words, None),
    };
    let mut line = kernel.trim_end().to_owned();
    for device in devices {
        let Device {
            address,
            window_kib,
            gsi,
        } = device;
        write!(line, " virtio_mmio.device={window_kib}K@{address:#x}:{gsi}")
            .expect("writing to a string cannot fail");
    }
    if let Some(init) = init {
        line.push_str(" -- ");
        line.push_str(init);
    }
    line
}
