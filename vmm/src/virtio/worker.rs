//! The thread that serves the queues of a device, or some of them.

use std::{io, thread};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Stack of a worker, in bytes. Only what is touched costs memory.
const STACK_BYTES: usize = 256 << 10;

/// What runs on the thread. A worker owns its queues; when it is stopped it comes back with them.
pub trait Worker: Send + 'static {
    /// Serves until `stop` is readable. Must return soon after, whatever the guest does, and must
    /// not panic.
    fn run(&mut self, stop: &EventFd);
}

/// A running worker.
#[derive(Debug)]
pub struct Running<W> {
    thread: thread::JoinHandle<W>,
    stop: EventFd,
}

impl<W: Worker> Running<W> {
    /// Starts `worker` on a thread called `name` (the kernel keeps 15 bytes of it).
    ///
    /// # Errors
    /// When the process is out of threads or descriptors.
    pub fn spawn(name: &str, mut worker: W) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                worker.run(&stopped);
                worker
            })?;
        Ok(Self { thread, stop })
    }

    /// Stops the worker and takes it back.
    pub fn stop(self) -> W {
        // The counter cannot overflow: this is its only writer and writes once.
        let _ = self.stop.write(1);
        match self.thread.join() {
            Ok(worker) => worker,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}
