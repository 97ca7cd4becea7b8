//! Offsets and values of the registers, virtio 1.3 §4.2.2 table 4.1, and the bits of the device
//! status, §2.1.

use bitflags::bitflags;

pub(super) const MAGIC: u64 = 0x000;
pub(super) const VERSION: u64 = 0x004;
pub(super) const DEVICE_ID: u64 = 0x008;
pub(super) const VENDOR_ID: u64 = 0x00c;
pub(super) const DEVICE_FEATURES: u64 = 0x010;
pub(super) const DEVICE_FEATURES_SELECT: u64 = 0x014;
pub(super) const DRIVER_FEATURES: u64 = 0x020;
pub(super) const DRIVER_FEATURES_SELECT: u64 = 0x024;
pub(super) const QUEUE_SELECT: u64 = 0x030;
pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
pub(super) const QUEUE_SIZE: u64 = 0x038;
pub(super) const QUEUE_READY: u64 = 0x044;
pub(super) const QUEUE_NOTIFY: u64 = 0x050;
pub(super) const INTERRUPT_STATUS: u64 = 0x060;
pub(super) const INTERRUPT_ACK: u64 = 0x064;
pub(super) const STATUS: u64 = 0x070;
pub(super) const QUEUE_DESCRIPTORS_LOW: u64 = 0x080;
pub(super) const QUEUE_DESCRIPTORS_HIGH: u64 = 0x084;
pub(super) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(super) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(super) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(super) const SHARED_MEMORY_LENGTH_LOW: u64 = 0x0b0;
pub(super) const SHARED_MEMORY_BASE_HIGH: u64 = 0x0bc;
pub(super) const CONFIG_GENERATION: u64 = 0x0fc;
pub(super) const CONFIG: u64 = 0x100;

/// `virt`, little-endian.
pub(super) const MAGIC_VALUE: u32 = 0x7472_6976;
/// The layout since virtio 1.0.
pub(super) const VERSION_VALUE: u32 = 2;
/// `LZRT`, little-endian.
pub(super) const VENDOR_VALUE: u32 = 0x5452_5a4c;

/// Register at `offset` of a slot without a device: what a driver must find to look at the device
/// id at all, and zeros.
pub(super) fn read_placeholder(offset: u64) -> u32 {
    match offset {
        MAGIC => MAGIC_VALUE,
        VERSION => VERSION_VALUE,
        _ => 0,
    }
}

/// `VIRTIO_F_VERSION_1`.
pub(super) const FEATURE_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`.
pub(super) const FEATURE_EVENT_IDX: u64 = 1 << 29;

bitflags! {
    /// The device status.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Status: u32 {
        /// The guest has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The guest knows how to drive it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// Features are agreed upon.
        const FEATURES_OK = 8;
        /// The device gave up. Never stored: kept by the device's interrupt.
        const NEEDS_RESET = 64;
        /// The driver gave up.
        const FAILED = 128;
    }
}
