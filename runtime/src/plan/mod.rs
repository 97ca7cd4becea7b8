//! The plan: `config.json`, its annotations and the configuration become the VM to start, the
//! container to build in it, and the work left to the host. Called by `create` and `run` (and, for
//! a process alone, by `exec`). Pure: it opens nothing and asks the system nothing, so that golden
//! tests can hold it still.

use std::path::PathBuf;

use lazaret_protocol::{
    agent::TerminalSize,
    container::{CpuAffinity, CreateContainer, IdMapping, Process, Root, Stdio},
    vm::VmConfig,
};
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};
use serde::Serialize;

use crate::{bundle::Bundle, caller::Caller, config::Config, seccomp::Profile};

mod accepts;
mod annotations;
mod devices;
mod disks;
mod domain;
mod hooks;
mod host_cgroup;
mod kernel_parameters;
mod limits;
mod mounts;
mod namespaces;
mod options;
mod process;
mod resources;
mod scheduling;
mod seccomp;
mod size;
mod unit_properties;
mod unsupported;
mod update;
mod user_namespace;
mod vm;

use limits::Limits;

pub(crate) use accepts::{Verdict, mount_options, verdict};
pub(crate) use annotations::{ANNOTATION_PREFIX, ANNOTATIONS};
pub(crate) use disks::{DISKS_MAX, HostDisk};
pub(crate) use hooks::HostHooks;
#[cfg(test)]
pub(crate) use host_cgroup::IoThrottle;
pub(crate) use host_cgroup::{HostCgroup, HostLimits, IoThrottleKind, Place};
pub(crate) use mounts::KEPT_FLAGS;
pub(crate) use options::MS_NOSYMFOLLOW;
pub(crate) use process::{capabilities, capability, inherit, process};
pub(crate) use unit_properties::{UnitProperty, UnitValue};
pub(crate) use update::{limits, vcpus};
pub(crate) use user_namespace::UserNamespace;
pub(crate) use vm::{FD_COUNT, FdIndex};

/// What the plan needs to know besides the bundle and the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Circumstances<'a> {
    /// Container id, valid.
    pub(crate) id: &'a str,
    /// Which of standard input, output and error are worth carrying.
    pub(crate) stdio: [Stdio; 3],
    /// What the descriptors that follow them are.
    pub(crate) preserved: &'a [Stdio],
    /// Size of the caller's terminal, if it has one.
    pub(crate) terminal_size: TerminalSize,
    /// Memory of this machine, in MiB.
    pub(crate) host_memory_mib: u64,
    /// CPUs of this machine.
    pub(crate) host_cpus: u64,
    /// Whether this machine's cgroups are version 1, be it beside version 2.
    pub(crate) host_cgroup_v1: bool,
    /// Whether this machine has the block device of these numbers.
    pub(crate) host_has_block_device: fn(u32, u32) -> bool,
    /// Whether the sandbox is to be a unit of systemd's.
    pub(crate) systemd_cgroup: bool,
    /// What is inherited where the bundle does not say.
    pub(crate) caller: &'a Caller,
    /// Namespaces of containers of ours that the bundle names.
    pub(crate) joins: &'a [Join],
}

/// A namespace of a container of ours, as a bundle names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    /// `/proc/PID/ns/…`.
    pub(crate) path: PathBuf,
    /// Id of the container.
    pub(crate) container: String,
    /// Its user namespace, if it is in one other than the guest's.
    pub(crate) user_namespace: Option<UserNamespace>,
}

/// Everything `create` is going to do.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// The VM; its descriptors are numbered by [`FdIndex`].
    pub(crate) vm: VmConfig,
    /// The container, as the agent is told; its filter of system calls is yet to be compiled.
    pub(crate) container: CreateContainer,
    /// What that filter is compiled from.
    pub(crate) seccomp: Option<Profile>,
    /// What the host does.
    pub(crate) host: HostWork,
    /// What the user asked for and does not get: one log line each.
    pub(crate) warnings: Vec<String>,
}

/// The host's part of a plan.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HostWork {
    /// What is shared with the guest; the root file system comes first.
    pub(crate) shares: Vec<Share>,
    /// File for the guest kernel's console.
    pub(crate) console: Option<PathBuf>,
    /// Block devices that are disks of the VM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) disks: Vec<HostDisk>,
    /// Programs to run on the way.
    pub(crate) hooks: HostHooks,
    /// The sandbox's cgroup.
    pub(crate) cgroup: HostCgroup,
}

