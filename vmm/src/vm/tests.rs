//! Whole VMs on `/dev/kvm`, with guests of a few instructions.

use lazaret_protocol::vm::{ConsoleConfig, DeviceConfig, ExitReason, Fd};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::{builder, memory};
use crate::{boot, fds::FdError, virtio::mmio::SLOTS_START};

pub(crate) mod guest;
mod script;
mod slots;
mod state;
mod virtio;

use guest::{Step, boot, script, wait};

/// Where guests store what they saw.
const RESULT: u32 = 0x20_0000;

fn load<T: vm_memory::ByteValued>(vm: &super::Vm, address: u32) -> T {
    vm.memory.read_obj(GuestAddress(address.into())).unwrap()
}

#[test]
fn a_64_bit_kernel_gets_its_zero_page_and_panics() {
    // mov %rsi, 0x200000; mov %cs, 0x200008; movw $0x1234, 0x472; mov $0xfe, %al; out %al, $0x64
    let code = [
        0x48, 0x89, 0x34, 0x25, 0x00, 0x00, 0x20, 0x00, 0x8c, 0x0c, 0x25, 0x08, 0x00, 0x20, 0x00,
        0x66, 0xc7, 0x04, 0x25, 0x72, 0x04, 0x00, 0x00, 0x34, 0x12, 0xb0, 0xfe, 0xe6, 0x64, 0xf4,
    ];
    let mut vm = boot(guest::kernel(&code, false), Vec::new()).unwrap();
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Panic);
    assert_eq!(load::<u64>(&vm, RESULT), boot::ZERO_PAGE);
    assert_eq!(load::<u16>(&vm, RESULT + 8), 0x10);
    let magic: u32 = load(&vm, boot::ZERO_PAGE as u32 + 0x202);
    assert_eq!(&magic.to_le_bytes(), b"HdrS");
}

#[test]
fn real_mode_code_finds_no_surprises_at_ports() {
    // mov $0x3f8, %dx; in %dx, %al; mov %al, 0x2000; out %al, %dx; in $0x64, %al; mov %al, 0x2001;
    // in $0x71, %al; mov %al, 0x2002; out %al, $0x80; mov $0xfe, %al; out %al, $0x64; hlt
    let code = [
        0xba, 0xf8, 0x03, 0xec, 0xa2, 0x00, 0x20, 0xee, 0xe4, 0x64, 0xa2, 0x01, 0x20, 0xe4, 0x71,
        0xa2, 0x02, 0x20, 0xe6, 0x80, 0xb0, 0xfe, 0xe6, 0x64, 0xf4,
    ];
    let mut fds = guest::fds(tempfile::tempfile().unwrap());
    let mut vm = builder::assemble(&guest::config(1, Vec::new()), &mut fds).unwrap();
    vm.memory.write_slice(&code, GuestAddress(0x1000)).unwrap();
    vm.vcpus[0].with_fd(|fd| {
        let mut sregs = fd.get_sregs().unwrap();
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        fd.set_sregs(&sregs).unwrap();
        let mut regs = fd.get_regs().unwrap();
        regs.rip = 0x1000;
        regs.rflags = 2;
        fd.set_regs(&regs).unwrap();
    });
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
    assert_eq!(load::<[u8; 3]>(&vm, 0x2000), [0xff, 0, 0xff]);
    let counters = vm.counters();
    let of = |name: &str| counters.iter().find(|(known, _)| known == name).unwrap().1;
    assert_eq!(of("vcpu.0.exits.port_read"), 3);
    assert_eq!(of("vcpu.0.exits.port_write"), 3);
}

#[test]
fn a_triple_fault_is_a_reset() {
    // lidt of nothing, then an undefined instruction: ud2.
    let mut vm = boot(guest::kernel(&[0x0f, 0x0b], true), Vec::new()).unwrap();
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
}

#[test]
fn a_pvh_kernel_reads_device_registers_and_empty_space() {
    let slot = SLOTS_START as u32;
    let steps = [
        Step::Read(slot, RESULT),
        Step::Read(slot + 8, RESULT + 4),
        Step::Read(slot + 0x1000, RESULT + 8),
        Step::Write(slot + 0x1000, 7),
        Step::Read(boot::HVM_START_INFO as u32, RESULT + 12),
        Step::In(0x3fd, RESULT + 16),
        Step::Out(0x80, 1),
    ];
    let mut vm = boot(script(&steps), vec![DeviceConfig::Rng]).unwrap();
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
    assert_eq!(&load::<[u8; 4]>(&vm, RESULT), b"virt");
    assert_eq!(load::<u32>(&vm, RESULT + 4), 4);
    assert_eq!(load::<u32>(&vm, RESULT + 8), u32::MAX);
    assert_eq!(load::<u32>(&vm, RESULT + 12), 0x336e_c578);
    assert_eq!(load::<u8>(&vm, RESULT + 16), 0xff);
}

