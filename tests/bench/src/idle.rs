//! Whether anything runs in an idle sandbox: how often each thread was woken and for how long it
//! ran, and what the VMM counted. What the threads of vCPUs do is the guest's doing, and told apart.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail};
use lazaret_protocol::frame;
use lazaret_protocol::vm::{ControlAnswer, ControlReply, ControlRequest};
use serde::Serialize;

/// What threads of the VMM that run a vCPU are called.
const VCPU: &str = "vcpu";

/// What happened while nothing was to do.
#[derive(Debug, Serialize)]
pub(crate) struct Figures {
    /// Seconds it was watched.
    seconds: u64,
    /// How often threads of ours were woken.
    wakeups: u64,
    /// Microseconds they ran, system calls included.
    cpu_us: u64,
    /// How often a vCPU was woken, which the guest's timers do.
    vcpu_wakeups: u64,
    /// Microseconds vCPUs ran, most of it in the guest.
    vcpu_cpu_us: u64,
    /// How often a vCPU left the guest for the VMM.
    vcpu_exits: u64,
    /// Threads that ran: process and thread, times woken, microseconds.
    threads: Vec<(String, u64, u64)>,
    /// What the VMM counted.
    counters: Vec<(String, u64)>,
}

/// Threads by process and thread id, at one moment.
#[derive(Debug)]
pub(crate) struct Threads(BTreeMap<(u64, u64), Thread>);

/// What the VMM has counted at one moment.
#[derive(Debug)]
pub(crate) struct Counters(BTreeMap<String, u64>);

#[derive(Debug)]
struct Thread {
    process: String,
    name: String,
    wakeups: u64,
    cpu_us: u64,
}

impl Threads {
    /// Looks at the threads of `pids`.
    ///
    /// # Errors
    /// If `/proc` cannot be read.
    pub(crate) fn look(pids: &[u64]) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for pid in pids {
            let process = fs::read_to_string(format!("/proc/{pid}/comm"))?;
            for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
                let path = entry?.path();
                let tid = path
                    .file_name()
                    .and_then(|name| name.to_str()?.parse().ok());
                let tid = tid.with_context(|| format!("{} is no thread", path.display()))?;
                threads.insert((*pid, tid), Thread::at(&path, process.trim())?);
            }
        }
        Ok(Self(threads))
    }
}

impl Counters {
    /// Asks the VMM behind `control`, which wakes it.
    ///
    /// # Errors
    /// If it does not answer.
    pub(crate) fn ask(control: &Path) -> Result<Self> {
        let mut socket = UnixStream::connect(control)
            .with_context(|| format!("connecting to {}", control.display()))?;
        frame::write(&mut socket, &ControlRequest::Counters)?;
        match frame::read::<ControlReply>(&mut socket)? {
            Ok(ControlAnswer::Counters(counters)) => Ok(Self(counters.into_iter().collect())),
            other => bail!("the VMM answers {other:?}"),
        }
    }
}

impl Figures {
    /// What happened from the first to the second of both in `seconds`.
    pub(crate) fn of(
        threads: (&Threads, &Threads),
        counters: (&Counters, &Counters),
        seconds: u64,
    ) -> Self {
        let mut figures = Self {
            seconds,
            wakeups: 0,
            cpu_us: 0,
            vcpu_wakeups: 0,
            vcpu_cpu_us: 0,
            vcpu_exits: 0,
            threads: Vec::new(),
            counters: Vec::new(),
        };
        for (id, thread) in &threads.1.0 {
            let before = threads.0.0.get(id);
            let wakeups = thread.wakeups - before.map_or(0, |thread| thread.wakeups);
            let cpu_us = thread.cpu_us - before.map_or(0, |thread| thread.cpu_us);
            if thread.name.starts_with(VCPU) {
                figures.vcpu_wakeups += wakeups;
                figures.vcpu_cpu_us += cpu_us;
            } else {
                figures.wakeups += wakeups;
                figures.cpu_us += cpu_us;
            }
            if wakeups > 0 || cpu_us > 0 {
                let name = format!("{} {}", thread.process, thread.name);
                figures.threads.push((name, wakeups, cpu_us));
            }
        }
        for (name, value) in &counters.1.0 {
            let change = value - counters.0.0.get(name).copied().unwrap_or(0);
            if name.starts_with(VCPU) && name.contains(".exits.") {
                figures.vcpu_exits += change;
            }
            if change > 0 {
                figures.counters.push((name.clone(), change));
            }
        }
        figures
    }
}

impl Thread {
    fn at(path: &Path, process: &str) -> Result<Self> {
        let status = fs::read_to_string(path.join("status"))?;
        let value = |name| status.lines().find_map(|line| line.strip_prefix(name));
        let wakeups = value("voluntary_ctxt_switches:").and_then(|value| value.trim().parse().ok());
        // Nanoseconds on a processor, nanoseconds in wait of one, time slices.
        let schedstat = fs::read_to_string(path.join("schedstat"))?;
        let cpu_ns = schedstat
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok());
        Ok(Self {
            process: process.to_owned(),
            name: value("Name:").unwrap_or_default().trim().to_owned(),
            wakeups: wakeups.context("a thread's status lacks its context switches")?,
            cpu_us: cpu_ns.context("a thread's schedstat lacks its time")? / 1000,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(wakeups: [u64; 2]) -> Threads {
        let thread = |name: &str, wakeups| Thread {
            process: "lazaret-vmm".to_owned(),
            name: name.to_owned(),
            wakeups,
            cpu_us: 10 * wakeups,
        };
        Threads(BTreeMap::from([
            ((1, 1), thread("vcpu0", wakeups[0])),
            ((1, 2), thread("vsock", wakeups[1])),
        ]))
    }

    #[test]
    fn what_the_guest_does_is_not_ours() {
        let counters = |exits| {
            Counters(BTreeMap::from([
                ("vcpu.0.exits.mmio_read".to_owned(), exits),
                ("vsock.0.wakeups".to_owned(), 7),
            ]))
        };
        let figures = Figures::of(
            (&threads([5, 3]), &threads([9, 4])),
            (&counters(1), &counters(3)),
            60,
        );
        assert_eq!((figures.wakeups, figures.cpu_us), (1, 10));
        assert_eq!((figures.vcpu_wakeups, figures.vcpu_cpu_us), (4, 40));
        assert_eq!(figures.vcpu_exits, 2);
        let expected = [("vcpu.0.exits.mmio_read".to_owned(), 2)];
        assert_eq!(figures.counters, expected);
        assert_eq!(figures.threads[1], ("lazaret-vmm vsock".to_owned(), 1, 10));
    }
}
