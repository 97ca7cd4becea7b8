//! Filters of system calls: from a [`Profile`] to the program that the guest's kernel runs before
//! each call. Called by the monitor while the guest boots, and only for a container with a profile.
//!
//! libseccomp compiles, as it does for runc, so that a profile means the same under both: which
//! numbers a name has on each architecture, what becomes of the calls that 32-bit x86 multiplexes,
//! and which rule wins. It does not talk to this machine's kernel: the guest's runs the program.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
};

use lazaret_protocol::container::{SECCOMP_INSTRUCTIONS_MAX, Seccomp, SockFilter};
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    error::SeccompError as LibraryError, set_api,
};
use rustix::fs::MemfdFlags;
use serde::Serialize;

mod newer_calls;

/// A profile, checked: what `linux.seccomp` asks for, in the kernel's terms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Profile {
    /// What becomes of a call that no rule matches.
    pub(crate) default_action: Action,
    /// Architectures whose calls the rules are for, beside the machine's own.
    pub(crate) architectures: Vec<Architecture>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub(crate) flags: u32,
    /// The rules, in the document's order.
    pub(crate) rules: Vec<Rule>,
}

/// What to do about one system call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Rule {
    /// Its name; one that libseccomp does not know is passed over, as runc does.
    pub(crate) name: String,
    /// What becomes of it.
    pub(crate) action: Action,
    /// What its arguments have to be: all of these, or, if an argument is listed twice, any.
    pub(crate) conditions: Vec<Condition>,
}

/// What becomes of a system call (`seccomp(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Action {
    /// Its process is killed.
    KillProcess,
    /// Its thread is killed.
    KillThread,
    /// Its thread gets `SIGSYS`.
    Trap,
    /// It fails with this error number, 0 to 4094.
    Errno(u16),
    /// A tracer is told this number.
    Trace(u16),
    /// It is made, and logged.
    Log,
    /// It is made.
    Allow,
}

/// A comparison of an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Condition {
    /// Number of the argument, 0 to 5.
    pub(crate) argument: u32,
    /// How it is compared.
    pub(crate) operator: Operator,
    /// What with.
    pub(crate) value: u64,
}

/// How an argument is compared with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Operator {
    /// Differs.
    NotEqual,
    /// Is less.
    Less,
    /// Is less or the same.
    LessOrEqual,
    /// Is the same.
    Equal,
    /// Is greater or the same.
    GreaterOrEqual,
    /// Is greater.
    Greater,
    /// Those bits of it that are set here are those of the value.
    MaskedEqual(u64),
}

/// Architectures whose calls a filter can be for; the guest's kernel knows the three of x86.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Architecture {
    /// 64-bit x86, the machine's own.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers.
    X32,
    /// One that no program of the guest can have: its rules never matter.
    Foreign,
}

/// Why there is no program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeccompError {
    /// libseccomp cannot do something.
    #[error("linux.seccomp: cannot {action}")]
    Library {
        /// What.
        action: &'static str,
        /// Why not.
        #[source]
        source: LibraryError,
    },
    /// libseccomp refuses a rule.
    #[error("linux.seccomp: cannot add the rule for {name}")]
    Rule {
        /// Name of the system call.
        name: String,
        /// Why not.
        #[source]
        source: LibraryError,
    },
    /// The program does not get out of libseccomp.
    #[error("linux.seccomp: cannot take over the filter")]
    Export(#[source] std::io::Error),
    /// The kernel would not take it.
    #[error(
        "linux.seccomp: the filter has {instructions} instructions, the kernel takes \
         {SECCOMP_INSTRUCTIONS_MAX}"
    )]
    TooLong {
        /// How many it has.
        instructions: usize,
    },
}

/// What the guest's kernel can do, in libseccomp's levels: all that libseccomp 2.5 knows.
const API_LEVEL: u32 = 6;

/// With more rules than these the program decides by a tree instead of one call after the other.
/// runc's number; the tree of libseccomp 2.5 is wrong when there is no rule at all.
const RULES_WITHOUT_TREE: usize = 32;

/// `SCMP_FLTATR_CTL_OPTIMIZE`: a binary tree.
const OPTIMIZE_TREE: u32 = 2;

/// Size of a `struct sock_filter`, in bytes.
const INSTRUCTION_BYTES: usize = 8;

