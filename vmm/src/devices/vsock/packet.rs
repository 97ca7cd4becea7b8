//! Packets in descriptor chains (virtio 1.3 §5.10.6): the header as a value, the payload as slices
//! of guest memory. Called by the worker and the backend. Knows no connection.
//!
//! A chain may cut header and payload into descriptors anywhere (virtio 1.3 §2.7.4). The header is
//! read once and never looked at in guest memory again, where the guest could change it meanwhile.

use virtio_queue::{DescriptorChain, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap};

use super::{QUEUE_SIZES, socket::GuestSlices};

/// Size of `struct virtio_vsock_hdr`, in bytes.
pub(super) const HEADER_BYTES: usize = 44;

/// Packet type of stream connections, the only one offered (virtio 1.3 §5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;

/// Operations of stream packets (virtio 1.3 §5.10.6).
pub(super) mod op {
    /// Opens a connection.
    pub(crate) const REQUEST: u16 = 1;
    /// Accepts a connection.
    pub(crate) const RESPONSE: u16 = 2;
    /// Ends or refuses a connection.
    pub(crate) const RST: u16 = 3;
    /// Half-closes a connection, as the flags say.
    pub(crate) const SHUTDOWN: u16 = 4;
    /// Carries payload.
    pub(crate) const RW: u16 = 5;
    /// Tells the credit, which every packet does.
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    /// Asks for a [`CREDIT_UPDATE`].
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// Longest chain that is read, in descriptors: as many as the largest queue has. A chain is no
/// longer than its queue, even in an indirect table (virtio 1.3 §2.7.5.3.1).
const DESCRIPTORS_MAX: usize = QUEUE_SIZES[1] as usize;

/// A chain that no conforming driver makes. The ring cannot be trusted after it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    /// A descriptor lies outside of the table, loops, or the chain is longer than its table.
    #[error("descriptor chain has no end")]
    Endless,
    /// A device-readable descriptor where a device-writable belongs, or the other way round.
    #[error("descriptor has the wrong direction")]
    Direction,
    /// There is no room for what each packet has.
    #[error("descriptor chain is too short for a packet")]
    Short,
    /// A buffer is not in guest memory.
    #[error("descriptor does not lie in guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// `struct virtio_vsock_hdr` (virtio 1.3 §5.10.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    /// Context id of the sender.
    pub(super) src_cid: u64,
    /// Context id of the receiver.
    pub(super) dst_cid: u64,
    /// Port of the sender.
    pub(super) src_port: u32,
    /// Port of the receiver.
    pub(super) dst_port: u32,
    /// Payload, in bytes.
    pub(super) len: u32,
    /// [`TYPE_STREAM`].
    pub(super) kind: u16,
    /// One of [`op`].
    pub(super) op: u16,
    /// Flags of the operation.
    pub(super) flags: u32,
    /// The sender's window, in bytes.
    pub(super) buf_alloc: u32,
    /// Bytes the sender has taken out of its window so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Reads a header as it lies in memory.
    pub(super) fn decode(raw: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields { raw, at: 0 };
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// The header as it lies in memory.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut raw = [0; HEADER_BYTES];
        raw[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        raw[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        raw[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        raw[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        raw[24..28].copy_from_slice(&self.len.to_le_bytes());
        raw[28..30].copy_from_slice(&self.kind.to_le_bytes());
        raw[30..32].copy_from_slice(&self.op.to_le_bytes());
        raw[32..36].copy_from_slice(&self.flags.to_le_bytes());
        raw[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        raw[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        raw
    }

    /// The reset that answers this packet, whatever it was about.
    pub(super) fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// Walks over the fields of a header; the widths add up to [`HEADER_BYTES`].
struct Fields<'a> {
    raw: &'a [u8; HEADER_BYTES],
    at: usize,
}

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.raw[self.at..self.at + N]);
        self.at += N;
        field
    }
}

/// A chain's descriptors, with the ends that the iterator of virtio-queue passes over in silence.
struct Walk<'m> {
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    writable: bool,
    left: usize,
    more: bool,
}

impl<'m> Walk<'m> {
    fn new(chain: DescriptorChain<&'m GuestMemoryMmap>, writable: bool) -> Self {
        Self {
            chain,
            writable,
            left: DESCRIPTORS_MAX,
            more: true,
        }
    }

    fn next(&mut self) -> Result<Option<Descriptor>, ChainError> {
        if !self.more {
            return Ok(None);
        }
        let descriptor = self.chain.next().ok_or(ChainError::Endless)?;
        self.left = self.left.checked_sub(1).ok_or(ChainError::Endless)?;
        self.more = descriptor.has_next();
        if descriptor.is_write_only() != self.writable {
            return Err(ChainError::Direction);
        }
        Ok(Some(descriptor))
    }
}

/// A packet of the guest.
#[derive(Debug)]
pub(super) struct TxPacket {
    /// What it says.
    pub(super) header: Header,
    /// Whether the chain has as much payload as the header says.
    pub(super) complete: bool,
}

/// Reads the packet in `chain`. Its payload, as far as the chain has it, is then in `payload`.
///
/// # Errors
/// When the chain is broken or does not hold a header.
pub(super) fn read<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    payload: &mut GuestSlices<'m>,
) -> Result<TxPacket, ChainError> {
    payload.clear();
    let mut walk = Walk::new(chain, false);
    let mut raw = [0; HEADER_BYTES];
    let mut filled = 0;
    let (mut address, mut left) = (GuestAddress(0), 0);
    while filled < HEADER_BYTES {
        let descriptor = walk.next()?.ok_or(ChainError::Short)?;
        (address, left) = (descriptor.addr(), descriptor.len() as usize);
        let part = left.min(HEADER_BYTES - filled);
        memory
            .read_slice(&mut raw[filled..filled + part], address)
            .map_err(ChainError::Memory)?;
        filled += part;
        (address, left) = advance(address, left, part)?;
    }
    let header = Header::decode(&raw);
    let wanted = header.len as usize;
    loop {
        let part = left.min(wanted - payload.bytes());
        push(memory, address, part, payload)?;
        if payload.bytes() == wanted {
            break;
        }
        let Some(descriptor) = walk.next()? else {
            break;
        };
        (address, left) = (descriptor.addr(), descriptor.len() as usize);
    }
    // Nothing more is wanted of the chain, but one without an end breaks the ring all the same.
    while walk.next()?.is_some() {}
    Ok(TxPacket {
        header,
        complete: payload.bytes() == wanted,
    })
}

/// An rx chain, ready to be filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct RxBuffer {
    /// Names the chain in the used ring.
    pub(super) head: u16,
    /// Payload it has room for, in bytes; at least one.
    pub(super) room: usize,
    /// Its parts in [`RxBuffers::header_parts`].
    header: (usize, usize),
}

