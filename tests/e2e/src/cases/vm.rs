//! The virtual machine behind a container: its size, and what happens when it cannot start or does
//! not answer. For lazaret only.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use serde_json::json;
use toml::{Table, Value};

use super::errors::check;
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    host,
    invocation::Invocation,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "vm",
    cases: CASES,
    probes: PROBES,
};

pub(super) const LAZARET: &[Kind] = &[Kind::Lazaret];
pub(super) const REASON: &str = "about virtual machines";

const CASES: &[Case] = &[
    case!(files_are_missing).only(LAZARET, REASON),
    case!(kernel_is_no_kernel).only(LAZARET, REASON),
    case!(initramfs_is_no_initramfs).only(LAZARET, REASON),
    case!(kvm_is_missing).only(LAZARET, REASON),
    case!(memory_is_too_small).only(LAZARET, REASON),
    case!(configuration_is_wrong).only(LAZARET, REASON),
    case!(guest_never_answers).only(LAZARET, REASON),
    case!(size_follows_the_configuration).only(LAZARET, REASON),
    case!(cpus_follow_new_limits).only(LAZARET, REASON),
    case!(the_kernel_is_another).only(LAZARET, REASON),
    case!(idle_machine_does_nothing)
        .only(LAZARET, REASON)
        .alone(),
];

const PROBES: &[(&str, Probe)] = &[("machine", machine)];

/// Another one for each kernel that was started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Says how much memory and how many processors there are, and the kernel's release.
fn machine(_: &[String]) -> Result<u8> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let total = memory
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().nth(1));
    let processors = fs::read_to_string("/proc/cpuinfo")?
        .matches("processor\t")
        .count();
    let names = nix::sys::utsname::uname()?;
    let said = json!({
        "memory_kib": total.context("no total")?.parse::<u64>()?,
        "processors": processors,
        "release": names.release().to_string_lossy(),
        "boot": fs::read_to_string(BOOT_ID)?,
    });
    println!("{said}");
    Ok(0)
}

/// The configuration of this test run with some keys changed, in a file of its own.
fn configuration(test: &Test, changes: &[(&str, Value)]) -> Result<PathBuf> {
    let mut table = match std::env::var_os("LAZARET_CONFIG") {
        None => Table::new(),
        Some(path) => {
            let path = PathBuf::from(path);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let mut table: Table = text.parse()?;
            let folder = path.parent().unwrap_or(Path::new("/"));
            for key in ["vmm", "kernel", "initramfs"] {
                // Relative paths are relative to the file's folder.
                if let Some(Value::String(value)) = table.get_mut(key) {
                    *value = folder.join(&*value).to_string_lossy().into_owned();
                }
            }
            table
        }
    };
    for (key, value) in changes {
        table.insert((*key).to_owned(), value.clone());
    }
    let path = test.directory.join("config.toml");
    fs::write(&path, table.to_string())?;
    Ok(path)
}

/// `create` under a changed configuration.
fn create_with(test: &Test, bundle: &Bundle, changes: &[(&str, Value)]) -> Result<Invocation> {
    let path = configuration(test, changes)?;
    Ok(test
        .runtime
        .create(bundle)?
        .environment("LAZARET_CONFIG", &path.to_string_lossy()))
}

/// Demands that `create` fails under a changed configuration with these words.
fn refuses_with(test: &Test, changes: &[(&str, Value)], words: &[&str]) -> Result<()> {
    let bundle = test.idle_bundle()?;
    check(test, create_with(test, &bundle, changes)?.output()?, words)?;
    test.runtime.has_no(&bundle.id)
}

fn files_are_missing(test: &Test) -> Result<()> {
    for key in ["kernel", "initramfs", "vmm"] {
        let change = (key, Value::from("/no/such/file"));
        refuses_with(test, &[change], &["/no/such/file"]).context(key)?;
    }
    Ok(())
}

fn kernel_is_no_kernel(test: &Test) -> Result<()> {
    let path = test.directory.join("kernel");
    let name = path.to_string_lossy().into_owned();
    for (what, content) in [
        ("a text", b"not a kernel".to_vec()),
        ("empty", Vec::new()),
        ("an ELF header", b"\x7fELF\x02\x01\x01".to_vec()),
        ("a program", fs::read(&test.probe)?),
    ] {
        fs::write(&path, content)?;
        refuses_with(test, &[("kernel", Value::from(&*name))], &["kernel"]).context(what)?;
    }
    let change = ("kernel", Value::from("/"));
    refuses_with(test, &[change], &["kernel"]).context("a directory")
}

fn initramfs_is_no_initramfs(test: &Test) -> Result<()> {
    let path = test.directory.join("initramfs");
    let change = ("initramfs", Value::from(&*path.to_string_lossy()));
    for (what, content) in [
        ("zeros", vec![0; 100_000]),
        ("a text", b"not an archive".to_vec()),
    ] {
        fs::write(&path, content)?;
        refuses_with(test, std::slice::from_ref(&change), &["guest"]).context(what)?;
    }
    Ok(())
}

/// A `/dev` without the device, or with something else in its place, for this case only.
fn kvm_is_missing(test: &Test) -> Result<()> {
    mount_change("/dev", MountPropagationFlags::PRIVATE)?;
    mount_bind("/dev/null", "/dev/kvm")?;
    let outcome = refuses_with(test, &[], &["/dev/kvm"]).context("it is another device");
    rustix::mount::unmount("/dev/kvm", rustix::mount::UnmountFlags::DETACH)?;
    outcome?;
    mount("tmpfs", "/dev", "tmpfs", MountFlags::empty(), None)?;
    let null = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from(0o666);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        "/dev/null",
        rustix::fs::FileType::CharacterDevice,
        mode,
        null,
    )?;
    let outcome = refuses_with(test, &[], &["/dev/kvm"]).context("it is missing");
    rustix::mount::unmount("/dev", rustix::mount::UnmountFlags::DETACH)?;
    outcome
}

