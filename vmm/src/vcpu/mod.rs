//! A virtual processor: a KVM vCPU and the thread that runs it. The VM makes, pauses and saves
//! them; what the guest does to ports and device registers goes to the [`Bus`](crate::bus::Bus).

use std::{
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

use kvm_ioctls::VcpuFd;
use lazaret_protocol::vm::ExitReason;
use vmm_sys_util::signal::Killable;

use crate::{bus::Bus, vm::end::End};

pub mod cpuid;
mod exits;
pub mod kick;
pub mod msrs;
pub mod regs;
pub mod save;
#[cfg(test)]
mod tests;

pub use exits::Counters;
use kick::ImmediateExit;

/// Stack of a vCPU's thread, in bytes. Devices are activated on it, nothing deeper.
const STACK_BYTES: usize = 128 << 10;

/// What a vCPU's thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Run,
    Park,
    End,
}

/// What a vCPU's thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Running,
    Parked,
}

#[derive(Debug)]
struct Shared {
    /// Held by the thread while it is in the guest; free while it is parked.
    fd: Mutex<VcpuFd>,
    immediate_exit: ImmediateExit,
    control: Mutex<(Command, Doing)>,
    changed: Condvar,
    counters: Counters,
}

/// A vCPU and its thread.
#[derive(Debug)]
pub struct Vcpu {
    shared: Arc<Shared>,
    signal: i32,
    thread: Option<thread::JoinHandle<()>>,
}

impl Vcpu {
    /// A vCPU that does not run yet; `signal` is that of [`kick::signal`].
    ///
    /// # Errors
    /// When the process is out of memory.
    pub fn new(fd: VcpuFd, signal: i32) -> io::Result<Self> {
        let immediate_exit = ImmediateExit::new(&fd)?;
        let shared = Shared {
            fd: Mutex::new(fd),
            immediate_exit,
            control: Mutex::new((Command::Park, Doing::Parked)),
            changed: Condvar::new(),
            counters: Counters::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            signal,
            thread: None,
        })
    }

    /// Lets it run: the first time on a new thread called `name`.
    ///
    /// # Errors
    /// When the process is out of threads or memory.
    pub fn resume(&mut self, name: &str, bus: &Arc<Bus>, end: &Arc<End>) -> io::Result<()> {
        self.shared.command(Command::Run);
        if self.thread.is_some() {
            return Ok(());
        }
        let (shared, bus, end) = (Arc::clone(&self.shared), Arc::clone(bus), Arc::clone(end));
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || shared.serve(&bus, &end))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Asks it to park, without waiting.
    pub fn park(&self) {
        self.shared.command(Command::Park);
        self.kick();
    }

    /// Waits until it is parked.
    pub fn wait_parked(&self) {
        let control = lock(&self.shared.control);
        let parked = self
            .shared
            .changed
            .wait_while(control, |(_, doing)| *doing == Doing::Running);
        drop(parked);
    }

    /// Calls `with` on the vCPU, which must be parked.
    pub fn with_fd<T>(&self, with: impl FnOnce(&VcpuFd) -> T) -> T {
        with(&lock(&self.shared.fd))
    }

    /// What made it leave the guest, how often.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn kick(&self) {
        self.shared.immediate_exit.set(true);
        if let Some(thread) = &self.thread {
            // Fails only when the thread has ended: then there is nothing to interrupt.
            let _ = thread.kill(self.signal);
        }
    }
}

/// Ends the thread.
impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.command(Command::End);
        self.kick();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn command(&self, command: Command) {
        let mut control = lock(&self.control);
        control.0 = command;
        if command == Command::Run {
            // From here on whoever waits for it to park waits for the thread to say so.
            control.1 = Doing::Running;
        }
        self.changed.notify_all();
    }

    /// The thread.
    fn serve(&self, bus: &Bus, end: &End) {
        while self.wait_to_run() {
            let over = self.run(bus);
            if let Some(reason) = over {
                // Before the report: whoever hears of it may order the thread's end at once.
                lock(&self.control).0 = Command::Park;
                end.report(reason);
            }
        }
    }

    /// Parks until told to run; `false` when told to end.
    fn wait_to_run(&self) -> bool {
        let mut control = lock(&self.control);
        while control.0 == Command::Park {
            if control.1 == Doing::Running {
                control.1 = Doing::Parked;
                self.changed.notify_all();
            }
            control = self
                .changed
                .wait(control)
                .unwrap_or_else(PoisonError::into_inner);
        }
        control.0 == Command::Run
    }

    /// Runs the guest until told otherwise, or until the VM is over.
    fn run(&self, bus: &Bus) -> Option<ExitReason> {
        let mut fd = lock(&self.fd);
        loop {
            match fd.run() {
                Ok(exit) => {
                    if let Some(reason) = exits::handle(exit, bus, &self.counters) {
                        return Some(reason);
                    }
                }
                // Only here is an access the guest made complete in KVM, so only here it may stop.
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    self.immediate_exit.set(false);
                    if lock(&self.control).0 != Command::Run {
                        return None;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "cannot run vCPU");
                    return Some(ExitReason::Error);
                }
            }
        }
    }
}

/// A poisoned lock is entered: the panic that poisoned it ends the process by itself.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