/// Rx chains that are filled together, with room that is kept from one use to the next.
#[derive(Debug, Default)]
pub(super) struct RxBuffers {
    buffers: Vec<RxBuffer>,
    header_parts: Vec<(GuestAddress, usize)>,
}

impl RxBuffers {
    /// Forgets all chains.
    pub(super) fn clear(&mut self) {
        self.buffers.clear();
        self.header_parts.clear();
    }

    /// How many chains there are.
    pub(super) fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Chain `index`.
    pub(super) fn get(&self, index: usize) -> Option<RxBuffer> {
        self.buffers.get(index).copied()
    }

    /// Takes `chain` in; the room for its payload goes to the end of `payload`.
    ///
    /// # Errors
    /// When the chain is broken or has no room for a header and one byte of payload.
    pub(super) fn push<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
        payload: &mut GuestSlices<'m>,
    ) -> Result<(), ChainError> {
        let head = chain.head_index();
        let (first_part, before) = (self.header_parts.len(), payload.bytes());
        let mut walk = Walk::new(chain, true);
        let mut missing = HEADER_BYTES;
        while let Some(descriptor) = walk.next()? {
            let (mut address, mut left) = (descriptor.addr(), descriptor.len() as usize);
            let part = left.min(missing);
            if part > 0 {
                self.header_parts.push((address, part));
                missing -= part;
                (address, left) = advance(address, left, part)?;
            }
            push(memory, address, left, payload)?;
        }
        let room = payload.bytes() - before;
        if missing > 0 || room == 0 {
            return Err(ChainError::Short);
        }
        self.buffers.push(RxBuffer {
            head,
            room,
            header: (first_part, self.header_parts.len()),
        });
        Ok(())
    }

    /// Writes the header of `buffer`.
    ///
    /// # Errors
    /// When its place is not in guest memory.
    pub(super) fn write_header(
        &self,
        memory: &GuestMemoryMmap,
        buffer: RxBuffer,
        header: &Header,
    ) -> Result<(), ChainError> {
        let raw = header.encode();
        let mut rest = &raw[..];
        for (address, bytes) in &self.header_parts[buffer.header.0..buffer.header.1] {
            let (part, after) = rest.split_at(*bytes);
            memory
                .write_slice(part, *address)
                .map_err(ChainError::Memory)?;
            rest = after;
        }
        Ok(())
    }
}

fn advance(
    address: GuestAddress,
    left: usize,
    part: usize,
) -> Result<(GuestAddress, usize), ChainError> {
    let next = address
        .0
        .checked_add(part as u64)
        .ok_or(ChainError::Memory(GuestMemoryError::InvalidGuestAddress(
            address,
        )))?;
    Ok((GuestAddress(next), left - part))
}

fn push<'m>(
    memory: &'m GuestMemoryMmap,
    address: GuestAddress,
    bytes: usize,
    slices: &mut GuestSlices<'m>,
) -> Result<(), ChainError> {
    if bytes == 0 {
        return Ok(());
    }
    for slice in memory.get_slices(address, bytes) {
        slices.push(slice.map_err(ChainError::Memory)?);
    }
    Ok(())
}
