//! The driver's side of a split ring (virtio 1.3 §2.7): chains of buffers, well-formed or not.

use std::{collections::HashMap, sync::atomic::Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::MEMORY_BYTES;

/// Descriptor flag: the chain goes on at `next`.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// A part of a descriptor chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// Whether the device writes to it.
    pub writable: bool,
}

impl Buffer {
    /// A part the device reads.
    pub fn readable(address: u64, bytes: u32) -> Self {
        Self {
            address,
            bytes,
            writable: false,
        }
    }

    /// A part the device writes.
    pub fn writable(address: u64, bytes: u32) -> Self {
        Self {
            address,
            bytes,
            writable: true,
        }
    }

    fn flags(self) -> u16 {
        if self.writable { WRITE } else { 0 }
    }
}

/// A descriptor as it lies in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawDescriptor {
    /// Guest address.
    pub address: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next descriptor, with [`NEXT`].
    pub next: u16,
}

/// Ways to break a ring. Each is offered by [`Ring::add_malformed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// A chain of two readable descriptors that point at each other.
    Loop,
    /// A writable chain that points at itself.
    WritableLoop,
    /// A buffer whose end lies past the end of guest memory.
    LengthPastMemory,
    /// A buffer of `u32::MAX` bytes.
    HugeLength,
    /// A buffer whose address is past guest memory.
    AddressPastMemory,
    /// A buffer whose end wraps around the 64-bit address space.
    WrappingAddress,
    /// `next` is not less than the queue size.
    NextOutOfRange,
    /// The available ring names a head that is not less than the queue size.
    HeadOutOfRange,
    /// The available index is more than the queue size ahead.
    AvailableIndexOutOfRange,
    /// An indirect table whose chain has more descriptors than the queue.
    LongerThanQueue,
    /// A writable descriptor before a readable one.
    WritableBeforeReadable,
    /// Only readable descriptors, of one byte.
    OneByteReadable,
    /// Only writable descriptors, of one byte.
    OneByteWritable,
    /// A buffer of no bytes.
    Empty,
    /// An indirect descriptor inside an indirect table.
    NestedIndirect,
    /// An indirect table whose length is no multiple of 16.
    IndirectLength,
    /// An indirect table of no descriptors.
    IndirectEmpty,
    /// An indirect table past guest memory.
    IndirectPastMemory,
    /// A descriptor with both [`INDIRECT`] and [`NEXT`].
    IndirectWithNext,
}

impl Malformed {
    /// All ways.
    pub const ALL: [Self; 19] = [
        Self::Loop,
        Self::WritableLoop,
        Self::LengthPastMemory,
        Self::HugeLength,
        Self::AddressPastMemory,
        Self::WrappingAddress,
        Self::NextOutOfRange,
        Self::HeadOutOfRange,
        Self::AvailableIndexOutOfRange,
        Self::LongerThanQueue,
        Self::WritableBeforeReadable,
        Self::OneByteReadable,
        Self::OneByteWritable,
        Self::Empty,
        Self::NestedIndirect,
        Self::IndirectLength,
        Self::IndirectEmpty,
        Self::IndirectPastMemory,
        Self::IndirectWithNext,
    ];
}

/// The driver's side of one split ring.
#[derive(Debug)]
pub struct Ring {
    memory: GuestMemoryMmap,
    size: u16,
    base: u64,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    available: u16,
    used: u16,
}

