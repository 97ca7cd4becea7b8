//! The wire between the runtime and the VMM.
//!
//! The runtime starts `lazaret-vmm --launch-fd N`, where `N` is one end of a Unix stream socket,
//! and sends one [`Launch`] frame with every file descriptor the VM may use attached to its first
//! byte (`SCM_RIGHTS`, in the order that [`Fd`] counts). The VMM answers [`Launched`] when the
//! vCPUs run. From then on the socket is a lifeline: when the runtime's end closes, the VMM ends
//! the VM and exits, unless another connection is a lifeline, too ([`ControlRequest::Hold`]); and
//! the socket serves [`ControlRequest`]s, as does every connection to the control listener. The VMM's exit code is [`ExitReason::code`].

use serde::{Deserialize, Serialize};

/// Most file descriptors one [`Launch`] carries: `SCM_MAX_FD` of Linux.
pub const FDS_MAX: usize = 253;

/// Most lifelines of a VM beside the launch socket.
pub const LIFELINES_MAX: usize = 1024;

/// Index of a descriptor among those sent with the [`Launch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub u32);

/// First frame of the runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// [`crate::VERSION`] of the runtime; another one is refused.
    pub version: u32,
    /// The VM to run.
    pub vm: VmConfig,
}

/// First frame of the VMM: the VM runs, or one line that says why not.
pub type Launched = Result<(), String>;

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Sandbox id, for logs and thread names.
    pub name: String,
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: Fd,
    /// Kernel image: an ELF file with a 64-bit or a PVH entry point.
    pub kernel: Fd,
    /// Initial file system archive, uncompressed or as the kernel can unpack it.
    pub initramfs: Option<Fd>,
    /// Kernel command line; the VMM appends what describes its devices.
    pub command_line: String,
    /// Guest memory in MiB, 16 to 1,048,576 (1 TiB).
    pub memory_mib: u64,
    /// Whether guest memory is backed by 2 MiB pages of the host's pool.
    pub huge_pages: bool,
    /// Virtual CPUs, 1 to 64.
    pub vcpus: u8,
    /// Whether the guest may run virtual machines itself.
    pub nested: bool,
    /// Listening Unix stream socket on which [`ControlRequest`]s are served.
    pub control: Option<Fd>,
    /// Devices, in the order of their MMIO slots.
    pub devices: Vec<DeviceConfig>,
    /// MMIO slots after those of `devices` that wait for [`ControlRequest::Attach`]. Slots are 32
    /// at most, all in all. The guest's kernel looks at each when it starts, which takes time.
    pub spare_slots: u8,
}

/// A virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceConfig {
    /// virtio-console, one port, output only (virtio 1.3 §5.3).
    Console(ConsoleConfig),
    /// virtio-rng, fed from `getrandom(2)` (virtio 1.3 §5.4).
    Rng,
    /// virtio-vsock (virtio 1.3 §5.10).
    Vsock(VsockConfig),
    /// virtio-fs (virtio 1.3 §5.11).
    Fs(FsConfig),
    /// virtio-blk (virtio 1.3 §5.2).
    Block(BlockConfig),
}

/// Configuration of the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Size of the ring that keeps the newest output, in bytes, 4 KiB to 1 MiB.
    pub ring_bytes: u32,
    /// A file that gets all output as well.
    pub output: Option<Fd>,
}

/// Configuration of vsock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// The guest's context id, 3 to 2^32 - 2.
    pub guest_cid: u32,
    /// Listening Unix stream socket. A host process connects, writes `CONNECT <port>\n`, and
    /// after `OK <host port>\n` has a connection to that port of the guest.
    pub listener: Fd,
    /// Ports of the host the guest may connect to; every other connection is reset.
    pub grants: Vec<PortGrant>,
}

/// A host port that is open to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortGrant {
    /// vsock port on the host (context id 2).
    pub port: u32,
    /// Unix `SOCK_SEQPACKET` socket. For each connection of the guest the VMM makes a stream
    /// socket pair and sends one end here: a one-byte message with the descriptor attached.
    pub acceptor: Fd,
}

