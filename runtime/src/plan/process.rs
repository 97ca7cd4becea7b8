//! The process of a plan: `process` of `config.json`, or the one `exec` is given.

use lazaret_protocol::{
    agent::TerminalSize,
    container::{Capabilities, Process, RLIMIT_NAMES, Rlimit, User},
};
use oci_spec::runtime::{self as oci, Capability, PosixRlimitType};

use super::{Circumstances, PlanError, scheduling};
use crate::caller::Caller;

/// What the kernel takes as `oom_score_adj` (`proc(5)`).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i32> = -1000..=1000;

/// Translates the process at `field` of the spec.
///
/// # Errors
/// [`PlanError`], which names the field below `field`.
pub(crate) fn process(
    spec: &oci::Process,
    field: &str,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<Process, PlanError> {
    warn_of_unsupported(spec, field, warnings);
    // First, as in runc, whose words these and those of the arguments are.
    let cwd = cwd(spec, field)?;
    let args = spec.args().clone().unwrap_or_default();
    if args.is_empty() {
        return Err(PlanError::invalid(
            format!("{field}.args"),
            "args must not be empty",
        ));
    }
    let env = spec.env().clone().unwrap_or_default();
    no_nul(&args, field, "args")?;
    no_nul(&env, field, "env")?;
    if let Some(score) = spec.oom_score_adj()
        && !OOM_SCORE_ADJ.contains(&score)
    {
        return Err(PlanError::invalid(
            format!("{field}.oomScoreAdj"),
            "must be a number from -1000 to 1000",
        ));
    }
    let terminal = spec.terminal().unwrap_or(false);
    Ok(Process {
        args,
        env,
        cwd,
        terminal: terminal.then(|| terminal_size(spec, circumstances.terminal_size)),
        stdio: circumstances.stdio,
        preserved: circumstances.preserved.to_vec(),
        user: user(spec.user(), field)?,
        capabilities: capability_sets(spec),
        rlimits: rlimits(spec, field, circumstances.caller)?,
        no_new_privileges: spec.no_new_privileges().unwrap_or(false),
        oom_score_adj: spec.oom_score_adj(),
        scheduler: scheduling::scheduler(spec, field)?,
        io_priority: scheduling::io_priority(spec, field)?,
        cpu_affinity: scheduling::cpu_affinity(spec, field)?,
    })
}

/// The process to `exec` with what it leaves open filled in from the container's own, as runc does:
/// runtime-spec, config, "Process", says only what a container's first process gets.
pub(crate) fn inherit(mut process: oci::Process, container: &oci::Process) -> oci::Process {
    if process.capabilities().is_none() {
        process.set_capabilities(container.capabilities().clone());
    }
    if process.rlimits().as_ref().is_none_or(Vec::is_empty) {
        process.set_rlimits(container.rlimits().clone());
    }
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(container.oom_score_adj());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(container.scheduler().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*container.io_priority());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(container.exec_cpu_affinity().clone());
    }
    if process.user().umask().is_none() {
        let umask = container.user().umask();
        process.user_mut().set_umask(umask);
    }
    process
}

fn warn_of_unsupported(spec: &oci::Process, field: &str, warnings: &mut Vec<String>) {
    for (name, value) in [
        ("user.username", spec.user().username()),
        ("commandLine", spec.command_line()),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            warnings.push(format!(
                "{field}.{name}: ignored, this is a Linux container"
            ));
        }
    }
    for (name, value, module) in [
        ("apparmorProfile", spec.apparmor_profile(), "AppArmor"),
        ("selinuxLabel", spec.selinux_label(), "SELinux"),
    ] {
        if value.as_ref().is_some_and(|value| !value.is_empty()) {
            warnings.push(format!(
                "{field}.{name}: not applied, the guest kernel has no {module}"
            ));
        }
    }
}

/// The kernel's strings end at the first NUL: one inside would cut off what follows.
fn no_nul(strings: &[String], field: &str, name: &str) -> Result<(), PlanError> {
    match strings.iter().position(|string| string.contains('\0')) {
        None => Ok(()),
        Some(index) => Err(PlanError::invalid(
            format!("{field}.{name}[{index}]"),
            "must not contain a NUL character",
        )),
    }
}

fn cwd(spec: &oci::Process, field: &str) -> Result<String, PlanError> {
    let field = || format!("{field}.cwd");
    let cwd = spec
        .cwd()
        .to_str()
        .ok_or_else(|| PlanError::invalid(field(), "must be UTF-8"))?;
    if cwd.is_empty() {
        Err(PlanError::invalid(
            field(),
            "Cwd property must not be empty",
        ))
    } else if cwd.starts_with('/') {
        Ok(cwd.to_owned())
    } else {
        Err(PlanError::invalid(field(), "Cwd must be an absolute path"))
    }
}

/// `consoleSize` if it is given, otherwise the size of the caller's terminal.
fn terminal_size(spec: &oci::Process, caller: TerminalSize) -> TerminalSize {
    let clamp = |size: u64| u16::try_from(size).unwrap_or(u16::MAX);
    match spec.console_size() {
        Some(size) if size.height() != 0 || size.width() != 0 => TerminalSize {
            rows: clamp(size.height()),
            columns: clamp(size.width()),
        },
        _ => caller,
    }
}

