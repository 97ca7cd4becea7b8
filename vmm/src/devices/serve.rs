//! A worker that serves split virtqueues with one handler: waits for the driver's notifications,
//! walks and checks each descriptor chain, and hands it on. Used by the devices whose requests
//! are answered at once (`fs`, `block`); it must not know what is in a request.

use std::{io, os::fd::AsRawFd, sync::Arc};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use crate::virtio::{device::ActiveQueue, interrupt::Interrupt, worker::Worker};

/// Epoll token of the event that stops a worker; queues have their position as token.
const STOP: u64 = u64::MAX;

/// A descriptor chain that no driver may make: the device needs a reset (virtio 1.3 §2.1.2).
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokenQueue {
    /// The ring is not what the indices say, or not in guest memory.
    #[error("broken ring")]
    Ring(#[from] virtio_queue::Error),
    /// The chain has no descriptor that can be read.
    #[error("empty descriptor chain")]
    Empty,
    /// The chain is longer than the queue, loops, or leads out of the table (§2.7.5.2).
    #[error("descriptor chain has no end")]
    Endless,
    /// A descriptor the device reads follows one it writes (§2.7.4.2).
    #[error("readable descriptor after a writable one")]
    Order,
    /// A buffer is not in guest memory.
    #[error("buffer of {bytes} bytes at {address:#x} is not in guest memory")]
    Address {
        /// Guest address.
        address: u64,
        /// Length in bytes.
        bytes: u32,
    },
    /// The device cannot tell the driver anything through this chain.
    #[error("descriptor chain is too short for a reply")]
    Short,
}

/// One descriptor of a checked chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it lies; `bytes` from here on are guest memory of one region.
    pub(crate) address: GuestAddress,
    /// Length in bytes; may be zero.
    pub(crate) bytes: u32,
    /// Whether the device writes to it.
    pub(crate) writable: bool,
}

/// A chain the driver made available. All readable segments come before the writable ones.
pub(crate) struct Request<'a> {
    /// Guest memory.
    pub(crate) memory: &'a GuestMemoryMmap,
    /// The chain. Reading it again may show something else than `segments`: the guest can write
    /// to its tables at any time.
    pub(crate) chain: DescriptorChain<&'a GuestMemoryMmap>,
    /// The chain as it was when it was checked; at most as many as the queue is long.
    pub(crate) segments: &'a [Segment],
}

/// What a device does with requests.
pub(crate) trait Handler: Send + 'static {
    /// Serves one request and returns how many bytes were written to its writable segments.
    ///
    /// # Errors
    /// When the chain is not one a driver may make; what is wrong in a request of a proper chain
    /// is answered to the driver instead.
    fn handle(&mut self, request: &Request<'_>) -> Result<u32, BrokenQueue>;
}

/// Checks `chain` and writes its descriptors to `segments`. `longest` is the queue's size.
fn walk(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    longest: u16,
    segments: &mut Vec<Segment>,
) -> Result<(), BrokenQueue> {
    segments.clear();
    let mut goes_on = false;
    for descriptor in chain {
        if segments.len() == usize::from(longest) {
            return Err(BrokenQueue::Endless);
        }
        let segment = Segment {
            address: descriptor.addr(),
            bytes: descriptor.len(),
            writable: descriptor.is_write_only(),
        };
        if !segment.writable && segments.last().is_some_and(|last| last.writable) {
            return Err(BrokenQueue::Order);
        }
        if memory
            .get_slice(segment.address, segment.bytes as usize)
            .is_err()
        {
            return Err(BrokenQueue::Address {
                address: segment.address.0,
                bytes: segment.bytes,
            });
        }
        goes_on = descriptor.has_next();
        segments.push(segment);
    }
    // The iterator ends without a word at a loop, a bad index or an unreadable table.
    match (segments.is_empty(), goes_on) {
        (true, _) => Err(BrokenQueue::Empty),
        (false, true) => Err(BrokenQueue::Endless),
        (false, false) => Ok(()),
    }
}

/// A queue with what the worker knows of it.
#[derive(Debug)]
struct Served {
    active: ActiveQueue,
    /// Whether there may be chains that were not looked at.
    pending: bool,
    /// Whether the driver broke it; it is left alone until the device is reset.
    broken: bool,
}

/// Serves some queues of a device with one handler.
#[derive(Debug)]
pub(crate) struct QueueWorker<H> {
    kind: &'static str,
    queues: Vec<Served>,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    epoll: Epoll,
    segments: Vec<Segment>,
    handler: H,
}

