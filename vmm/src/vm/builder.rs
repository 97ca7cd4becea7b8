//! Makes a VM from its configuration: memory, the KVM VM, interrupt controllers, devices, vCPUs.
//! It walks the list of devices and knows none by name.

use std::{
    fs::File,
    io,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    sync::Arc,
};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VmFd};
use lazaret_protocol::vm::VmConfig;
use vm_memory::{Address, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::{
    Vm,
    end::End,
    memory::{self, MemoryError},
    slots::{self, PlugError, SLOTS_MAX},
};
use crate::{
    boot::{self, BootError, Image, cmdline},
    bus::Bus,
    devices,
    fds::{FdError, Fds},
    vcpu::{
        Vcpu,
        cpuid::{self, Template},
        kick,
    },
    virtio::mmio::{SLOT_BYTES, Slot},
};

/// Most vCPUs of a VM.
pub const VCPUS_MAX: u8 = 64;

const KVM_API_VERSION: i32 = 12;
/// Three pages for the task state segment and one for page tables that KVM needs on Intel hosts
/// without unrestricted guests (KVM API §4.35, §4.40): at the end of the 32-bit hole, where a PC
/// has its firmware.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

const CAPABILITIES: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A descriptor is missing.
    #[error(transparent)]
    Fd(#[from] FdError),
    /// The number of vCPUs is out of range.
    #[error("vcpus: {count} is not between 1 and {VCPUS_MAX}")]
    Vcpus {
        /// What was asked for.
        count: u8,
    },
    /// There are too many slots.
    #[error("devices: {devices} and spare_slots: {spare} are more than {SLOTS_MAX} slots")]
    Slots {
        /// Slots with a device.
        devices: usize,
        /// Slots without.
        spare: u8,
    },
    /// The descriptor is of something else, or of an ancient host.
    #[error("kvm: descriptor is not /dev/kvm, or its API version is not {KVM_API_VERSION}")]
    NotKvm,
    /// The host's KVM is too old.
    #[error("kvm: host lacks {capability}")]
    Capability {
        /// Name in the KVM API.
        capability: &'static str,
    },
    /// Guest memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A device cannot be made.
    #[error("devices[{slot}]")]
    Device {
        /// Index in the configuration.
        slot: usize,
        /// Why.
        #[source]
        source: PlugError,
    },
    /// The guest cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refused.
    #[error("kvm: cannot {what}")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The process is out of a resource.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The first vCPU cannot be prepared.
    #[error("vCPU 0")]
    Registers(#[source] crate::vcpu::regs::RegsError),
    /// The first vCPU cannot be prepared.
    #[error("vCPU 0")]
    Msrs(#[source] crate::vcpu::msrs::MsrError),
}

pub(super) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { what, source }
}

pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::Host { what, source }
}

/// Makes the VM that `config` describes and loads its guest; nothing runs yet.
///
/// # Errors
/// When a field is out of range or the host cannot provide what it asks for; the message names it.
pub fn boot(config: &VmConfig, fds: &mut Fds) -> Result<Vm, BuildError> {
    let vm = assemble(config, fds)?;
    let kernel = File::from(fds.take("kernel", config.kernel)?);
    let initramfs = config
        .initramfs
        .map(|fd| fds.take("initramfs", fd))
        .transpose()?
        .map(File::from);
    // Spare slots too: a kernel that finds no device there keeps the place.
    let slots = (0..slot_count(config)).map(|slot| cmdline::Device {
        address: slots::slot_address(slot),
        window_kib: SLOT_BYTES >> 10,
        gsi: slots::gsi(slot),
    });
    let image = Image {
        kernel,
        initramfs,
        command_line: cmdline::with_devices(&config.command_line, slots),
        vcpus: config.vcpus,
    };
    let entry = boot::load(&vm.memory, &image)?;
    vm.prepare_first_vcpu(entry)?;
    Ok(vm)
}

/// Makes the VM that `config` describes without a guest: for [`boot`] and for
/// [`Vm::restore`].
///
/// # Errors
/// As [`boot`].
pub fn assemble(config: &VmConfig, fds: &mut Fds) -> Result<Vm, BuildError> {
    let count = config.vcpus;
    if !(1..=VCPUS_MAX).contains(&count) {
        return Err(BuildError::Vcpus { count });
    }
    if slot_count(config) > SLOTS_MAX {
        let (devices, spare) = (config.devices.len(), config.spare_slots);
        return Err(BuildError::Slots { devices, spare });
    }
    let kvm_device = open_kvm(fds.take("kvm", config.kvm)?)?;
    let memory = memory::create(config.memory_mib, config.huge_pages)?;
    let fd = Arc::new(create_vm(&kvm_device)?);
    attach_memory(&fd, &memory)?;
    fd.set_tss_address(TSS_ADDRESS)
        .map_err(kvm("place the task state segment"))?;
    fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(kvm("place the identity map"))?;
    fd.create_irq_chip()
        .map_err(kvm("make interrupt controllers"))?;
    let slots = make_slots(config, fds, &fd, &memory)?;
    let bus = Arc::new(Bus::new(memory.clone(), slots));
    let vcpus = make_vcpus(config, &kvm_device, &fd)?;
    let end = End::new().map_err(host("make an event"))?;
    Ok(Vm::new(config, kvm_device, fd, memory, bus, vcpus, end))
}

fn open_kvm(fd: OwnedFd) -> Result<Kvm, BuildError> {
    // SAFETY: the descriptor is owned, and given up here to its new owner.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    if kvm.get_api_version() != KVM_API_VERSION {
        return Err(BuildError::NotKvm);
    }
    for (capability, name) in CAPABILITIES {
        if !kvm.check_extension(capability) {
            return Err(BuildError::Capability { capability: name });
        }
    }
    Ok(kvm)
}