fn memory_is_too_small(test: &Test) -> Result<()> {
    refuses_with(test, &[("memory_mib", Value::from(1))], &["memory_mib"])?;
    refuses_with(test, &[("memory_mib", Value::from(16))], &["memory"]).context("16 MiB")
}

fn configuration_is_wrong(test: &Test) -> Result<()> {
    for (key, value) in [
        ("memroy_mib", Value::from(128)),
        ("memory_mib", Value::from("much")),
        ("memory_mib", Value::from(-1)),
        ("vcpus", Value::from(0)),
        ("vcpus", Value::from(65)),
        ("boot_timeout_ms", Value::from(0)),
    ] {
        refuses_with(test, &[(key, value.clone())], &[key])
            .with_context(|| format!("{key} = {value}"))?;
    }
    let bundle = test.idle_bundle()?;
    let path = test.directory.join("broken.toml");
    fs::write(&path, "memory_mib = \n")?;
    let call = test
        .runtime
        .create(&bundle)?
        .global(&["--config", &path.to_string_lossy()]);
    check(test, call.output()?, &["broken.toml"])?;
    let call = test
        .runtime
        .create(&bundle)?
        .global(&["--config", "/no/such/config.toml"]);
    check(test, call.output()?, &["/no/such/config.toml"])
}

/// The suite's own binary as the guest's `/init`: it waits for ever (see `main`).
fn guest_never_answers(test: &Test) -> Result<()> {
    let path = test.directory.join("silent.cpio");
    let mut archive = fs::File::create(&path)?;
    entry(&mut archive, "dev", 0o040_755, (0, 0), &[])?;
    entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[])?;
    // A Rust program opens it before anything else when its standard streams are closed.
    entry(&mut archive, "dev/null", 0o020_666, (1, 3), &[])?;
    entry(
        &mut archive,
        "init",
        0o100_755,
        (0, 0),
        &fs::read(&test.probe)?,
    )?;
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[])?;
    drop(archive);
    let changes = [
        ("initramfs", Value::from(&*path.to_string_lossy())),
        ("boot_timeout_ms", Value::from(4000)),
    ];
    let started = Instant::now();
    refuses_with(test, &changes, &["boot_timeout_ms"])?;
    let waited = started.elapsed();
    ensure!(
        waited >= Duration::from_secs(4),
        "it gave up after {waited:?}"
    );
    ensure!(
        waited < Duration::from_secs(30),
        "it gave up only after {waited:?}"
    );
    Ok(())
}

/// One entry of a newc archive: header, name and content, each padded to four bytes.
fn entry(
    out: &mut impl std::io::Write,
    name: &str,
    mode: u32,
    device: (u32, u32),
    content: &[u8],
) -> Result<()> {
    let fields = [
        1,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(content.len())?,
        0,
        0,
        device.0,
        device.1,
        u32::try_from(name.len())? + 1,
        0,
    ];
    let mut bytes = b"070701".to_vec();
    for field in fields {
        write!(bytes, "{field:08x}")?;
    }
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    out.write_all(&bytes)?;
    Ok(())
}

fn size_follows_the_configuration(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("machine", &[])?;
    bundle.set(
        "/annotations",
        json!({ "io.lazaret.vm.memory_mib": "200", "io.lazaret.vm.vcpus": "2" }),
    );
    let said = test.runtime.run(&bundle)?.succeed()?.json()?;
    ensure!(said["processors"] == 2, "processors: {said}");
    let memory = said["memory_kib"].as_u64().unwrap_or(0) / 1024;
    ensure!((150..=200).contains(&memory), "memory: {memory} MiB");
    Ok(())
}

fn cpus_follow_new_limits(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/annotations", json!({ "io.lazaret.vm.vcpus": "2" }));
    test.runtime.launch(&bundle)?;
    for (quota, expected) in [(None, 2), (Some("100000"), 1), (Some("-1"), 2)] {
        if let Some(quota) = quota {
            let update = test.runtime.verb("update", &[&bundle.id]);
            update.option(&["--cpu-quota", quota]).succeed()?;
        }
        let machine = test.runtime.exec_probe(&bundle.id, "machine", &[]);
        let said = machine.succeed()?.json()?;
        ensure!(said["processors"] == expected, "{quota:?}: {said}");
    }
    test.runtime.destroy(&bundle.id)
}

fn the_kernel_is_another(test: &Test) -> Result<()> {
    let said = test
        .runtime
        .run(&test.bundle("machine", &[])?)?
        .succeed()?
        .json()?;
    ensure!(
        said["release"]
            .as_str()
            .is_some_and(|release| !release.is_empty()),
        "{said}"
    );
    ensure!(
        said["boot"] != fs::read_to_string(BOOT_ID)?,
        "the kernel is the host's: {said}"
    );
    Ok(())
}

/// Nothing of ours runs in an idle sandbox: its processes get no processor time, other than what
/// the guest's own kernel uses on its virtual CPUs.
fn idle_machine_does_nothing(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let ticks = || -> Result<u64> {
        let mut total = 0;
        for process in host::descendants(own)? {
            total += host::own_cpu_ticks(process.pid)?;
        }
        Ok(total)
    };
    // The guest's kernel has things to finish after its start.
    std::thread::sleep(Duration::from_secs(3));
    let before = ticks()?;
    std::thread::sleep(Duration::from_secs(if test.full { 60 } else { 10 }));
    let used = ticks()? - before;
    test.runtime.destroy(&bundle.id)?;
    ensure!(used == 0, "{used} ticks of processor time while idle");
    Ok(())
}