/// A host path that appears in the share as a mount of its own.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Share {
    /// Field of the spec, for errors.
    pub(crate) field: String,
    /// Absolute host path.
    pub(crate) source: PathBuf,
    /// Where it appears, relative to the share's top.
    pub(crate) share_path: String,
    /// Whether mounts below the source come along.
    pub(crate) recursive: bool,
    /// Whether the guest may only read the top mount.
    pub(crate) readonly: bool,
    /// Whether the guest may only read all of it.
    pub(crate) readonly_recursive: bool,
    /// `MS_*` propagation of the clone.
    pub(crate) propagation: u64,
    /// `MS_*` flags that a bind in the guest has if the mount of the source has them.
    pub(crate) kept_flags: u64,
    /// How the ids of its files are shown, if otherwise than they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id_map: Option<IdMap>,
    /// Options of an overlay that is mounted there instead of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) overlay: Option<String>,
}

/// How an id-mapped mount shows ids (`mount_setattr(2)`): those on the left are stored in the
/// file system, those on the right are seen.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct IdMap {
    /// Of users.
    pub(crate) uids: Vec<IdMapping>,
    /// Of groups.
    pub(crate) gids: Vec<IdMapping>,
    /// Whether the mounts below are mapped, too.
    pub(crate) recursive: bool,
}

/// Why a bundle cannot become a container.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// A field has no valid value.
    #[error("{field}: {problem}")]
    Invalid {
        /// Path of the field.
        field: String,
        /// What is wrong.
        problem: String,
    },
    /// A field asks for what this version does not do.
    #[error("{field}: {what} not supported")]
    Unsupported {
        /// Path of the field.
        field: String,
        /// What, with its verb.
        what: String,
    },
}

impl PlanError {
    fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            what: what.into(),
        }
    }
}

/// Directory of the root file system in the container's part of the share.
const ROOTFS: &str = "rootfs";

/// Makes the plan.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(crate) fn plan(
    bundle: &Bundle,
    config: &Config,
    circumstances: Circumstances<'_>,
) -> Result<Plan, PlanError> {
    let spec = &bundle.spec;
    let mut warnings = Vec::new();
    check_version(spec)?;
    unsupported::check(spec, &mut warnings)?;
    let annotations = annotations::parse(spec, config)?;

    let linux = spec.linux().as_ref();
    let process = init_process(spec, circumstances, &mut warnings)?;
    let resources = &linux
        .and_then(|linux| linux.resources().clone())
        .unwrap_or_default();
    let limits = Limits::of(resources)?;
    let cgroup = resources::resources(resources, &limits, circumstances, &mut warnings)?;
    let (root, root_share) = root(bundle, linux, circumstances.id)?;
    let user_namespace = user_namespace::user_namespace(linux, circumstances.joins)?;
    let mounts = mounts::mounts(bundle, circumstances.id, &user_namespace, &mut warnings)?;
    let (hooks, start_hooks) = hooks::hooks(bundle, circumstances.id)?;
    let mut shares = vec![root_share];
    shares.extend(mounts.shares);

    let namespaces = namespaces::namespaces(linux, circumstances.joins, &mut warnings)?;
    domain::check_memory_policy(linux, &mut warnings)?;
    let (devices, disks) =
        devices::nodes(linux, &cgroup.device_rules, circumstances, &mut warnings)?;
    let container = CreateContainer {
        id: circumstances.id.to_owned(),
        root,
        hostname: host_name("hostname", spec.hostname(), linux)?,
        domainname: host_name("domainname", spec.domainname(), linux)?,
        time_offsets: domain::time_offsets(linux, &namespaces)?,
        namespaces,
        uid_mappings: user_namespace.uids,
        gid_mappings: user_namespace.gids,
        mounts: mounts.mounts,
        devices,
        masked_paths: absolute_paths(linux, "maskedPaths", Linux::masked_paths)?,
        readonly_paths: absolute_paths(linux, "readonlyPaths", Linux::readonly_paths)?,
        sysctl: kernel_parameters::kernel_parameters(linux)?,
        start_hooks,
        cgroup,
        seccomp: None,
        personality: domain::personality(linux, &mut warnings),
        process,
    };
    let size = size::size(spec, &limits, &annotations, circumstances)?;
    let console = annotations.console.or_else(|| config.console.clone());
    let vm = vm::vm_config(circumstances, config, size, console.is_some(), &disks);
    let memory_mib = vm.memory_mib;
    let cgroup = host_cgroup::host_cgroup(spec, &limits, memory_mib, circumstances)?;
    Ok(Plan {
        vm,
        container,
        seccomp: seccomp::profile(linux)?,
        host: HostWork {
            shares,
            console,
            disks,
            hooks,
            cgroup,
        },
        warnings,
    })
}

