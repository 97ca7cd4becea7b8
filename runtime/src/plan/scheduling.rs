//! How the process of a plan is scheduled: `scheduler`, `ioPriority` and `execCPUAffinity`.

use lazaret_protocol::container::{CpuAffinity, Scheduler};
use oci_spec::runtime::{
    self as oci, IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy as Policy,
};

use super::PlanError;

/// Nice values (`sched(7)`).
const NICE: std::ops::RangeInclusive<i32> = -20..=19;

/// Priorities of `SCHED_FIFO` and `SCHED_RR` (`sched(7)`).
const PRIORITY: std::ops::RangeInclusive<i32> = 1..=99;

/// Levels of an I/O priority (`ioprio_set(2)`).
const IO_LEVEL: std::ops::RangeInclusive<i64> = 0..=7;

/// Largest CPU number a list may name: what `sched_setaffinity(2)` takes with libc's type.
const CPU_MAX: u16 = 1_023;

/// Translates the scheduling policy of the process at `field`, if it has one.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn scheduler(
    process: &oci::Process,
    field: &str,
) -> Result<Option<Scheduler>, PlanError> {
    let Some(spec) = process.scheduler() else {
        return Ok(None);
    };
    let invalid = |name: &str, problem: String| {
        Err(PlanError::invalid(
            format!("{field}.scheduler.{name}"),
            problem,
        ))
    };
    let policy = *spec.policy();
    let number = match policy {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
        Policy::SchedIso => {
            return Err(PlanError::unsupported(
                format!("{field}.scheduler.policy"),
                "SCHED_ISO, which Linux has never had, is",
            ));
        }
    };
    let nice = spec.nice().unwrap_or(0);
    if !NICE.contains(&nice) {
        return invalid("nice", "must be a number from -20 to 19".to_owned());
    }
    let priority = spec.priority().unwrap_or(0);
    let real_time = matches!(policy, Policy::SchedFifo | Policy::SchedRr);
    if real_time && !PRIORITY.contains(&priority) {
        return invalid(
            "priority",
            format!("must be a number from 1 to 99 for {policy}"),
        );
    }
    if !real_time && priority != 0 {
        return invalid("priority", "is only for SCHED_FIFO and SCHED_RR".to_owned());
    }
    let times = [
        ("runtime", *spec.runtime()),
        ("deadline", *spec.deadline()),
        ("period", *spec.period()),
    ];
    let given = times
        .iter()
        .find(|(_, time)| time.is_some_and(|time| time != 0));
    if let (Some((name, _)), false) = (given, policy == Policy::SchedDeadline) {
        return invalid(name, "is only for SCHED_DEADLINE".to_owned());
    }
    let [runtime_ns, deadline_ns, period_ns] = times.map(|(_, time)| time.unwrap_or(0));
    Ok(Some(Scheduler {
        policy: number as u32,
        flags: flags(spec, field)?,
        nice,
        priority: priority as u32,
        runtime_ns,
        deadline_ns,
        period_ns,
    }))
}

/// The flags' numbers (`linux/sched.h`).
fn flags(spec: &oci::Scheduler, field: &str) -> Result<u64, PlanError> {
    let mut bits = 0;
    for flag in spec.flags().iter().flatten() {
        bits |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin
            | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return Err(PlanError::unsupported(
                    format!("{field}.scheduler.flags"),
                    format!("{flag}, whose value the runtime-spec has no field for, is"),
                ));
            }
        };
    }
    Ok(bits)
}

/// Translates the I/O priority of the process at `field`, if it has one.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn io_priority(process: &oci::Process, field: &str) -> Result<Option<u16>, PlanError> {
    const CLASS_SHIFT: u32 = 13;
    let Some(spec) = process.io_priority() else {
        return Ok(None);
    };
    let class: u16 = match spec.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    if !IO_LEVEL.contains(&spec.priority()) {
        return Err(PlanError::invalid(
            format!("{field}.ioPriority.priority"),
            "must be a number from 0 to 7",
        ));
    }
    Ok(Some(class << CLASS_SHIFT | spec.priority() as u16))
}

/// Translates the CPUs that the process at `field` may run on if it is an `exec`. They are the
/// guest's: the numbers of its virtual CPUs.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn cpu_affinity(process: &oci::Process, field: &str) -> Result<CpuAffinity, PlanError> {
    let Some(spec) = process.exec_cpu_affinity() else {
        return Ok(CpuAffinity::default());
    };
    let list = |name: &str, list: &Option<String>| {
        let list = list.as_deref().unwrap_or_default();
        cpus(list).ok_or_else(|| {
            PlanError::invalid(
                format!("{field}.execCPUAffinity.{name}"),
                format!("{list:?} is not a list of CPUs"),
            )
        })
    };
    Ok(CpuAffinity {
        initial: list("initial", spec.initial())?,
        last: list("final", spec.cpu_affinity_final())?,
    })
}

/// Reads a list such as `0-3,8` (`cpuset(7)`, list format).
fn cpus(list: &str) -> Option<Vec<u16>> {
    let mut cpus = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u16 = first.trim().parse().ok()?;
        let last: u16 = last.trim().parse().ok()?;
        if first > last || last > CPU_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}