fn user(user: &oci::User, field: &str) -> Result<User, PlanError> {
    if user.umask().is_some_and(|umask| umask > 0o777) {
        return Err(PlanError::invalid(
            format!("{field}.user.umask"),
            "must be a number from 0 to 511 (0777)",
        ));
    }
    Ok(User {
        uid: user.uid(),
        gid: user.gid(),
        umask: user.umask(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
    })
}

/// The capability sets; without any, as in runc, the process has none.
fn capability_sets(spec: &oci::Process) -> Capabilities {
    let Some(sets) = spec.capabilities() else {
        return Capabilities::default();
    };
    let bits = |set: &Option<oci::Capabilities>| {
        set.iter()
            .flatten()
            .fold(0, |bits, &capability| bits | 1 << number(capability))
    };
    Capabilities {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        inheritable: bits(sets.inheritable()),
        permitted: bits(sets.permitted()),
        ambient: bits(sets.ambient()),
    }
}

/// The bit of the capability called `name` (`CAP_KILL` or `KILL`, in any case), if there is one.
pub(crate) fn capability(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    let capability = serde_json::from_value::<Capability>(full.into()).ok()?;
    Some(1 << number(capability))
}

/// All capabilities in the order of their numbers (`linux/capability.h`).
const CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// Names of all capabilities, in the order of their numbers.
pub(crate) fn capabilities() -> Vec<String> {
    let names = CAPABILITIES.iter().map(|capability| {
        let name = serde_json::to_value(capability).ok()?;
        Some(name.as_str()?.to_owned())
    });
    names.flatten().collect()
}

/// Number of a capability (`linux/capability.h`).
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

/// The limits that are listed, and the caller's for all other resources.
fn rlimits(spec: &oci::Process, field: &str, caller: &Caller) -> Result<Vec<Rlimit>, PlanError> {
    let limits = spec.rlimits().as_deref().unwrap_or_default();
    let mut result: Vec<Rlimit> = Vec::with_capacity(limits.len());
    for (index, limit) in limits.iter().enumerate() {
        let field = || format!("{field}.rlimits[{index}]");
        let resource = resource(limit.typ());
        if result.iter().any(|earlier| earlier.resource == resource) {
            return Err(PlanError::invalid(
                field(),
                format!("{} is listed twice", limit.typ()),
            ));
        }
        if limit.soft() > limit.hard() {
            return Err(PlanError::invalid(field(), "soft exceeds hard"));
        }
        result.push(Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    let listed = result.len();
    for inherited in &caller.limits {
        let named = |limit: &Rlimit| limit.resource == inherited.resource;
        if !result[..listed].iter().any(named) {
            result.push(*inherited);
        }
    }
    Ok(result)
}

/// The number of a resource.
fn resource(kind: PosixRlimitType) -> u32 {
    let name = kind.to_string();
    let number = (0..).zip(RLIMIT_NAMES).find(|(_, known)| *known == name);
    number.expect("the specification names no other resource").0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_listed_by_their_numbers() {
        let numbers = CAPABILITIES.iter().map(|&capability| number(capability));
        assert!(numbers.eq(0..41));
        assert_eq!(capabilities()[21], "CAP_SYS_ADMIN");
        assert_eq!(capability("checkpoint_restore"), Some(1 << 40));
    }

    #[test]
    fn resources_have_the_kernels_numbers() {
        for (kind, number) in [
            (PosixRlimitType::RlimitCpu, libc::RLIMIT_CPU),
            (PosixRlimitType::RlimitFsize, libc::RLIMIT_FSIZE),
            (PosixRlimitType::RlimitData, libc::RLIMIT_DATA),
            (PosixRlimitType::RlimitStack, libc::RLIMIT_STACK),
            (PosixRlimitType::RlimitCore, libc::RLIMIT_CORE),
            (PosixRlimitType::RlimitRss, libc::RLIMIT_RSS),
            (PosixRlimitType::RlimitNproc, libc::RLIMIT_NPROC),
            (PosixRlimitType::RlimitNofile, libc::RLIMIT_NOFILE),
            (PosixRlimitType::RlimitMemlock, libc::RLIMIT_MEMLOCK),
            (PosixRlimitType::RlimitAs, libc::RLIMIT_AS),
            (PosixRlimitType::RlimitLocks, libc::RLIMIT_LOCKS),
            (PosixRlimitType::RlimitSigpending, libc::RLIMIT_SIGPENDING),
            (PosixRlimitType::RlimitMsgqueue, libc::RLIMIT_MSGQUEUE),
            (PosixRlimitType::RlimitNice, libc::RLIMIT_NICE),
            (PosixRlimitType::RlimitRtprio, libc::RLIMIT_RTPRIO),
            (PosixRlimitType::RlimitRttime, libc::RLIMIT_RTTIME),
        ] {
            assert_eq!(resource(kind), number, "{kind}");
        }
    }
}
