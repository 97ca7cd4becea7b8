//! The first process of the emulated host: makes it a machine, runs one command, reports.
//!
//! Started by the kernel through `init=`; nothing outside the guest calls it.

mod cgroups;
mod command;
mod mounts;
mod ports;

use std::fs;
use std::io::{BufReader, Write};

use anyhow::{Context, Result};

use crate::launch::Cgroups;
use crate::wire::{self, GUEST_ARGUMENT, Job, Port, Report};

/// Whether this process is the first one of an emulated host, and must call [`run`] at once.
pub fn is_guest() -> bool {
    std::process::id() == 1 && std::env::args().nth(1).as_deref() == Some(GUEST_ARGUMENT)
}

/// Does the work of the first process. The launcher ends the machine when it has the report.
pub fn run() -> ! {
    if let Err(error) = serve() {
        // To the serial console, which the launcher shows.
        eprintln!("emulated host: {error:#}");
        // Without a control port the end of the machine is the only message left. Power-off can
        // only fail for want of privilege, which the first process has.
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    }
    loop {
        std::thread::park();
    }
}

fn serve() -> Result<()> {
    mounts::prepare()?;
    let mut stdin = ports::open(Port::Stdin)?;
    // A write to a port waits until the host's end is connected, a read does not (it would see
    // an end of file that is none): so each port that is read gets one write first.
    stdin
        .write_all(b"\n")
        .context("greeting on the stdin port")?;
    let mut control = ports::open(Port::Control)?;
    wire::send(&mut control, &Report::Ready)?;
    let Some(job) = wire::receive::<Job>(&mut BufReader::new(&control))? else {
        anyhow::bail!("the launcher went away");
    };
    let report = run_job(&job, stdin).unwrap_or_else(|error| Report::Failed(format!("{error:#}")));
    // Files of the writable directories reach the machine outside before the report does.
    rustix::fs::sync();
    wire::send(&mut control, &report)
}

fn run_job(job: &Job, stdin: fs::File) -> Result<Report> {
    for (tag, path) in &job.writable {
        mounts::writable(tag, &path.to_path())?;
    }
    settle(job.cgroups).context("setting up the machine")?;
    command::run(job, stdin)
}

/// What an init system does beside mounting.
fn settle(cgroups: Cgroups) -> Result<()> {
    rustix::system::sethostname(b"emulated-host").context("setting the host name")?;
    command::loopback_up().context("setting up the loopback interface")?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, format!("/dev/{name}"))
            .with_context(|| format!("linking /dev/{name}"))?;
    }
    cgroups::mount(cgroups)
}
