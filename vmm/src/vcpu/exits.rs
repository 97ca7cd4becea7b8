//! What happens when the guest leaves to the VMM. Everything here is driven by the guest.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;
use lazaret_protocol::vm::ExitReason;

use crate::bus::Bus;

/// How often a vCPU left the guest, by cause.
#[derive(Debug, Default)]
pub struct Counters {
    port_reads: AtomicU64,
    port_writes: AtomicU64,
    mmio_reads: AtomicU64,
    mmio_writes: AtomicU64,
}

impl Counters {
    /// Calls `report` with each name and value.
    pub fn each(&self, report: &mut dyn FnMut(&'static str, u64)) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        report("exits.mmio_read", load(&self.mmio_reads));
        report("exits.mmio_write", load(&self.mmio_writes));
        report("exits.port_read", load(&self.port_reads));
        report("exits.port_write", load(&self.port_writes));
    }
}

/// Counts on a counter that only the vCPU's own thread writes: no locked instruction is needed.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Serves `exit`; `Some` when the VM is over.
pub(super) fn handle(exit: VcpuExit<'_>, bus: &Bus, counters: &Counters) -> Option<ExitReason> {
    match exit {
        VcpuExit::MmioRead(address, data) => {
            count(&counters.mmio_reads);
            bus.read_mmio(address, data);
        }
        VcpuExit::MmioWrite(address, data) => {
            count(&counters.mmio_writes);
            bus.write_mmio(address, data);
        }
        VcpuExit::IoIn(port, data) => {
            count(&counters.port_reads);
            bus.read_port(port, data);
        }
        VcpuExit::IoOut(port, data) => {
            count(&counters.port_writes);
            return bus.write_port(port, data);
        }
        // A triple fault.
        VcpuExit::Shutdown => return Some(bus.reset_reason()),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        other => {
            tracing::error!(exit = ?other, "vCPU cannot go on");
            return Some(ExitReason::Error);
        }
    }
    None
}
