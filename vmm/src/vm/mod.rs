//! A virtual machine: guest memory, interrupt controllers, vCPUs and devices, and what can be
//! done to it as a whole. The control socket's requests end here.

use std::{io, sync::Arc};

use kvm_ioctls::{Kvm, VmFd};
use lazaret_protocol::vm::{Description, VmConfig};
use vm_memory::GuestMemoryMmap;

use crate::{
    boot::Entry,
    bus::Bus,
    vcpu::{Vcpu, msrs, regs},
    virtio::mmio::Transport,
};

pub mod builder;
pub mod end;
pub mod memory;
mod save;
pub mod slots;
#[cfg(test)]
pub(crate) mod tests;

pub use builder::BuildError;
use builder::kvm;
use end::End;
pub use save::{StateError, VmState};

/// Registers of the local APIC (Intel SDM volume 3, §10.4): local interrupts 0 and 1.
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
/// Delivery modes in them.
const LINT_EXT_INT: u32 = 7 << 8;
const LINT_NMI: u32 = 4 << 8;

/// A VM that may run.
#[derive(Debug)]
pub struct Vm {
    name: String,
    memory_mib: u64,
    // Declared, hence dropped, before what the threads use.
    vcpus: Vec<Vcpu>,
    bus: Arc<Bus>,
    end: Arc<End>,
    paused: bool,
    fd: Arc<VmFd>,
    kvm: Kvm,
    pub(crate) memory: GuestMemoryMmap,
}

impl Vm {
    fn new(
        config: &VmConfig,
        kvm: Kvm,
        fd: Arc<VmFd>,
        memory: GuestMemoryMmap,
        bus: Arc<Bus>,
        vcpus: Vec<Vcpu>,
        end: Arc<End>,
    ) -> Self {
        Self {
            name: config.name.clone(),
            memory_mib: config.memory_mib,
            vcpus,
            bus,
            end,
            paused: true,
            fd,
            kvm,
            memory,
        }
    }

    /// Sets the first vCPU to enter the guest at `entry`.
    fn prepare_first_vcpu(&self, entry: Entry) -> Result<(), BuildError> {
        let first = self.vcpus.first().expect("a VM has one vCPU or more");
        first.with_fd(|fd| {
            msrs::prepare(fd).map_err(BuildError::Msrs)?;
            regs::prepare(fd, &self.memory, entry).map_err(BuildError::Registers)?;
            let mut lapic = fd.get_lapic().map_err(kvm("read a local APIC"))?;
            set_lapic_register(&mut lapic.regs, LAPIC_LINT0, LINT_EXT_INT);
            set_lapic_register(&mut lapic.regs, LAPIC_LINT1, LINT_NMI);
            fd.set_lapic(&lapic).map_err(kvm("write a local APIC"))
        })
    }

    /// Starts the vCPUs, or lets them and the devices go on after [`pause`](Self::pause).
    ///
    /// # Errors
    /// When the process is out of threads; the VM is then unusable.
    pub fn resume(&mut self) -> io::Result<()> {
        if !self.paused {
            return Ok(());
        }
        for slot in self.bus.slots() {
            slot.with_transport(Transport::resume);
        }
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            vcpu.resume(&format!("vcpu{index}"), &self.bus, &self.end)?;
        }
        self.paused = false;
        Ok(())
    }

    /// Stops the vCPUs, then the devices. When it returns nothing of the guest runs.
    pub fn pause(&mut self) {
        if self.paused {
            return;
        }
        for vcpu in &self.vcpus {
            vcpu.park();
        }
        for vcpu in &self.vcpus {
            vcpu.wait_parked();
            // Tells the guest's clock that it was stopped, so that its watchdogs do not bark.
            // Refused when the guest does not use that clock.
            let _ = vcpu.with_fd(kvm_ioctls::VcpuFd::kvmclock_ctrl);
        }
        for slot in self.bus.slots() {
            slot.with_transport(Transport::pause);
        }
        self.paused = true;
    }

    /// Where the end of the VM is reported.
    pub fn end(&self) -> &Arc<End> {
        &self.end
    }

    /// What VM this is.
    pub fn describe(&self) -> Description {
        let devices = (0..)
            .zip(self.bus.slots())
            .filter_map(|(index, slot)| {
                slot.with_transport(|transport| {
                    let kind = transport.device().kind().to_owned();
                    (index, kind, transport.state_name().to_owned())
                })
            })
            .collect();
        let spare_slots = (0..)
            .zip(self.bus.slots())
            .filter_map(|(index, slot)| slot.is_spare().then_some(index))
            .collect();
        Description {
            name: self.name.clone(),
            pid: std::process::id(),
            memory_mib: self.memory_mib,
            vcpus: u8::try_from(self.vcpus.len()).expect("there are 64 vCPUs at most"),
            paused: self.paused,
            devices,
            spare_slots,
        }
    }

    /// All counters, sorted by name.
    pub fn counters(&self) -> Vec<(String, u64)> {
        let mut all = Vec::new();
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.counters()
                .each(&mut |name, value| all.push((format!("vcpu.{index}.{name}"), value)));
        }
        for (index, slot) in self.bus.slots().iter().enumerate() {
            slot.with_transport(|transport| {
                let device = transport.device();
                let kind = device.kind();
                let mut report = |name, value| all.push((format!("{kind}.{index}.{name}"), value));
                device.counters(&mut report);
            });
        }
        all.sort();
        all
    }

    /// The newest console output, if the VM has a console.
    pub fn console(&self) -> Option<Vec<u8>> {
        self.bus
            .slots()
            .iter()
            .find_map(|slot| slot.with_transport(|transport| transport.device().output())?)
    }
}

/// Sets a 32-bit register in the page that KVM exchanges.
fn set_lapic_register(page: &mut [std::os::raw::c_char], at: usize, value: u32) {
    for (byte, new) in page[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
        *byte = new.cast_signed();
    }
}