impl<H: Handler> QueueWorker<H> {
    /// A worker of a device of `kind` for `queues`.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub(crate) fn new(
        kind: &'static str,
        queues: Vec<ActiveQueue>,
        memory: GuestMemoryMmap,
        interrupt: Arc<Interrupt>,
        handler: H,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        for (token, queue) in (0_u64..).zip(&queues) {
            // Edge-triggered: a notification wakes the worker once and need not be read.
            epoll.ctl(
                ControlOperation::Add,
                queue.notified.as_raw_fd(),
                EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token),
            )?;
        }
        Ok(Self {
            kind,
            queues: queues
                .into_iter()
                .map(|active| Served {
                    active,
                    // What was made available before now may have been notified to nobody.
                    pending: true,
                    broken: false,
                })
                .collect(),
            memory,
            interrupt,
            epoll,
            segments: Vec::new(),
            handler,
        })
    }

    /// The queues, once the worker has stopped.
    pub(crate) fn into_queues(self) -> impl Iterator<Item = ActiveQueue> {
        self.queues.into_iter().map(|served| served.active)
    }

    /// Serves at most one queue's length of chains, so that a driver that never stops making
    /// chains available cannot keep the worker from its other queues or from being stopped.
    fn serve_batch(&mut self, position: usize) {
        let served = &mut self.queues[position];
        let mut count = 0;
        let more = serve_chains(
            &mut served.active,
            &self.memory,
            &mut self.segments,
            &mut self.handler,
            &mut count,
        );
        let wanted = if count == 0 {
            Ok(false)
        } else {
            served.active.queue.needs_notification(&self.memory)
        };
        if !matches!(wanted, Ok(false)) {
            self.interrupt.signal_used();
        }
        match more {
            Ok(more) => served.pending = more,
            Err(error) => {
                served.pending = false;
                served.broken = true;
                // Once per reset of the device: a guest cannot flood the log.
                if !self.interrupt.needs_reset() {
                    tracing::warn!(
                        device = self.kind,
                        queue = served.active.index,
                        %error,
                        "driver broke a queue, device needs a reset"
                    );
                }
                self.interrupt.signal_needs_reset();
            }
        }
    }

    fn serve(&mut self, stop: &EventFd) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            stop.as_raw_fd(),
            EpollEvent::new(EventSet::IN, STOP),
        )?;
        let mut events = [EpollEvent::default(); 4];
        loop {
            let idle = !self.queues.iter().any(|served| served.pending);
            let count = match self.epoll.wait(if idle { -1 } else { 0 }, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            for event in &events[..count] {
                if event.data() == STOP {
                    return Ok(());
                }
                let position = usize::try_from(event.data()).unwrap_or(usize::MAX);
                if let Some(served) = self.queues.get_mut(position) {
                    served.pending = !served.broken;
                }
            }
            for position in 0..self.queues.len() {
                if self.queues[position].pending {
                    self.serve_batch(position);
                }
            }
        }
    }
}

/// Serves chains of `active` and counts them in `count`. Returns whether there may be more.
fn serve_chains<H: Handler>(
    active: &mut ActiveQueue,
    memory: &GuestMemoryMmap,
    segments: &mut Vec<Segment>,
    handler: &mut H,
    count: &mut usize,
) -> Result<bool, BrokenQueue> {
    let queue: &mut Queue = &mut active.queue;
    queue.disable_notification(memory)?;
    let mut raced = false;
    while *count < usize::from(queue.size()) {
        let Some(chain) = queue.iter(memory)?.next() else {
            if !queue.enable_notification(memory)? {
                return Ok(false);
            }
            // A chain arrived between the two looks. If it still cannot be had, the ring is not
            // readable.
            if raced {
                return Err(BrokenQueue::Empty);
            }
            raced = true;
            queue.disable_notification(memory)?;
            continue;
        };
        raced = false;
        let head = chain.head_index();
        walk(chain.clone(), memory, queue.size(), segments)?;
        let written = handler.handle(&Request {
            memory,
            chain,
            segments,
        })?;
        queue.add_used(memory, head, written)?;
        *count += 1;
    }
    Ok(true)
}

impl<H: Handler> Worker for QueueWorker<H> {
    fn run(&mut self, stop: &EventFd) {
        if let Err(error) = self.serve(stop) {
            tracing::error!(device = self.kind, %error, "worker cannot wait for its queues");
            self.interrupt.signal_needs_reset();
        }
        // The next run brings its own stop event.
        let _ = self.epoll.ctl(
            ControlOperation::Delete,
            stop.as_raw_fd(),
            EpollEvent::default(),
        );
    }
}

/// Copies the start of the readable segments to `out`; returns how many bytes there were.
pub(crate) fn read_start(request: &Request<'_>, out: &mut [u8]) -> usize {
    let mut filled = 0;
    for segment in request.segments.iter().filter(|segment| !segment.writable) {
        let bytes = (segment.bytes as usize).min(out.len() - filled);
        let part = &mut out[filled..filled + bytes];
        if request.memory.read_slice(part, segment.address).is_err() {
            break;
        }
        filled += bytes;
    }
    filled
}

/// Reads `data.len()` bytes of the configuration space `space` from `offset`; zeros past its end.
pub(crate) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).map_or(space.len(), |from| from.min(space.len()));
    let bytes = data.len().min(space.len() - from);
    data[..bytes].copy_from_slice(&space[from..from + bytes]);
    data[bytes..].fill(0);
}

#[cfg(test)]
mod tests;