impl Ring {
    /// An empty ring of `size` descriptors at `base`, which must be 4 KiB aligned; it takes less
    /// than 64 KiB for sizes up to 1,024.
    pub fn new(memory: &GuestMemoryMmap, base: u64, size: u16) -> Self {
        let ring = Self {
            memory: memory.clone(),
            size,
            base,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            available: 0,
            used: 0,
        };
        ring.store16(ring.available_ring() + 2, 0);
        ring.store16(ring.used_ring() + 2, 0);
        ring
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest address of the descriptor table.
    pub fn descriptor_table(&self) -> u64 {
        self.base
    }

    /// Guest address of the available ring.
    pub fn available_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    /// Guest address of the used ring.
    pub fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// A ready queue on these rings, as the transport hands it to a device.
    pub fn queue(&self, max_size: u16) -> Queue {
        let mut queue = Queue::new(max_size).unwrap();
        queue.set_size(self.size);
        let split = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
        let (low, high) = split(self.descriptor_table());
        queue.set_desc_table_address(low, high);
        let (low, high) = split(self.available_ring());
        queue.set_avail_ring_address(low, high);
        let (low, high) = split(self.used_ring());
        queue.set_used_ring_address(low, high);
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory), "mock ring is invalid");
        queue
    }

    /// Writes descriptor `index` of the ring's table.
    pub fn set_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        self.set_table_entry(self.descriptor_table(), index, descriptor);
    }

    /// Writes descriptor `index` of the table at `table`.
    pub fn set_table_entry(&self, table: u64, index: u16, descriptor: RawDescriptor) {
        let at = table + 16 * u64::from(index);
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&descriptor.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes a chain of `buffers` available and returns its head. Panics when the table is full.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> = buffers.iter().map(|_| self.take_descriptor()).collect();
        for (position, buffer) in buffers.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            self.set_descriptor(
                indices[position],
                RawDescriptor {
                    address: buffer.address,
                    bytes: buffer.bytes,
                    flags: buffer.flags() | next.map_or(0, |_| NEXT),
                    next: next.unwrap_or(0),
                },
            );
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.make_available(head);
        head
    }

    /// Writes an indirect table at `table`, makes a descriptor for it available and returns the head.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        for (index, buffer) in (0_u16..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let descriptor = RawDescriptor {
                address: buffer.address,
                bytes: buffer.bytes,
                flags: buffer.flags() | if last { 0 } else { NEXT },
                next: if last { 0 } else { index + 1 },
            };
            self.set_table_entry(table, index, descriptor);
        }
        let bytes = u32::try_from(16 * buffers.len()).unwrap();
        self.add_raw(RawDescriptor {
            address: table,
            bytes,
            flags: INDIRECT,
            next: 0,
        })
    }

    /// Makes a chain of one descriptor available, as it is, and returns its head.
    pub fn add_raw(&mut self, descriptor: RawDescriptor) -> u16 {
        let head = self.take_descriptor();
        self.set_descriptor(head, descriptor);
        self.chains.insert(head, vec![head]);
        self.make_available(head);
        head
    }

    /// Puts `head` into the available ring, whatever it is, and advances the index.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.store16(self.available_ring() + 4 + 2 * slot, head);
        self.set_available_index(self.available.wrapping_add(1));
    }

    /// Sets the available index, whatever it is.
    pub fn set_available_index(&mut self, index: u16) {
        self.available = index;
        self.memory
            .store(
                index.to_le(),
                GuestAddress(self.available_ring() + 2),
                Ordering::Release,
            )
            .unwrap();
    }

    /// Sets the flags of the available ring (1: no interrupt wanted).
    pub fn set_available_flags(&self, flags: u16) {
        self.store16(self.available_ring(), flags);
    }

    /// Sets `used_event` (virtio 1.3 §2.7.7, with `VIRTIO_F_EVENT_IDX`).
    pub fn set_used_event(&self, index: u16) {
        self.store16(self.available_ring() + 4 + 2 * u64::from(self.size), index);
    }

    /// The device's `avail_event`.
    pub fn available_event(&self) -> u16 {
        self.load16(self.used_ring() + 4 + 8 * u64::from(self.size))
    }

    /// The used index as the device last wrote it.
    pub fn used_index(&self) -> u16 {
        let raw: u16 = self
            .memory
            .load(GuestAddress(self.used_ring() + 2), Ordering::Acquire)
            .unwrap();
        u16::from_le(raw)
    }

    /// The chains used since the last call: head and bytes written. Their descriptors are free again.
    pub fn take_used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while self.used != self.used_index() {
            let slot = u64::from(self.used % self.size);
            let entry = self.used_ring() + 4 + 8 * slot;
            let id: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
            let bytes: u32 = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
            let head = u16::try_from(u32::from_le(id)).unwrap();
            self.free
                .extend(self.chains.remove(&head).unwrap_or_default());
            used.push((head, u32::from_le(bytes)));
            self.used = self.used.wrapping_add(1);
        }
        used
    }

    /// Makes a broken chain available. Descriptors and buffers it needs lie at the table's end and
    /// at `scratch`, where 64 KiB must be free.
    pub fn add_malformed(&mut self, how: Malformed, scratch: u64) {
        if self.add_malformed_buffer(how, scratch) || self.add_malformed_indirect(how, scratch) {
            return;
        }
        let (first, second) = (self.size - 2, self.size - 1);
        let link = |flags, next| RawDescriptor {
            address: scratch,
            bytes: 16,
            flags,
            next,
        };
        match how {
            Malformed::Loop => {
                self.set_descriptor(first, link(NEXT, second));
                self.set_descriptor(second, link(NEXT, first));
            }
            Malformed::WritableLoop => self.set_descriptor(first, link(NEXT | WRITE, first)),
            Malformed::NextOutOfRange => self.set_descriptor(first, link(NEXT, self.size)),
            Malformed::WritableBeforeReadable => {
                self.set_descriptor(first, link(NEXT | WRITE, second));
                self.set_descriptor(second, link(0, 0));
            }
            Malformed::HeadOutOfRange => return self.make_available(self.size),
            Malformed::AvailableIndexOutOfRange => {
                let far = self.available.wrapping_add(self.size + 1);
                return self.set_available_index(far);
            }
            other => unreachable!("{other:?} is made by another function"),
        }
        self.make_available(first);
    }

    fn add_malformed_buffer(&mut self, how: Malformed, scratch: u64) -> bool {
        let (address, bytes, flags) = match how {
            Malformed::LengthPastMemory => (MEMORY_BYTES - 8, 64, 0),
            Malformed::HugeLength => (scratch, u32::MAX, 0),
            Malformed::AddressPastMemory => (MEMORY_BYTES + 0x1000, 16, WRITE),
            Malformed::WrappingAddress => (u64::MAX - 7, 64, WRITE),
            Malformed::OneByteReadable => (scratch, 1, 0),
            Malformed::OneByteWritable => (scratch, 1, WRITE),
            Malformed::Empty => (scratch, 0, 0),
            _ => return false,
        };
        self.add_last(RawDescriptor {
            address,
            bytes,
            flags,
            next: 0,
        });
        true
    }

    fn add_malformed_indirect(&mut self, how: Malformed, scratch: u64) -> bool {
        let (address, bytes, flags) = match how {
            Malformed::LongerThanQueue => (scratch, 16 * (u32::from(self.size) + 1), INDIRECT),
            Malformed::NestedIndirect => (scratch, 16, INDIRECT),
            Malformed::IndirectLength => (scratch, 17, INDIRECT),
            Malformed::IndirectEmpty => (scratch, 0, INDIRECT),
            Malformed::IndirectPastMemory => (MEMORY_BYTES - 16, 64, INDIRECT),
            Malformed::IndirectWithNext => (scratch, 16, INDIRECT | NEXT),
            _ => return false,
        };
        let plain = RawDescriptor {
            address: scratch + 0x8000,
            bytes: 16,
            flags: 0,
            next: 0,
        };
        self.set_table_entry(scratch, 0, plain);
        match how {
            Malformed::LongerThanQueue => {
                for index in 0..self.size {
                    let linked = RawDescriptor {
                        flags: NEXT,
                        next: index + 1,
                        ..plain
                    };
                    self.set_table_entry(scratch, index, linked);
                }
                self.set_table_entry(scratch, self.size, plain);
            }
            Malformed::NestedIndirect => {
                let nested = RawDescriptor {
                    flags: INDIRECT,
                    ..plain
                };
                self.set_table_entry(scratch, 0, nested);
            }
            _ => {}
        }
        self.add_last(RawDescriptor {
            address,
            bytes,
            flags,
            next: self.size - 2,
        });
        true
    }

    /// Makes a chain available that starts with the table's last descriptor.
    fn add_last(&mut self, descriptor: RawDescriptor) {
        let head = self.size - 1;
        self.set_descriptor(head, descriptor);
        self.make_available(head);
    }

    fn take_descriptor(&mut self) -> u16 {
        self.free
            .pop()
            .expect("the mock ring has a free descriptor")
    }

    fn store16(&self, address: u64, value: u16) {
        self.memory
            .write_obj(value.to_le(), GuestAddress(address))
            .unwrap();
    }

    fn load16(&self, address: u64) -> u16 {
        let raw: u16 = self.memory.read_obj(GuestAddress(address)).unwrap();
        u16::from_le(raw)
    }
}
