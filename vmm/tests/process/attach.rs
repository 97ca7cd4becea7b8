//! Devices that are attached to a running VM and detached again, over its control socket.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    thread,
    time::{Duration, Instant},
};

use lazaret_protocol::{
    frame,
    vm::{
        BlockConfig, ControlAnswer, ControlReply, ControlRequest, Description, DeviceConfig,
        ExitReason, Fd, FsConfig, PortGrant, VsockConfig,
    },
};

use crate::{
    script::{Step, kvm, script},
    vmm::{Vmm, launch, send},
};

/// How long anything may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(60);

/// Registers of the first two slots.
const SLOTS: [u32; 2] = [0xd000_0000, 0xd000_1000];
const DEVICE_ID: u32 = 0x08;
const QUEUE_NOTIFY: u32 = 0x50;
const STATUS: u32 = 0x70;
/// Device types (virtio 1.3 §5).
const BLOCK: u32 = 2;
const RNG: u32 = 4;

/// Where the guest has the rings of its queue, the parts of its request, and a place to spin on.
const TABLE: u32 = 0x30_0000;
const AVAILABLE: u32 = TABLE + 0x1000;
const USED: u32 = TABLE + 0x2000;
const HEADER: u32 = TABLE + 0x3000;
const DATA: u32 = TABLE + 0x4000;
const RESULT: u32 = TABLE + 0x5000;
const NEVER: Step = Step::SpinUntil(TABLE + 0x6000, 1);
/// What the disk starts with.
const CONTENT: u32 = 0xc0de_d15c;

fn disk() -> (DeviceConfig, OwnedFd) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&CONTENT.to_le_bytes()).unwrap();
    file.set_len(1 << 20).unwrap();
    (block(0, 2), file.into())
}

fn block(fd: u32, queues: u16) -> DeviceConfig {
    DeviceConfig::Block(BlockConfig {
        file: Fd(fd),
        serial: "attached".into(),
        readonly: true,
        queues,
    })
}

/// A driver's way to readiness, with the first queue, of four descriptors.
fn activate(slot: u32) -> Vec<Step> {
    [
        (STATUS, 1),
        (STATUS, 1 | 2),
        (0x24, 1),
        (0x20, 1), // VIRTIO_F_VERSION_1
        (STATUS, 1 | 2 | 8),
        (0x30, 0),
        (0x38, 4),
        (0x80, TABLE),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
        (STATUS, 1 | 2 | 8 | 4),
    ]
    .map(|(register, value)| Step::Write(slot + register, value))
    .into()
}

/// Makes one request available: to read the disk's first sector. Header and result are zeros.
fn read_first_sector() -> Vec<Step> {
    const NEXT: u32 = 1;
    const WRITABLE: u32 = 2;
    let parts = [
        (HEADER, 16, 1 << 16 | NEXT),
        (DATA, 512, 2 << 16 | WRITABLE | NEXT),
        (RESULT, 1, WRITABLE),
    ];
    let mut steps = Vec::new();
    for (at, (address, bytes, next_and_flags)) in (TABLE..).step_by(16).zip(parts) {
        steps.push(Step::Write(at, address));
        steps.push(Step::Write(at + 8, bytes));
        steps.push(Step::Write(at + 12, next_and_flags));
    }
    steps.push(Step::Write(AVAILABLE, 1 << 16));
    steps
}

/// A VM with spare slots, and a client of its control socket.
struct Bench {
    vmm: Vmm,
    client: UnixStream,
}

impl Bench {
    /// `devices` and `spare` slots, before a guest that performs `steps`.
    fn new(devices: Vec<DeviceConfig>, spare: u8, steps: &[Step]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let mut launch = launch();
        launch.vm.control = Some(Fd(2));
        launch.vm.devices = devices;
        launch.vm.spare_slots = spare;
        let fds = [kvm(), script(steps).into(), listener.into()];
        let (vmm, launched) = Vmm::launch(&launch, &fds);
        assert_eq!(launched, Ok(()));
        let client = UnixStream::connect(path).unwrap();
        vmm.socket.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        let bench = Self { vmm, client };
        // The VMM has the connection open, and all vCPUs have a thread, when it has answered.
        bench.describe();
        bench
    }

