//! The VM of a plan: its size, its devices, its kernel's command line.

use lazaret_protocol::{
    agent,
    vm::{
        BlockConfig, ConsoleConfig, DeviceConfig, Fd, FsConfig, PortGrant, VmConfig, VsockConfig,
    },
};

use super::{Circumstances, HostDisk, size::Size};
use crate::config::Config;

/// Descriptors sent with the launch, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FdIndex {
    /// `/dev/kvm`.
    Kvm,
    /// Kernel image.
    Kernel,
    /// Initramfs.
    Initramfs,
    /// Control listener.
    Control,
    /// Top of the share, `O_PATH`.
    Share,
    /// vsock listener.
    Vsock,
    /// Acceptor of the ready port.
    Ready,
    /// Console file; only if there is one, hence last.
    Console,
}

/// How many descriptors there are when all are sent.
pub(crate) const FD_COUNT: usize = 8;

impl FdIndex {
    fn fd(self) -> Fd {
        Fd(self as u32)
    }
}

/// The guest's vsock context id; the lowest a guest can have. Each VM has a vsock of its own, so
/// there is nothing to tell apart.
const GUEST_CID: u32 = 3;

/// Request queues of the share: one for each virtual CPU up to this many, because each costs a
/// thread in the VMM.
const SHARE_QUEUES_MAX: u16 = 4;

/// Request queues of a disk, likewise.
const DISK_QUEUES_MAX: u16 = 4;

/// Console output that the VMM keeps in memory, in bytes.
const CONSOLE_RING_BYTES: u32 = 16 << 10;

/// What every guest kernel is told. A reset must reach the VMM at once and tell a panic from a
/// reboot (`reboot=k,panic_warm panic=-1`), and a fault of the kernel is a panic, for what goes on
/// after one may wait for ever (`oops=panic`); there is no keyboard behind the i8042 and no timer to
/// calibrate against; the TSC is the host's and stable; waiting for a grace period would cost more
/// than the few CPUs are worth; a guest with one CPU keeps its lock prefixes, as taking them out at
/// boot costs a sixth of the whole start (`noreplace-smp`); RDRAND may be trusted as far as the
/// VM's host is, which seeds the kernel's random numbers besides; nobody waits for the self-tests of
/// ciphers; there is no dummy network interface until a container makes one, as in any other network
/// namespace; and the initramfs stays in memory, for giving it back means overwriting it first, page
/// by page, and each page is the host's page cache until then.
const COMMAND_LINE: &str = "reboot=k,panic_warm panic=-1 oops=panic i8042.noaux i8042.nomux i8042.nopnp \
     i8042.dumbkbd no_timer_check tsc=reliable rcupdate.rcu_expedited=1 noreplace-smp \
     random.trust_cpu=on cryptomgr.notests dummy.numdummies=0 retain_initrd";

/// Each character on a console is a VM exit or more: without one, the kernel says nothing.
const SILENT: &str = " quiet loglevel=0";

/// With one, it is the virtio console.
const TALKING: &str = " console=hvc0";

/// Describes the VM of a sandbox. Its host name is the machine's: a container sees it that has no
/// UTS namespace of its own, or no name for it. It has no entropy device: the VMM seeds the kernel, and
/// Linux would ask the device for more every minute, for as long as the sandbox is idle.
pub(super) fn vm_config(
    circumstances: Circumstances<'_>,
    config: &Config,
    size: Size,
    console: bool,
    disks: &[HostDisk],
) -> VmConfig {
    let vcpus = size.vcpus.unwrap_or(config.vcpus);
    let mut command_line = COMMAND_LINE.to_owned();
    command_line.push_str(if console { TALKING } else { SILENT });
    if is_plain(&circumstances.caller.host_name) {
        command_line.push_str(" hostname=");
        command_line.push_str(&circumstances.caller.host_name);
    }
    if !config.kernel_parameters.is_empty() {
        command_line.push(' ');
        command_line.push_str(&config.kernel_parameters);
    }
    let mut devices = vec![
        DeviceConfig::Vsock(VsockConfig {
            guest_cid: GUEST_CID,
            listener: FdIndex::Vsock.fd(),
            grants: vec![PortGrant {
                port: agent::READY_PORT,
                acceptor: FdIndex::Ready.fd(),
            }],
        }),
        DeviceConfig::Fs(FsConfig {
            tag: agent::SHARE_TAG.to_owned(),
            root: FdIndex::Share.fd(),
            queues: u16::from(vcpus).min(SHARE_QUEUES_MAX),
        }),
    ];
    if console {
        devices.push(DeviceConfig::Console(ConsoleConfig {
            ring_bytes: CONSOLE_RING_BYTES,
            output: Some(FdIndex::Console.fd()),
        }));
    }
    // Their descriptors follow those that [`FdIndex`] names.
    let first = FD_COUNT - usize::from(!console);
    devices.extend((first..).zip(disks).map(|(index, disk)| {
        DeviceConfig::Block(BlockConfig {
            file: Fd(index as u32),
            serial: disk.serial(),
            readonly: disk.readonly,
            queues: u16::from(vcpus).min(DISK_QUEUES_MAX),
        })
    }));
    VmConfig {
        name: circumstances.id.to_owned(),
        kvm: FdIndex::Kvm.fd(),
        kernel: FdIndex::Kernel.fd(),
        initramfs: Some(FdIndex::Initramfs.fd()),
        command_line,
        memory_mib: size.memory_mib.unwrap_or(config.memory_mib),
        huge_pages: config.huge_pages,
        vcpus,
        nested: false,
        control: Some(FdIndex::Control.fd()),
        devices,
        spare_slots: 0,
    }
}

/// Whether a host name means on the kernel's command line what it says, and fits (`uname(2)`: 64
/// bytes).
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}
