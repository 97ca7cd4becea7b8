//! Boots a kernel in `lazaret-vmm`, as the runtime does, with a console on standard output and
//! nothing else: for whoever works on the VMM or the guest kernel.
//!
//! ```text
//! cargo run --example boot -- KERNEL INITRAMFS [--memory MIB] [--vcpus N] [--rng] [--vmm PATH] [WORDS…]
//! ```
//!
//! `WORDS` are added to the kernel's command line.

use std::{
    fs::File,
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use lazaret_protocol::{
    VERSION, frame,
    vm::{ConsoleConfig, DeviceConfig, ExitReason, Fd, Launch, Launched, VmConfig},
};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

struct Options {
    kernel: String,
    initramfs: String,
    vmm: std::path::PathBuf,
    memory_mib: u64,
    vcpus: u8,
    rng: bool,
    words: Vec<String>,
}

fn options() -> Result<Options> {
    let mut args = std::env::args().skip(1);
    let beside = std::env::current_exe()?.with_file_name("../lazaret-vmm");
    let mut options = Options {
        kernel: args.next().context("which kernel?")?,
        initramfs: args.next().context("which initramfs?")?,
        vmm: beside,
        memory_mib: 128,
        vcpus: 1,
        rng: false,
        words: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg}: value missing"));
        match arg.as_str() {
            "--memory" => options.memory_mib = value()?.parse()?,
            "--vcpus" => options.vcpus = value()?.parse()?,
            "--vmm" => options.vmm = value()?.into(),
            "--rng" => options.rng = true,
            _ => options.words.push(arg),
        }
    }
    Ok(options)
}

fn main() -> Result<()> {
    let options = options()?;
    let open = |path: &str| File::open(path).with_context(|| format!("cannot open {path}"));
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    let fds: Vec<OwnedFd> = vec![
        kvm.context("cannot open /dev/kvm")?.into(),
        open(&options.kernel)?.into(),
        open(&options.initramfs)?.into(),
        std::io::stdout().as_fd().try_clone_to_owned()?,
    ];
    let mut devices = vec![DeviceConfig::Console(ConsoleConfig {
        ring_bytes: 64 << 10,
        output: Some(Fd(3)),
    })];
    devices.extend(options.rng.then_some(DeviceConfig::Rng));
    let words = options.words.join(" ");
    let launch = Launch {
        version: VERSION,
        vm: VmConfig {
            name: "boot-example".into(),
            kvm: Fd(0),
            kernel: Fd(1),
            initramfs: Some(Fd(2)),
            command_line: format!("console=hvc0 reboot=k,panic_warm panic=-1 {words}"),
            memory_mib: options.memory_mib,
            huge_pages: false,
            vcpus: options.vcpus,
            nested: false,
            control: None,
            devices,
            spare_slots: 0,
        },
    };
    let (ours, theirs) = UnixStream::pair()?;
    let started = Instant::now();
    // The VMM's end must not be closed on exec.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
    let mut vmm = Command::new(&options.vmm)
        .args(["--launch-fd", &theirs.as_raw_fd().to_string()])
        .spawn()
        .with_context(|| format!("cannot run {}", options.vmm.display()))?;
    drop(theirs);
    send(&ours, &frame::encode(&launch)?, &fds)?;
    let launched: Launched = frame::read(&mut &ours)?;
    let running_us = started.elapsed().as_micros();
    if let Err(line) = launched {
        bail!("not launched: {line}");
    }
    let status = vmm.wait()?;
    let reason = status.code().and_then(ExitReason::from_code);
    let over_us = started.elapsed().as_micros();
    eprintln!("vCPUs ran after {running_us} µs, VM over after {over_us} µs: {status}, {reason:?}");
    Ok(())
}

fn send(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> Result<()> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&borrowed));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )?;
    if sent != bytes.len() {
        bail!("launch was sent in part only");
    }
    Ok(())
}
