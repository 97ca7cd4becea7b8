//! The state of a whole VM beside the content of its memory, as a plain struct, and back.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
};
use serde::{Deserialize, Serialize};

use super::Vm;
use crate::{
    vcpu::{
        msrs::{self, MsrError},
        save::{self as vcpu_state, VcpuState},
    },
    virtio::mmio::{Slot, TransportRestoreError, TransportState},
};

/// Everything that makes up a paused VM but the content of guest memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    pub(super) memory_mib: u64,
    pub(super) irqchips: Vec<kvm_irqchip>,
    pub(super) clock: kvm_clock_data,
    pub(super) vcpus: Vec<VcpuState>,
    /// `None` for a spare slot.
    pub(super) slots: Vec<Option<TransportState>>,
}

/// Why a VM's state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The VM runs.
    #[error("VM is not paused")]
    Running,
    /// The state is of a VM of another shape.
    #[error("state has {saved} {what}, the VM {present}")]
    Shape {
        /// `vCPUs`, `slots`, `MiB of memory`.
        what: &'static str,
        /// Number in the state.
        saved: u64,
        /// Number in the VM.
        present: u64,
    },
    /// KVM refused.
    #[error("cannot {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The list of registers failed.
    #[error(transparent)]
    Msrs(#[from] MsrError),
    /// A vCPU failed.
    #[error("vCPU {index}")]
    Vcpu {
        /// Which.
        index: usize,
        /// Why.
        #[source]
        source: vcpu_state::StateError,
    },
    /// A device failed.
    #[error("device {slot}")]
    Device {
        /// Its slot.
        slot: usize,
        /// Why.
        #[source]
        source: TransportRestoreError,
    },
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { what, source }
}

impl Vm {
    /// Reads the state of a paused VM.
    ///
    /// # Errors
    /// When the VM runs or KVM refuses.
    pub fn save(&self) -> Result<VmState, StateError> {
        if !self.paused {
            return Err(StateError::Running);
        }
        let indices = msrs::indices(&self.kvm)?;
        let vcpus = self
            .vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| {
                vcpu.with_fd(|fd| vcpu_state::save(fd, &indices))
                    .map_err(|source| StateError::Vcpu { index, source })
            })
            .collect::<Result<_, _>>()?;
        let irqchips = [
            KVM_IRQCHIP_PIC_MASTER,
            KVM_IRQCHIP_PIC_SLAVE,
            KVM_IRQCHIP_IOAPIC,
        ]
        .into_iter()
        .map(|chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd.get_irqchip(&mut chip)?;
            Ok(chip)
        })
        .collect::<Result<_, _>>()
        .map_err(kvm("read an interrupt controller"))?;
        Ok(VmState {
            memory_mib: self.memory_mib,
            irqchips,
            clock: self.fd.get_clock().map_err(kvm("read the clock"))?,
            vcpus,
            slots: self.bus.slots().iter().map(Slot::save).collect(),
        })
    }

    /// Makes a fresh VM of the same configuration what `state` says; its memory must hold what it
    /// held, and its slots the devices that they had ([`attach_to`](Self::attach_to)). The VM is
    /// paused afterwards.
    ///
    /// # Errors
    /// When the VM runs, the state does not fit, or KVM refuses; the VM is then unusable.
    pub fn restore(&mut self, state: &VmState) -> Result<(), StateError> {
        if !self.paused {
            return Err(StateError::Running);
        }
        let slots = self.bus.slots();
        same("MiB of memory", state.memory_mib, self.memory_mib)?;
        same("vCPUs", state.vcpus.len() as u64, self.vcpus.len() as u64)?;
        same("slots", state.slots.len() as u64, slots.len() as u64)?;
        for chip in &state.irqchips {
            self.fd
                .set_irqchip(chip)
                .map_err(kvm("write an interrupt controller"))?;
        }
        // Only the time itself: the flags say how exact the host's reading was.
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            ..Default::default()
        };
        self.fd.set_clock(&clock).map_err(kvm("write the clock"))?;
        for (index, (vcpu, saved)) in self.vcpus.iter().zip(&state.vcpus).enumerate() {
            vcpu.with_fd(|fd| vcpu_state::restore(fd, saved))
                .map_err(|source| StateError::Vcpu { index, source })?;
        }
        for (slot, (present, saved)) in slots.iter().zip(&state.slots).enumerate() {
            present
                .restore(saved.as_ref())
                .map_err(|source| StateError::Device { slot, source })?;
        }
        Ok(())
    }
}

fn same(what: &'static str, saved: u64, present: u64) -> Result<(), StateError> {
    if saved == present {
        Ok(())
    } else {
        Err(StateError::Shape {
            what,
            saved,
            present,
        })
    }
}