    fn ask(&self, request: &ControlRequest, fds: &[OwnedFd]) -> ControlReply {
        send(&self.client, &frame::encode(request).unwrap(), fds);
        frame::read(&mut &self.client).unwrap()
    }

    fn describe(&self) -> Description {
        match self.ask(&ControlRequest::Describe, &[]) {
            Ok(ControlAnswer::Description(description)) => description,
            other => panic!("{other:?}"),
        }
    }

    fn counter(&self, name: &str) -> Option<u64> {
        let Ok(ControlAnswer::Counters(counters)) = self.ask(&ControlRequest::Counters, &[]) else {
            panic!("no counters");
        };
        let counter = counters.into_iter().find(|(known, _)| known == name);
        counter.map(|(_, value)| value)
    }

    fn attach(&self, config: DeviceConfig, fds: &[OwnedFd]) -> Result<u32, String> {
        match self.ask(&ControlRequest::Attach(config), fds) {
            Ok(ControlAnswer::Attached { slot }) => Ok(slot),
            Ok(other) => panic!("{other:?}"),
            Err(line) => Err(line),
        }
    }

    fn detach(&self, slot: u32) -> Result<(), String> {
        let done = self.ask(&ControlRequest::Detach { slot }, &[])?;
        assert_eq!(done, ControlAnswer::Done);
        Ok(())
    }

    /// Waits until the device in `slot` is in `state`.
    fn wait(&self, slot: u32, state: &str) {
        until(&format!("slot {slot}: {state}"), || {
            let devices = self.describe().devices;
            let device = devices.iter().find(|(index, ..)| *index == slot);
            device.is_some_and(|(.., present)| present == state)
        });
    }

    /// Waits until the guest has read a register `count` times. From the first on it runs: its
    /// processor's thread, and KVM's own, have their names.
    fn wait_accesses(&self, count: u64) {
        until("guest reads registers", || {
            self.counter("vcpu.0.exits.mmio_read") >= Some(count)
        });
    }

    /// Open descriptors of the process: number and file.
    fn descriptors(&self) -> BTreeSet<(String, String)> {
        let folder = format!("/proc/{}/fd", self.vmm.process.id());
        let name = |path: &std::path::Path| path.to_string_lossy().into_owned();
        std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (name(&path), name(&std::fs::read_link(&path).unwrap())))
            .collect()
    }

    /// Names of the process's threads.
    fn threads(&self) -> Vec<String> {
        let folder = format!("/proc/{}/task", self.vmm.process.id());
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            // One that has ended meanwhile has no name.
            .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("comm")).ok())
            .collect();
        names.sort();
        names
    }

    /// Waits until the guest has performed all its steps.
    fn end(mut self) {
        // The VMM's end of the socket closes with the process.
        assert_eq!(self.vmm.socket.read(&mut [0]).unwrap(), 0);
        assert_eq!(self.vmm.end(), (ExitReason::Reset, String::new()));
    }
}

/// Waits until `done`. Panics after [`DEADLINE`].
fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::yield_now();
    }
}

