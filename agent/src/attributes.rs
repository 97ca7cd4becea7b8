//! How the kernel schedules a process: policy, I/O priority, CPUs. Called by [`crate::init`] while
//! the process still has the rights that some values need.
#![forbid(unsafe_code)]

use lazaret_protocol::container::{Process, Scheduler};
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::errno::Os;
use crate::sys::attributes as sys;

/// An attribute was not taken.
#[derive(Debug, thiserror::Error)]
pub enum AttributeError {
    /// The scheduling policy.
    #[error("set the scheduling policy {policy}")]
    Scheduler {
        /// `SCHED_*`.
        policy: u32,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The I/O priority.
    #[error("set the I/O priority to class {class}, level {level}")]
    IoPriority {
        /// `IOPRIO_CLASS_*`.
        class: u16,
        /// 0 to 7.
        level: u16,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// The CPUs; `EINVAL` when this guest has none of them.
    #[error("run on CPUs {cpus:?}")]
    Affinity {
        /// Their numbers.
        cpus: Vec<u16>,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
}

/// Bits below the class in an I/O priority (`ioprio_set(2)`).
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// Sets what the process asks for, except for its CPUs.
///
/// # Errors
/// [`AttributeError`].
pub fn apply(process: &Process) -> Result<(), AttributeError> {
    if let Some(scheduler) = &process.scheduler {
        set_scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority {
        sys::ioprio_set(priority).map_err(|errno| AttributeError::IoPriority {
            class: priority >> IOPRIO_CLASS_SHIFT,
            level: priority & ((1 << IOPRIO_CLASS_SHIFT) - 1),
            source: Os(errno),
        })?;
    }
    Ok(())
}

/// Lets this process run on `cpus` only; an empty list changes nothing.
///
/// # Errors
/// [`AttributeError::Affinity`].
pub fn run_on(cpus: &[u16]) -> Result<(), AttributeError> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    let known = cpus.iter().map(|&cpu| usize::from(cpu));
    known
        .filter(|&cpu| cpu < CpuSet::MAX_CPU)
        .for_each(|cpu| set.set(cpu));
    // The kernel leaves out CPUs that do not exist.
    sched_setaffinity(None, &set).map_err(|errno: Errno| AttributeError::Affinity {
        cpus: cpus.to_vec(),
        source: Os(errno),
    })
}

fn set_scheduler(scheduler: &Scheduler) -> Result<(), AttributeError> {
    let attributes = libc::sched_attr {
        size: 0,
        sched_policy: scheduler.policy,
        sched_flags: scheduler.flags,
        sched_nice: scheduler.nice,
        sched_priority: scheduler.priority,
        sched_runtime: scheduler.runtime_ns,
        sched_deadline: scheduler.deadline_ns,
        sched_period: scheduler.period_ns,
    };
    sys::sched_setattr(attributes).map_err(|errno| AttributeError::Scheduler {
        policy: scheduler.policy,
        source: Os(errno),
    })
}
