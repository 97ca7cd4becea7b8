//! What all processes of a container share besides its namespaces: the offsets of their clocks,
//! their execution domain, and where their memory comes from.

use lazaret_protocol::container::{Namespace, NamespaceKind, TimeOffset};
use oci_spec::runtime::{
    Linux, LinuxPersonalityDomain, MemoryPolicyFlagType, MemoryPolicyModeType,
};

use super::PlanError;

/// Execution domains (`linux/personality.h`).
const PER_LINUX: u32 = 0;
const PER_LINUX32: u32 = 8;

/// Nanoseconds of a second.
const SECOND_NS: u32 = 1_000_000_000;

/// Translates `linux.timeOffsets`, which needs a new time namespace among `namespaces`.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn time_offsets(
    linux: Option<&Linux>,
    namespaces: &[Namespace],
) -> Result<Vec<TimeOffset>, PlanError> {
    let mut result = Vec::new();
    let offsets = linux.and_then(|linux| linux.time_offsets().as_ref());
    for (name, offset) in offsets.into_iter().flatten() {
        let clock = match name.as_str() {
            "monotonic" => libc::CLOCK_MONOTONIC,
            "boottime" => libc::CLOCK_BOOTTIME,
            _ => {
                return Err(PlanError::invalid(
                    format!("linux.timeOffsets[{name}]"),
                    "must be \"monotonic\" or \"boottime\"",
                ));
            }
        };
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        if nanoseconds >= SECOND_NS {
            return Err(PlanError::invalid(
                format!("linux.timeOffsets[{name}].nanosecs"),
                "must be a number from 0 to 999999999",
            ));
        }
        result.push(TimeOffset {
            clock,
            seconds: offset.secs().unwrap_or(0),
            nanoseconds,
        });
    }
    let is_time =
        |namespace: &Namespace| namespace.kind == NamespaceKind::Time && namespace.of.is_none();
    if !result.is_empty() && !namespaces.iter().any(is_time) {
        return Err(PlanError::invalid(
            "linux.timeOffsets",
            "needs a new time namespace in linux.namespaces",
        ));
    }
    result.sort_unstable_by_key(|offset| offset.clock);
    Ok(result)
}

/// Translates `linux.personality`. The runtime-spec has a field for flags and names none.
pub(super) fn personality(linux: Option<&Linux>, warnings: &mut Vec<String>) -> Option<u32> {
    let personality = linux?.personality().as_ref()?;
    for flag in personality.flags().iter().flatten() {
        warnings.push(format!(
            "linux.personality.flags: {flag:?} is unknown, ignored"
        ));
    }
    Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PER_LINUX,
        LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
    })
}

/// Checks `linux.memoryPolicy`, which chooses between the memories of several nodes: the guest has
/// one.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn check_memory_policy(
    linux: Option<&Linux>,
    warnings: &mut Vec<String>,
) -> Result<(), PlanError> {
    let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) else {
        return Ok(());
    };
    let invalid = |name: &str, problem: String| {
        Err(PlanError::invalid(
            format!("linux.memoryPolicy.{name}"),
            problem,
        ))
    };
    let mode = policy.mode();
    let has_nodes = policy
        .nodes()
        .as_ref()
        .is_some_and(|nodes| !nodes.is_empty());
    match mode {
        MemoryPolicyModeType::MpolDefault | MemoryPolicyModeType::MpolLocal if has_nodes => {
            return invalid("nodes", format!("must be empty for {mode}"));
        }
        MemoryPolicyModeType::MpolBind
        | MemoryPolicyModeType::MpolInterleave
        | MemoryPolicyModeType::MpolWeightedInterleave
        | MemoryPolicyModeType::MpolPreferredMany
            if !has_nodes =>
        {
            return invalid("nodes", format!("must not be empty for {mode}"));
        }
        _ => {}
    }
    let flags = policy.flags().as_deref().unwrap_or_default();
    let both = [
        MemoryPolicyFlagType::MpolFStaticNodes,
        MemoryPolicyFlagType::MpolFRelativeNodes,
    ];
    if both.iter().all(|flag| flags.contains(flag)) {
        return invalid(
            "flags",
            format!("{} and {} exclude each other", both[0], both[1]),
        );
    }
    warnings.push(format!(
        "linux.memoryPolicy: {mode} is not applied, the guest has one memory node"
    ));
    Ok(())
}