#[test]
fn a_guest_drives_a_disk_that_comes_and_goes() {
    let [first, second] = SLOTS;
    let mut steps = vec![
        Step::SpinUntil(first, u32::from_le_bytes(*b"virt")),
        Step::SpinUntil(first + DEVICE_ID, 0),
        Step::SpinUntil(first + DEVICE_ID, BLOCK),
    ];
    steps.extend(read_first_sector());
    steps.extend(activate(first));
    steps.extend([
        Step::Write(first + QUEUE_NOTIFY, 0),
        Step::SpinUntil(DATA, CONTENT),
        // Lets go when the second slot has a device, as Linux does.
        Step::SpinUntil(second + DEVICE_ID, RNG),
        Step::Write(first + STATUS, 0),
        Step::Write(first + STATUS, 1),
        Step::SpinUntil(first + DEVICE_ID, 0),
        Step::SpinUntil(second + DEVICE_ID, 0),
    ]);
    let bench = Bench::new(Vec::new(), 2, &steps);
    assert_eq!(bench.describe().devices, []);
    assert_eq!(bench.describe().spare_slots, [0, 1]);
    bench.wait_accesses(1);
    let (descriptors, threads) = (bench.descriptors(), bench.threads());
    // The magic, a placeholder, and again what it waits for.
    bench.wait_accesses(3);

    let (config, file) = disk();
    assert_eq!(bench.attach(config, &[file]), Ok(0));
    bench.wait(0, "active");
    assert_eq!(bench.describe().spare_slots, [1]);
    assert_ne!(bench.descriptors(), descriptors);
    let line = bench.detach(0).unwrap_err();
    assert!(
        line.starts_with("slot 0: a driver of the guest holds the blk device"),
        "{line}"
    );

    assert_eq!(bench.attach(DeviceConfig::Rng, &[]), Ok(1));
    bench.wait(0, "reset");
    assert_eq!(bench.counter("blk.0.reads"), Some(1));
    // It has let go when it writes 0, and may then be about to write 1: both will do.
    assert_eq!(bench.detach(0), Ok(()));
    assert_eq!(
        bench.describe().devices,
        [(1, "rng".into(), "reset".into())]
    );
    // The guest ends when it has seen this.
    let last = bench.ask(&ControlRequest::Pause, &[]);
    assert_eq!(last, Ok(ControlAnswer::Done));
    assert_eq!(bench.detach(1), Ok(()));
    assert_eq!(bench.descriptors(), descriptors);
    until("threads end", || bench.threads() == threads);
    assert_eq!(bench.counter("blk.0.reads"), None);
    assert_eq!(bench.describe().spare_slots, [0, 1]);
    let last = bench.ask(&ControlRequest::Resume, &[]);
    assert_eq!(last, Ok(ControlAnswer::Done));
    bench.end();
}

#[test]
fn a_configured_device_can_go_and_another_take_its_place() {
    let [first, second] = SLOTS;
    let steps = [
        Step::SpinUntil(first + DEVICE_ID, BLOCK),
        Step::SpinUntil(second + DEVICE_ID, RNG),
    ];
    let bench = Bench::new(vec![DeviceConfig::Rng, DeviceConfig::Rng], 0, &steps);
    let (config, file) = disk();
    let file = [file];
    let line = bench.attach(config.clone(), &file).unwrap_err();
    assert_eq!(line, "no spare slot is left, all 2 have devices");
    assert_eq!(bench.detach(0), Ok(()));
    assert_eq!(bench.describe().spare_slots, [0]);
    // The same on the launch socket.
    let request = ControlRequest::Attach(config);
    bench.vmm.send(&frame::encode(&request).unwrap(), &file);
    let reply: ControlReply = frame::read(&mut &bench.vmm.socket).unwrap();
    assert_eq!(reply, Ok(ControlAnswer::Attached { slot: 0 }));
    bench.end();
}

#[test]
fn devices_come_and_go_while_the_vm_is_paused() {
    let [first, _] = SLOTS;
    let steps = [Step::SpinUntil(first + DEVICE_ID, BLOCK)];
    let bench = Bench::new(Vec::new(), 1, &steps);
    assert_eq!(
        bench.ask(&ControlRequest::Pause, &[]),
        Ok(ControlAnswer::Done)
    );
    assert_eq!(bench.attach(DeviceConfig::Rng, &[]), Ok(0));
    assert!(bench.describe().paused);
    assert_eq!(bench.detach(0), Ok(()));
    let (config, file) = disk();
    assert_eq!(bench.attach(config, &[file]), Ok(0));
    assert_eq!(
        bench.ask(&ControlRequest::Resume, &[]),
        Ok(ControlAnswer::Done)
    );
    bench.end();
}

