//! `linux.sysctl` of a plan: those parameters that belong to a namespace of the container. Which
//! they are, and the wording of the refusals, is runc's.

use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::{PlanError, lists};

/// Parameters of the IPC namespace, beside `fs.mqueue.*`.
const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Translates `linux.sysctl`: names with dots and values, sorted.
///
/// # Errors
/// [`PlanError::Invalid`] for a parameter that is not the container's own.
pub(super) fn kernel_parameters(linux: Option<&Linux>) -> Result<Vec<(String, String)>, PlanError> {
    let mut parameters: Vec<_> = linux
        .and_then(|linux| linux.sysctl().as_ref())
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    parameters.sort_unstable();
    for (name, _) in &parameters {
        check(name, linux).map_err(|problem| PlanError::invalid("linux.sysctl", problem))?;
    }
    Ok(parameters)
}

fn check(name: &str, linux: Option<&Linux>) -> Result<(), String> {
    let dotted = with_dots(name);
    if OF_IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        return if lists(linux, LinuxNamespaceType::Ipc) {
            Ok(())
        } else {
            Err(format!(
                "sysctl {dotted:?} is not allowed in the hosts ipc namespace"
            ))
        };
    }
    if dotted.starts_with("net.") {
        return if lists(linux, LinuxNamespaceType::Network) {
            Ok(())
        } else {
            Err(format!(
                "sysctl {dotted:?} not allowed in host network namespace"
            ))
        };
    }
    match dotted.as_str() {
        "kernel.domainname" if lists(linux, LinuxNamespaceType::Uts) => Ok(()),
        "kernel.hostname" if lists(linux, LinuxNamespaceType::Uts) => Err(format!(
            "sysctl {dotted:?} is not allowed as it conflicts with the OCI \"hostname\" field"
        )),
        _ => Err(format!(
            "sysctl {dotted:?} is not in a separate kernel namespace"
        )),
    }
}

/// The name with `.` between its parts. Where `/` comes first it is the separator, and dots
/// belong to the parts (sysctl(8)); they are of no matter for what is looked at here.
fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'/' => name
            .chars()
            .map(|character| match character {
                '/' => '.',
                '.' => '/',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    }
}
