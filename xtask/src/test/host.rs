//! The emulated host keeps its promises: streams without loss, exit codes, signals, files, time.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use emulated_host::{Cgroups, Command, Host, Streams};

use crate::{emu, workspace};

/// Bytes sent through standard input and back.
const ECHO_BYTES: usize = 3 << 20;

/// Seconds until the test of the timeout gives up: enough for the host to come up.
const TIMEOUT: Duration = Duration::from_secs(20);

/// One promise.
type Check = fn(&Host) -> Result<()>;

/// What a command did.
struct Seen {
    status: u8,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Runs all checks.
///
/// # Errors
/// If a promise is broken.
pub(super) fn run() -> Result<()> {
    let host = emu::default_host()?;
    let checks: [(&str, Check); 7] = [
        ("streams", streams),
        ("exit status", exit_status),
        ("machine", machine),
        ("older cgroups", older_cgroups),
        ("files", files),
        ("end", end),
        ("errors", errors),
    ];
    for (name, check) in checks {
        check(&host).with_context(|| format!("the emulated host's {name}"))?;
        println!("ok {name}");
    }
    Ok(())
}

fn streams(host: &Host) -> Result<()> {
    // Every byte value, at all offsets of a block.
    let input: Vec<u8> = (0..ECHO_BYTES)
        .map(|i| ((i % 251) ^ (i >> 9)) as u8)
        .collect();
    let seen = shell(host, "cat; echo error >&2", &input)?;
    ensure!(
        seen.stdout == input,
        "{} of {ECHO_BYTES} bytes came back",
        seen.stdout.len()
    );
    ensure!(
        seen.stderr == b"error\n",
        "standard error is {:?}",
        seen.stderr
    );
    ensure!(seen.status == 0, "status {}", seen.status);

    // One file for both outputs keeps their order.
    let script = "for i in 1 2 3; do echo $i; echo -$i >&2; done";
    let mut both = temporary()?;
    let streams = Streams {
        stdin: File::open("/dev/null")?,
        stdout: both.try_clone()?,
        stderr: both.try_clone()?,
    };
    host.run(&command(script)?, streams)?;
    let mut text = String::new();
    both.rewind()?;
    both.read_to_string(&mut text)?;
    ensure!(
        text == "1\n-1\n2\n-2\n3\n-3\n",
        "the outputs are in the order {text:?}"
    );
    Ok(())
}

fn exit_status(host: &Host) -> Result<()> {
    for (script, status) in [
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -SEGV $$", 139),
    ] {
        let seen = shell(host, script, b"")?;
        ensure!(
            seen.status == status,
            "{script}: {} instead of {status}",
            seen.status
        );
    }
    Ok(())
}

fn machine(host: &Host) -> Result<()> {
    let script = "pwd; test -c /dev/kvm && test -w /run && test -w /tmp && echo writable; \
                  cat /sys/fs/cgroup/cgroup.controllers; hostname";
    let seen = shell(host, script, b"")?;
    let text = String::from_utf8_lossy(&seen.stdout);
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == 4, "{text}");
    ensure!(
        std::path::Path::new(lines[0]) == workspace::root(),
        "in {}",
        lines[0]
    );
    ensure!(
        lines[1] == "writable" && lines[3] == "emulated-host",
        "{text}"
    );
    for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
        ensure!(
            lines[2].split(' ').any(|name| name == controller),
            "no {controller}: {text}"
        );
    }
    Ok(())
}

fn older_cgroups(host: &Host) -> Result<()> {
    for (cgroups, unified) in [(Cgroups::Legacy, "1"), (Cgroups::Hybrid, "0")] {
        let host = Host {
            cgroups,
            ..host.clone()
        };
        let script = "cd /sys/fs/cgroup && mkdir memory/a cpu/a && cat cpu,cpuacct/a/cpu.shares \
                      memory/a/cgroup.procs; test -e unified/cgroup.controllers; echo $?";
        let seen = shell(&host, script, b"")?;
        let text = String::from_utf8_lossy(&seen.stdout);
        ensure!(text == format!("1024\n{unified}\n"), "{cgroups:?}: {text}");
    }
    Ok(())
}