/// The container's own process.
fn init_process(
    spec: &Spec,
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<Process, PlanError> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| PlanError::invalid("process", "must not be empty"))?;
    Ok(Process {
        // It is for what `exec` starts.
        cpu_affinity: CpuAffinity::default(),
        ..process::process(process, "process", circumstances, warnings)?
    })
}

/// Accepts version 1 of the runtime-spec, whatever follows the first dot.
fn check_version(spec: &Spec) -> Result<(), PlanError> {
    let version = spec.version();
    let (major, rest) = version.split_once('.').unwrap_or((version, ""));
    if version.is_empty() {
        Err(PlanError::invalid("ociVersion", "must not be empty"))
    } else if major == "1" && rest.starts_with(|c: char| c.is_ascii_digit()) {
        Ok(())
    } else {
        Err(PlanError::unsupported(
            "ociVersion",
            format!("version {version:?} is"),
        ))
    }
}

/// The value of `hostname` or `domainname`, which without a UTS namespace would be the guest's.
fn host_name(
    field: &str,
    name: &Option<String>,
    linux: Option<&Linux>,
) -> Result<String, PlanError> {
    match name.as_deref() {
        None | Some("") => Ok(String::new()),
        Some(name) if lists(linux, LinuxNamespaceType::Uts) => Ok(name.to_owned()),
        Some(_) => Err(PlanError::invalid(
            field,
            format!("unable to set {field} without a private UTS namespace"),
        )),
    }
}

/// Whether the container has a namespace of this kind, new or joined.
fn lists(linux: Option<&Linux>, kind: LinuxNamespaceType) -> bool {
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    let mut listed = listed.unwrap_or_default().iter();
    listed.any(|namespace| namespace.typ() == kind)
}

fn root(bundle: &Bundle, linux: Option<&Linux>, id: &str) -> Result<(Root, Share), PlanError> {
    let root = bundle
        .spec
        .root()
        .as_ref()
        .ok_or_else(|| PlanError::invalid("root", "must not be empty"))?;
    if root.path().as_os_str().is_empty() {
        return Err(PlanError::invalid("root.path", "must not be empty"));
    }
    let readonly = root.readonly().unwrap_or(false);
    let propagation = match linux.and_then(|linux| linux.rootfs_propagation().as_deref()) {
        None | Some("") => 0,
        Some(name) => options::propagation(name).ok_or_else(|| {
            PlanError::invalid(
                "linux.rootfsPropagation",
                format!("{name:?} is not a propagation"),
            )
        })?,
    };
    let share_path = format!("{id}/{ROOTFS}");
    let share = Share {
        field: "root.path".to_owned(),
        source: bundle.resolve(root.path()),
        share_path: share_path.clone(),
        recursive: true,
        readonly,
        readonly_recursive: false,
        propagation: libc::MS_PRIVATE,
        kept_flags: KEPT_FLAGS,
        id_map: None,
        overlay: None,
    };
    let root = Root {
        share_path,
        readonly,
        // Not known before the clone is made.
        flags: 0,
        propagation,
    };
    Ok((root, share))
}

fn absolute_paths(
    linux: Option<&Linux>,
    name: &str,
    paths: impl Fn(&Linux) -> &Option<Vec<String>>,
) -> Result<Vec<String>, PlanError> {
    let paths = linux
        .and_then(|linux| paths(linux).clone())
        .unwrap_or_default();
    match paths.iter().position(|path| !path.starts_with('/')) {
        None => Ok(paths),
        Some(index) => Err(PlanError::invalid(
            format!("linux.{name}[{index}]"),
            "must be an absolute path",
        )),
    }
}

#[cfg(test)]
mod tests;