/// Compiles a profile.
///
/// # Errors
/// [`SeccompError`].
pub(crate) fn compile(profile: &Profile) -> Result<Seccomp, SeccompError> {
    let failed = |action| move |source| SeccompError::Library { action, source };
    set_api(API_LEVEL).map_err(failed("choose what the kernel can do"))?;
    let mut filter =
        ScmpFilterContext::new(profile.default_action.into()).map_err(failed("begin a filter"))?;
    for architecture in &profile.architectures {
        if let Some(architecture) = architecture.library() {
            filter
                .add_arch(architecture)
                .map_err(failed("add an architecture"))?;
        }
    }
    let mut added = 0;
    for rule in &profile.rules {
        if add(&mut filter, rule, profile.default_action)? {
            added += 1;
        }
    }
    if added > RULES_WITHOUT_TREE {
        filter
            .set_ctl_optimize(OPTIMIZE_TREE)
            .map_err(failed("order the rules as a tree"))?;
    }
    let mut program = newer_calls::program(profile);
    program.extend(export(&filter)?);
    check_length(&program)?;
    Ok(Seccomp {
        flags: profile.flags,
        program,
    })
}

/// A filter that the kernel would not take is better refused here, where there is a name for it.
fn check_length(program: &[SockFilter]) -> Result<(), SeccompError> {
    let instructions = program.len();
    if instructions > SECCOMP_INSTRUCTIONS_MAX {
        return Err(SeccompError::TooLong { instructions });
    }
    Ok(())
}

/// Adds a rule; `false` if there is nothing to add.
fn add(
    filter: &mut ScmpFilterContext,
    rule: &Rule,
    default_action: Action,
) -> Result<bool, SeccompError> {
    // libseccomp takes no rule that says what happens anyway.
    if rule.action == default_action {
        return Ok(false);
    }
    let Ok(call) = ScmpSyscall::from_name(&rule.name) else {
        tracing::debug!("linux.seccomp: {:?} is unknown, ignored", rule.name);
        return Ok(false);
    };
    let conditions: Vec<ScmpArgCompare> = rule.conditions.iter().map(Into::into).collect();
    let twice = |condition: &Condition| {
        let same = |other: &&Condition| other.argument == condition.argument;
        rule.conditions.iter().filter(same).count() > 1
    };
    let alternatives = match rule.conditions.iter().any(twice) {
        // libseccomp compares an argument once in a rule: as runc does, each is a rule of its own.
        true => conditions.chunks(1).collect(),
        false => vec![&conditions[..]],
    };
    for conditions in alternatives {
        filter
            .add_rule_conditional(rule.action.into(), call, conditions)
            .map_err(|source| SeccompError::Rule {
                name: rule.name.clone(),
                source,
            })?;
    }
    Ok(true)
}

/// Takes the program out of libseccomp 2.5, which writes it to nothing but a file.
fn export(filter: &ScmpFilterContext) -> Result<Vec<SockFilter>, SeccompError> {
    let file = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)
        .map_err(|errno| SeccompError::Export(errno.into()))?;
    let mut file = File::from(file);
    filter
        .export_bpf(&file)
        .map_err(|source| SeccompError::Library {
            action: "compile the filter",
            source,
        })?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_to_end(&mut bytes))
        .map_err(SeccompError::Export)?;
    let instructions = bytes.chunks_exact(INSTRUCTION_BYTES);
    Ok(instructions
        .map(|bytes| SockFilter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jump_true: bytes[2],
            jump_false: bytes[3],
            operand: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect())
}

impl Architecture {
    fn library(self) -> Option<ScmpArch> {
        match self {
            Self::X86_64 => Some(ScmpArch::X8664),
            Self::X86 => Some(ScmpArch::X86),
            Self::X32 => Some(ScmpArch::X32),
            Self::Foreign => None,
        }
    }
}

impl From<Action> for ScmpAction {
    fn from(action: Action) -> Self {
        match action {
            Action::KillProcess => Self::KillProcess,
            Action::KillThread => Self::KillThread,
            Action::Trap => Self::Trap,
            Action::Errno(number) => Self::Errno(number.into()),
            Action::Trace(number) => Self::Trace(number),
            Action::Log => Self::Log,
            Action::Allow => Self::Allow,
        }
    }
}

impl From<&Condition> for ScmpArgCompare {
    fn from(condition: &Condition) -> Self {
        let operator = match condition.operator {
            Operator::NotEqual => ScmpCompareOp::NotEqual,
            Operator::Less => ScmpCompareOp::Less,
            Operator::LessOrEqual => ScmpCompareOp::LessOrEqual,
            Operator::Equal => ScmpCompareOp::Equal,
            Operator::GreaterOrEqual => ScmpCompareOp::GreaterEqual,
            Operator::Greater => ScmpCompareOp::Greater,
            Operator::MaskedEqual(mask) => ScmpCompareOp::MaskedEqual(mask),
        };
        Self::new(condition.argument, operator, condition.value)
    }
}

#[cfg(test)]
mod tests;
