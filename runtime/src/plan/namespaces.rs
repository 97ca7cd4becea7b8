//! `linux.namespaces` of a plan: which ones the agent makes, and which it takes from another
//! container of the sandbox. Called by [`super::plan`].

use std::path::{Path, PathBuf};

use lazaret_protocol::container::{Namespace, NamespaceKind};
use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType};

use super::{Join, PlanError};

/// The namespaces of the container. The mount namespace is made whether it is listed or not, because
/// the container's mounts have to go somewhere.
///
/// # Errors
/// [`PlanError`].
pub(super) fn namespaces(
    linux: Option<&Linux>,
    joins: &[Join],
    warnings: &mut Vec<String>,
) -> Result<Vec<Namespace>, PlanError> {
    let listed = linux
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default();
    let mut result: Vec<Namespace> = Vec::new();
    let mut network = None;
    for (index, namespace) in listed.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let kind = kind_of(namespace.typ());
        let is_network = kind == NamespaceKind::Network;
        if lists(&result, kind) || (is_network && network.is_some()) {
            // As the document spells it, which is not how the type prints.
            let what = format!("{} is listed twice", serde_json::json!(namespace.typ()));
            return Err(PlanError::invalid(field, what));
        }
        let path = path_of(namespace);
        if let (Some(path), NamespaceKind::Mount) = (path, kind) {
            return Err(mounts_not_joinable(&field, path));
        }
        let of = path
            .map(|path| joined(&field, namespace.typ(), path, joins))
            .transpose()?
            .flatten();
        match (path, of) {
            (path, None) if is_network => network = Some(path.map(Path::to_owned)),
            (Some(path), None) => return Err(not_joinable(&field, path)),
            (_, of) => result.push(Namespace { kind, of }),
        }
    }
    if !lists(&result, NamespaceKind::Network) {
        let is_first = joins.is_empty();
        if needs_network(&result, network.as_ref(), is_first) {
            result.push(new(NamespaceKind::Network));
        }
        warn_of_network(network.as_ref(), warnings);
    }
    for (kind, name) in [(NamespaceKind::Pid, "pid"), (NamespaceKind::Ipc, "ipc")] {
        if !lists(&result, kind) {
            warnings.push(format!(
                "linux.namespaces: no {name} namespace, the container shares the guest's and not \
                 the host's"
            ));
        }
    }
    if !lists(&result, NamespaceKind::Mount) {
        result.push(new(NamespaceKind::Mount));
    }
    result.sort_unstable_by_key(|namespace| namespace.kind);
    Ok(result)
}

fn lists(namespaces: &[Namespace], kind: NamespaceKind) -> bool {
    namespaces.iter().any(|namespace| namespace.kind == kind)
}

fn new(kind: NamespaceKind) -> Namespace {
    Namespace { kind, of: None }
}

/// The path of a namespace, if it has one.
pub(super) fn path_of(namespace: &LinuxNamespace) -> Option<&Path> {
    let path = namespace.path().as_deref();
    path.filter(|path| !path.as_os_str().is_empty())
}

/// The container of the sandbox whose namespace has this path, if it is one of them.
fn joined(
    field: &str,
    wanted: LinuxNamespaceType,
    path: &Path,
    joins: &[Join],
) -> Result<Option<String>, PlanError> {
    let Some(join) = joins.iter().find(|join| join.path == path) else {
        return Ok(None);
    };
    if !path.ends_with(link(wanted)) {
        let problem = format!("{} is no {wanted} namespace", path.display());
        return Err(PlanError::invalid(format!("{field}.path"), problem));
    }
    Ok(Some(join.container.clone()))
}

fn not_joinable(field: &str, path: &Path) -> PlanError {
    PlanError::unsupported(
        format!("{field}.path"),
        format!(
            "joining {}, which is no namespace of a running container of this runtime, is",
            path.display()
        ),
    )
}

/// In the mount namespace of another container there is no way to the container's own root file
/// system, and what is mounted there is the other's.
fn mounts_not_joinable(field: &str, path: &Path) -> PlanError {
    PlanError::unsupported(
        format!("{field}.path"),
        format!(
            "a container's root file system is mounted in a mount namespace of its own: joining {} is",
            path.display()
        ),
    )
}

/// Whether the container needs a network namespace beside the guest's own, which is the network of
/// the sandbox's first container: any other one does that wants a new one, and the first does if it
/// is to have rights over it from a user namespace, without which it cannot mount sysfs.
fn needs_network(
    namespaces: &[Namespace],
    network: Option<&Option<PathBuf>>,
    is_first: bool,
) -> bool {
    match network {
        None => false,
        Some(path) => lists(namespaces, NamespaceKind::User) || (!is_first && path.is_none()),
    }
}

fn warn_of_network(network: Option<&Option<PathBuf>>, warnings: &mut Vec<String>) {
    match network {
        Some(None) => {}
        Some(Some(path)) => warnings.push(format!(
            "linux.namespaces: the interfaces of network namespace {} are not brought into the \
             guest, which has only loopback",
            path.display()
        )),
        None => warnings.push(
            "linux.namespaces: the host's network cannot be shared with the guest, which has only \
             loopback"
                .to_owned(),
        ),
    }
}

fn kind_of(kind: LinuxNamespaceType) -> NamespaceKind {
    match kind {
        LinuxNamespaceType::Mount => NamespaceKind::Mount,
        LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
        LinuxNamespaceType::Uts => NamespaceKind::Uts,
        LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
        LinuxNamespaceType::User => NamespaceKind::User,
        LinuxNamespaceType::Pid => NamespaceKind::Pid,
        LinuxNamespaceType::Network => NamespaceKind::Network,
        LinuxNamespaceType::Time => NamespaceKind::Time,
    }
}

/// The name of a kind in `/proc/PID/ns` (`namespaces(7)`).
fn link(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mnt",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::Time => "time",
    }
}