/// Configuration of a shared directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsConfig {
    /// Name under which the guest mounts it, 1 to 36 bytes.
    pub tag: String,
    /// The directory, opened with `O_PATH`.
    pub root: Fd,
    /// Request queues beside the high-priority one, 1 to 64, each with its own worker thread.
    pub queues: u16,
}

/// Configuration of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    /// Raw file or block device.
    pub file: Fd,
    /// Serial number the guest reads, at most 20 bytes.
    pub serial: String,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// Request queues, 1 to 64, each with its own worker thread.
    pub queues: u16,
}

/// A request on the launch socket or the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// What VM is this. Answer: [`ControlAnswer::Description`].
    Describe,
    /// Stops all vCPUs and device workers. Answer: [`ControlAnswer::Done`] once nothing runs.
    Pause,
    /// Lets them go on. Answer: [`ControlAnswer::Done`].
    Resume,
    /// Puts a device into the first spare slot; the descriptors come attached to the first byte of
    /// this frame and [`Fd`] counts them. Answer: [`ControlAnswer::Attached`].
    ///
    /// virtio-mmio has no way to tell the guest: whoever attaches has its kernel look again. Linux
    /// does when the slot's name is written to `/sys/bus/platform/drivers/virtio-mmio/bind`. That
    /// name is `virtio-mmio.N`, where `N` is the slot if the command line names no other devices.
    Attach(DeviceConfig),
    /// Takes a device away; its slot is spare afterwards. Answer: [`ControlAnswer::Done`].
    ///
    /// Refused while a driver of the guest holds the device, which writing the slot's name to
    /// `unbind`, beside `bind`, ends. A guest that does not let go keeps its device.
    Detach {
        /// MMIO slot of the device.
        slot: u32,
    },
    /// Reads all counters. Answer: [`ControlAnswer::Counters`].
    Counters,
    /// Reads the console's ring. Answer: [`ControlAnswer::Console`].
    Console,
    /// Makes this connection a lifeline of the VM: it lives until the last one closes. There are at
    /// most [`LIFELINES_MAX`]. Answer: [`ControlAnswer::Done`].
    Hold,
    /// Ends the VM at once; the guest is not asked. Answer: [`ControlAnswer::Done`], then exit.
    Shutdown,
}

/// What a successful control request returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlAnswer {
    /// The request did what it says.
    Done,
    /// To `Describe`.
    Description(Description),
    /// To `Attach`.
    Attached {
        /// MMIO slot of the new device.
        slot: u32,
    },
    /// To `Counters`: names such as `vcpu.0.exits.mmio` and values, sorted by name.
    Counters(Vec<(String, u64)>),
    /// To `Console`: the newest output, oldest byte first.
    Console(Vec<u8>),
}

/// The end of every control request: an answer, or one line that says why not.
pub type ControlReply = Result<ControlAnswer, String>;

/// A VM as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Sandbox id.
    pub name: String,
    /// Process id of the VMM in its own pid namespace.
    pub pid: u32,
    /// Guest memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Whether the VM is paused.
    pub paused: bool,
    /// Devices by MMIO slot: kind (`vsock`, `fs`, …) and state (`reset`, `active`, `needs-reset`).
    pub devices: Vec<(u32, String, String)>,
    /// MMIO slots without a device, ascending.
    pub spare_slots: Vec<u32>,
}

/// Why a VM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to, on a socket, or the last lifeline closed.
    Shutdown,
    /// The VMM could not start or go on; the log says why.
    Error,
    /// The guest reset itself.
    Reset,
    /// The guest's kernel panicked.
    Panic,
}

impl ExitReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::Shutdown, Self::Error, Self::Reset, Self::Panic];

    /// The VMM's exit code for this reason.
    pub fn code(self) -> u8 {
        match self {
            Self::Shutdown => 0,
            Self::Error => 1,
            Self::Reset => 3,
            Self::Panic => 4,
        }
    }

    /// The reason behind an exit code of the VMM, if it is one.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|reason| i32::from(reason.code()) == code)
    }
}
