//! `linux.seccomp`: from the document's names to a checked [`Profile`].

use oci_spec::runtime::{
    Arch, Linux, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};

use super::PlanError;
use crate::seccomp::{Action, Architecture, Condition, Operator, Profile, Rule};

/// Most arguments that a system call has.
const ARGUMENTS_MAX: usize = 6;

/// Largest error number a filter can return: one below the kernel's `MAX_ERRNO`, as libseccomp.
const ERRNO_MAX: u32 = 4094;

/// What an action returns if the document does not say: runtime-spec, config-linux, "Seccomp".
const ERRNO_DEFAULT: u16 = libc::EPERM as u16;

/// Translates the profile, if there is one.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn profile(linux: Option<&Linux>) -> Result<Option<Profile>, PlanError> {
    let Some(seccomp) = linux.and_then(|linux| linux.seccomp().as_ref()) else {
        return Ok(None);
    };
    check_notify(seccomp)?;
    let mut rules = Vec::new();
    for (index, syscall) in seccomp.syscalls().iter().flatten().enumerate() {
        add_rules(syscall, index, &mut rules)?;
    }
    Ok(Some(Profile {
        default_action: action(
            seccomp.default_action(),
            seccomp.default_errno_ret(),
            (
                "linux.seccomp.defaultAction",
                "linux.seccomp.defaultErrnoRet",
            ),
        )?,
        architectures: architectures(seccomp),
        flags: flags(seccomp)?,
        rules,
    }))
}

/// What runc refuses of `SCMP_ACT_NOTIFY`, in its words, before it looks for a listener. Without
/// that action a listener has nothing to do, and its path is ignored.
fn check_notify(seccomp: &LinuxSeccomp) -> Result<(), PlanError> {
    for (index, syscall) in seccomp.syscalls().iter().flatten().enumerate() {
        if syscall.action() == LinuxSeccompAction::ScmpActNotify
            && syscall.names().iter().any(|name| name == "write")
        {
            return Err(PlanError::invalid(
                format!("linux.seccomp.syscalls[{index}].action"),
                "SCMP_ACT_NOTIFY cannot be used for the write syscall",
            ));
        }
    }
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(PlanError::invalid(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY cannot be used as default action",
        ));
    }
    Ok(())
}

fn add_rules(syscall: &LinuxSyscall, index: usize, rules: &mut Vec<Rule>) -> Result<(), PlanError> {
    let field = format!("linux.seccomp.syscalls[{index}]");
    let action = action(
        syscall.action(),
        syscall.errno_ret(),
        (&format!("{field}.action"), &format!("{field}.errnoRet")),
    )?;
    let mut conditions = Vec::new();
    for (index, arg) in syscall.args().iter().flatten().enumerate() {
        conditions.push(condition(arg, || format!("{field}.args[{index}].index"))?);
    }
    for (index, name) in syscall.names().iter().enumerate() {
        if name.is_empty() {
            return Err(PlanError::invalid(
                format!("{field}.names[{index}]"),
                "must not be empty",
            ));
        }
        rules.push(Rule {
            name: name.clone(),
            action,
            conditions: conditions.clone(),
        });
    }
    Ok(())
}

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
    (action_field, errno_field): (&str, &str),
) -> Result<Action, PlanError> {
    let number = |max: u32| match errno {
        None => Ok(ERRNO_DEFAULT),
        Some(number) => u16::try_from(number)
            .ok()
            .filter(|_| number <= max)
            .ok_or_else(|| {
                PlanError::invalid(errno_field, format!("must be a number from 0 to {max}"))
            }),
    };
    let result = match action {
        LinuxSeccompAction::ScmpActErrno => return Ok(Action::Errno(number(ERRNO_MAX)?)),
        LinuxSeccompAction::ScmpActTrace => return Ok(Action::Trace(number(u16::MAX.into())?)),
        // A listener would have to be handed a descriptor of the guest's kernel.
        LinuxSeccompAction::ScmpActNotify => {
            return Err(PlanError::unsupported(
                action_field,
                "SCMP_ACT_NOTIFY, which hands system calls to a listener, is",
            ));
        }
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Action::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
    };
    match errno {
        None => Ok(result),
        Some(_) => Err(PlanError::invalid(
            errno_field,
            format!("is nothing that {action} can return"),
        )),
    }
}

fn condition(
    arg: &LinuxSeccompArg,
    field: impl FnOnce() -> String,
) -> Result<Condition, PlanError> {
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (Operator::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (Operator::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (Operator::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (Operator::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (Operator::GreaterOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (Operator::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => (
            Operator::MaskedEqual(arg.value()),
            arg.value_two().unwrap_or(0),
        ),
    };
    let argument = u32::try_from(arg.index())
        .ok()
        .filter(|_| arg.index() < ARGUMENTS_MAX)
        .ok_or_else(|| {
            let last = ARGUMENTS_MAX - 1;
            PlanError::invalid(field(), format!("must be a number from 0 to {last}"))
        })?;
    Ok(Condition {
        argument,
        operator,
        value,
    })
}

fn architectures(seccomp: &LinuxSeccomp) -> Vec<Architecture> {
    let mut result = Vec::new();
    for arch in seccomp.architectures().iter().flatten() {
        let architecture = match arch {
            Arch::ScmpArchNative | Arch::ScmpArchX86_64 => Architecture::X86_64,
            Arch::ScmpArchX86 => Architecture::X86,
            Arch::ScmpArchX32 => Architecture::X32,
            _ => Architecture::Foreign,
        };
        if !result.contains(&architecture) {
            result.push(architecture);
        }
    }
    result
}

/// The flags of `seccomp(2)`. As in runc, none given at all stands for `SPEC_ALLOW`, and `TSYNC` is
/// idle: the process that loads the filter has one thread.
fn flags(seccomp: &LinuxSeccomp) -> Result<u32, PlanError> {
    let Some(flags) = seccomp.flags() else {
        return Ok(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32);
    };
    let mut bits = 0;
    for flag in flags {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(PlanError::unsupported(
                    "linux.seccomp.flags",
                    format!("{flag}, which concerns a listener, is"),
                ));
            }
        };
    }
    Ok(bits)
}

#[cfg(test)]
mod tests;