fn create_vm(kvm_device: &Kvm) -> Result<VmFd, BuildError> {
    loop {
        match kvm_device.create_vm() {
            // A signal came while KVM set up: it gives up, and may be asked again.
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(kvm("make a VM")),
        }
    }
}

fn attach_memory(fd: &VmFd, memory: &GuestMemoryMmap) -> Result<(), BuildError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let range = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is mapped, belongs to guest memory only, and stays mapped: the VM
        // keeps `memory` until after its KVM descriptors are closed.
        unsafe { fd.set_user_memory_region(range) }.map_err(kvm("attach guest memory"))?;
    }
    Ok(())
}

/// All slots, the configured devices in the first of them.
fn make_slots(
    config: &VmConfig,
    fds: &mut Fds,
    fd: &Arc<VmFd>,
    memory: &GuestMemoryMmap,
) -> Result<Vec<Slot>, BuildError> {
    let slots: Vec<_> = (0..slot_count(config))
        .map(|index| Slot::spare(slots::slot_address(index)))
        .collect();
    for (index, (device_config, slot)) in config.devices.iter().zip(&slots).enumerate() {
        devices::from_config(device_config, fds)
            .map_err(PlugError::from)
            .and_then(|device| slots::plug(device, slot, index, fd, memory))
            .map_err(|source| BuildError::Device {
                slot: index,
                source,
            })?;
    }
    Ok(slots)
}

fn slot_count(config: &VmConfig) -> usize {
    config.devices.len() + usize::from(config.spare_slots)
}

fn make_vcpus(config: &VmConfig, device: &Kvm, fd: &VmFd) -> Result<Vec<Vcpu>, BuildError> {
    let signal = kick::signal().map_err(host("install a signal handler"))?;
    let supported = cpuid::supported(device).map_err(kvm("list CPUID"))?;
    let template = Template {
        vcpus: config.vcpus,
        nested: config.nested,
        tsc_deadline: cpuid::has_tsc_deadline(device),
    };
    (0..config.vcpus)
        .map(|id| {
            let vcpu = fd.create_vcpu(id.into()).map_err(kvm("make a vCPU"))?;
            vcpu.set_cpuid2(&template.apply(&supported, id))
                .map_err(kvm("set CPUID"))?;
            // 0 is the host's frequency of now. On hosts without a constant TSC, KVM otherwise
            // takes that of when it was loaded, and if it was refined since then, the guest's
            // TSC stands still and its timer never fires. A KVM that cannot change it has no
            // other either.
            let _ = vcpu.set_tsc_khz(0);
            Vcpu::new(vcpu, signal).map_err(host("map a vCPU"))
        })
        .collect()
}