#[test]
fn what_cannot_be_attached_or_detached_is_named() {
    let bench = Bench::new(vec![DeviceConfig::Rng], 1, &[NEVER]);
    let before = bench.descriptors();
    let file = || OwnedFd::from(tempfile::tempfile().unwrap());
    let fs = |queues| {
        let tag = "share".to_owned();
        let root = Fd(0);
        DeviceConfig::Fs(FsConfig { tag, root, queues })
    };
    let port = 5;
    let acceptor = Fd(0);
    let vsock = DeviceConfig::Vsock(VsockConfig {
        guest_cid: 3,
        listener: Fd(0),
        grants: vec![PortGrant { port, acceptor }],
    });
    let wrong: [(DeviceConfig, Vec<OwnedFd>, &str); 7] = [
        (
            block(0, 0),
            vec![disk().1],
            "slot 1: blk device: disk \"attached\" has 0 queues",
        ),
        (
            block(0, 1),
            vec![],
            "slot 1: blk device: descriptor of disk: block.file: descriptor 0 was not sent",
        ),
        (
            block(1, 1),
            vec![disk().1],
            "slot 1: blk device: descriptor of disk: block.file: descriptor 1 was not sent, only 1",
        ),
        (
            block(0, 1),
            vec![File::open("/dev/null").unwrap().into()],
            "slot 1: blk device: cannot use the file",
        ),
        (
            fs(0),
            vec![file()],
            "slot 1: fs device: share \"share\" has 0 request queues",
        ),
        (
            vsock,
            vec![file()],
            "slot 1: descriptor of a device: vsock.grants.acceptor: descriptor 0 is used",
        ),
        (
            DeviceConfig::Rng,
            vec![file(), file()],
            "slot 1: 2 descriptors were sent that no field of the rng device",
        ),
    ];
    for (config, fds, expected) in wrong {
        let line = bench.attach(config, &fds).unwrap_err();
        assert!(line.starts_with(expected), "{line}");
    }
    let line = bench.detach(1).unwrap_err();
    assert_eq!(line, "slot 1: has no device");
    for slot in [2, u32::MAX] {
        let line = bench.detach(slot).unwrap_err();
        assert_eq!(line, format!("slot {slot}: does not exist, the VM has 2"));
    }
    assert_eq!(bench.describe().spare_slots, [1]);
    assert_eq!(bench.descriptors(), before);
    // None of this used the slot up.
    let (config, disk) = disk();
    assert_eq!(bench.attach(config, &[disk]), Ok(1));
}

#[test]
fn a_hundred_devices_in_a_row_leave_nothing_behind() {
    let [first, _] = SLOTS;
    // The driver gives up on each device as soon as it is active: its workers run until it is
    // detached.
    let mut steps = Vec::new();
    for round in 0..100 {
        let kind = if round % 2 == 0 { BLOCK } else { RNG };
        steps.push(Step::SpinUntil(first + DEVICE_ID, kind));
        steps.extend(activate(first));
        steps.push(Step::Write(first + STATUS, 128));
    }
    steps.push(Step::SpinUntil(first + DEVICE_ID, 0));
    let bench = Bench::new(Vec::new(), 1, &steps);
    bench.wait_accesses(1);
    let (descriptors, threads) = (bench.descriptors(), bench.threads());
    let (config, file) = disk();
    let file = [file];
    for round in 0..100 {
        let attached = match round % 2 {
            0 => bench.attach(config.clone(), &file),
            _ => bench.attach(DeviceConfig::Rng, &[]),
        };
        assert_eq!(attached, Ok(0));
        bench.wait(0, "active");
        assert_ne!(bench.threads(), threads);
        until("driver gives up", || match bench.detach(0) {
            Ok(()) => true,
            Err(line) => {
                assert!(line.contains("driver of the guest"), "{line}");
                false
            }
        });
        // The guest ends when it has seen that the last one is gone.
        if round < 99 {
            assert_eq!(bench.descriptors(), descriptors, "{round}");
            until("threads end", || bench.threads() == threads);
        }
    }
    bench.end();
}