fn files(host: &Host) -> Result<()> {
    let folder = workspace::products().join("emulated-host-test");
    fs::create_dir_all(&folder)?;
    let host = Host {
        writable: vec![folder.clone()],
        ..host.clone()
    };
    let script = format!(
        "echo kept >{0}/kept && echo lost >{0}/../lost && cat {0}/../lost",
        folder.display()
    );
    let seen = shell(&host, &script, b"")?;
    ensure!(
        seen.stdout == b"lost\n",
        "{}",
        String::from_utf8_lossy(&seen.stderr)
    );
    ensure!(
        fs::read(folder.join("kept"))? == b"kept\n",
        "a writable directory is not"
    );
    ensure!(!folder.with_file_name("lost").exists(), "the overlay leaks");
    fs::remove_dir_all(&folder)?;
    Ok(())
}

fn end(host: &Host) -> Result<()> {
    // What the command leaves behind is killed and holds nothing up.
    let seen = shell(host, "setsid sleep 1000 & echo done", b"")?;
    ensure!(
        seen.stdout == b"done\n" && seen.status == 0,
        "status {}",
        seen.status
    );

    let host = Host {
        timeout: Some(TIMEOUT),
        ..host.clone()
    };
    let start = Instant::now();
    let error = shell(&host, "sleep 1000", b"")
        .err()
        .context("the timeout had no effect")?;
    ensure!(format!("{error:#}").contains("time is over"), "{error:#}");
    ensure!(start.elapsed() < 2 * TIMEOUT, "the timeout came late");
    Ok(())
}

fn errors(host: &Host) -> Result<()> {
    let command = Command {
        arguments: vec!["/nonexistent".into()],
        ..command("")?
    };
    let streams = Streams {
        stdin: File::open("/dev/null")?,
        stdout: temporary()?,
        stderr: temporary()?,
    };
    let error = host
        .run(&command, streams)
        .err()
        .context("a missing program ran")?;
    ensure!(format!("{error:#}").contains("/nonexistent"), "{error:#}");

    let host = Host {
        kernel: "/nonexistent-kernel".into(),
        ..host.clone()
    };
    let error = shell(&host, "true", b"")
        .err()
        .context("a missing kernel ran")?;
    ensure!(
        format!("{error:#}").contains("nonexistent-kernel"),
        "{error:#}"
    );
    Ok(())
}

fn command(script: &str) -> Result<Command> {
    let arguments = ["sh", "-c", script].map(Into::into).into();
    Ok(Command {
        directory: workspace::root().into(),
        ..Command::new(arguments)?
    })
}

/// Runs a shell script with this standard input, both outputs kept apart.
fn shell(host: &Host, script: &str, input: &[u8]) -> Result<Seen> {
    let (reader, mut writer) = std::io::pipe()?;
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || writer.write_all(&input));
    let (mut stdout, mut stderr) = (temporary()?, temporary()?);
    let streams = Streams {
        stdin: File::from(std::os::fd::OwnedFd::from(reader)),
        stdout: stdout.try_clone()?,
        stderr: stderr.try_clone()?,
    };
    let outcome = host.run(&command(script)?, streams)?;
    // It fails if the command did not read all, which no check here minds.
    let _ = feeder.join();
    let mut seen = Seen {
        status: outcome.status,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    stdout.rewind()?;
    stdout.read_to_end(&mut seen.stdout)?;
    stderr.rewind()?;
    stderr.read_to_end(&mut seen.stderr)?;
    Ok(seen)
}

/// A file without a name.
fn temporary() -> Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(memfd_create("output", MemfdFlags::CLOEXEC)?.into())
}