#[test]
fn a_second_processor_starts_when_it_is_told_to() {
    // At 0x8000, 16-bit: xor %ax, %ax; mov %ax, %ds; incw 0x9000; hlt
    let steps = [
        Step::Write(0x8000, 0xd88e_c031),
        Step::Write(0x8004, 0x9000_06ff),
        Step::Write(0x8008, 0xf4),
        Step::Write(0xfee0_0310, 1 << 24),
        Step::Write(0xfee0_0300, 0x4500),
        Step::Write(0xfee0_0310, 1 << 24),
        Step::Write(0xfee0_0300, 0x4608),
        Step::SpinUntil(0x9000, 1),
    ];
    let mut fds = guest::fds(script(&steps));
    let mut vm = builder::boot(&guest::config(2, Vec::new()), &mut fds).unwrap();
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
}

#[test]
fn a_spinning_guest_is_paused_and_goes_on() {
    let mut vm = boot(script(&[Step::SpinUntil(RESULT, 1)]), Vec::new()).unwrap();
    vm.resume().unwrap();
    for _ in 0..100 {
        vm.pause();
        assert!(vm.describe().paused);
        vm.resume().unwrap();
    }
    vm.pause();
    vm.memory
        .write_obj(1_u32, GuestAddress(RESULT.into()))
        .unwrap();
    assert_eq!(vm.end().reason(), None);
    vm.resume().unwrap();
    assert_eq!(wait(&vm), ExitReason::Reset);
}

#[test]
fn dropping_a_running_vm_ends_its_threads() {
    let mut fds = guest::fds(script(&[Step::SpinUntil(RESULT, 1)]));
    let mut vm = builder::boot(&guest::config(3, Vec::new()), &mut fds).unwrap();
    vm.resume().unwrap();
    drop(vm);
}

#[test]
fn wrong_configurations_are_named() {
    let refused = |change: &dyn Fn(&mut lazaret_protocol::vm::VmConfig)| {
        let mut config = guest::config(1, Vec::new());
        change(&mut config);
        let error = builder::boot(&config, &mut guest::fds(script(&[]))).unwrap_err();
        crate::launch::one_line(&error)
    };
    assert!(refused(&|config| config.vcpus = 0).contains("vcpus: 0"));
    assert!(refused(&|config| config.vcpus = 65).contains("vcpus: 65"));
    assert!(refused(&|config| config.memory_mib = 15).contains("memory_mib: 15"));
    assert!(refused(&|config| config.memory_mib = u64::MAX).contains("memory_mib"));
    assert!(refused(&|config| config.kvm = Fd(1)).contains("kvm: descriptor is not /dev/kvm"));
    assert!(refused(&|config| config.kernel = Fd(9)).contains("kernel: descriptor 9"));
    assert!(refused(&|config| config.kernel = Fd(0)).contains("kernel: descriptor 0 is used"));
    assert!(refused(&|config| config.command_line = "x".repeat(3000)).contains("command_line"));
    assert!(
        refused(&|config| {
            config.huge_pages = true;
            config.memory_mib = 17;
        })
        .contains("memory_mib: 17")
    );
    let console = DeviceConfig::Console(ConsoleConfig {
        ring_bytes: 1,
        output: None,
    });
    let line = refused(&|config| config.devices = vec![DeviceConfig::Rng, console.clone()]);
    assert!(
        line.contains("devices[1]") && line.contains("ring_bytes"),
        "{line}"
    );
    let line = refused(&|config| config.devices = vec![DeviceConfig::Rng; 33]);
    assert!(line.contains("devices: 33"), "{line}");
}

#[test]
fn a_descriptor_serves_one_field() {
    let mut fds = guest::fds(script(&[]));
    fds.take("first", Fd(0)).unwrap();
    assert_eq!(
        fds.take("second", Fd(0)).unwrap_err(),
        FdError::Taken {
            field: "second",
            index: 0
        }
    );
    assert_eq!(fds.unused(), 1);
}

#[test]
fn memory_goes_around_the_hole() {
    let gib = 1_u64 << 30;
    assert_eq!(memory::layout(gib), [(0, gib)]);
    assert_eq!(memory::layout(3 * gib), [(0, 3 * gib)]);
    assert_eq!(memory::layout(5 * gib), [(0, 3 * gib), (4 * gib, 2 * gib)]);
    // 1 TiB: nothing is touched or reserved.
    let memory = memory::create(memory::MEMORY_MAX_MIB, false).unwrap();
    assert_eq!(memory.num_regions(), 2);
    assert_eq!(memory.last_addr(), GuestAddress((1 << 40) + gib - 1));
}
