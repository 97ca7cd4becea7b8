//! The mounts of a plan: which come from the host through the share, which the guest makes itself.

use std::path::{Component, Path, PathBuf};

use lazaret_protocol::container::{Mount, MountSource};
use oci_spec::runtime as oci;

use super::{PlanError, Share, options};
use crate::bundle::Bundle;

/// Host trees whose place the guest's own take: what lies there is the kernel's, not a file's.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Mounts as the agent makes them, and what the host shares for them.
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) shares: Vec<Share>,
}

/// Translates `mounts` of the spec for container `id`.
///
/// # Errors
/// [`PlanError`], which names the mount by its index.
pub(super) fn mounts(
    bundle: &Bundle,
    id: &str,
    warnings: &mut Vec<String>,
) -> Result<Mounts, PlanError> {
    let listed = bundle.spec.mounts().as_deref().unwrap_or_default();
    let mut result = Mounts {
        mounts: Vec::with_capacity(listed.len()),
        shares: Vec::new(),
    };
    for (index, mount) in listed.iter().enumerate() {
        let field = format!("mounts[{index}]");
        check(mount, &field)?;
        let words = mount.options().as_deref().unwrap_or_default();
        let options = options::parse(words.iter().map(String::as_str));
        if options.id_mapped {
            return Err(PlanError::unsupported(
                format!("{field}.options"),
                "mapping the ids of a mount is",
            ));
        }
        let fs_type = mount.typ().as_deref().unwrap_or_default();
        let is_bind = fs_type == "bind" || options.flags & libc::MS_BIND != 0;
        let source = if is_bind {
            bind(bundle, mount, &field, &options, id, &mut result.shares)?
        } else {
            filesystem(mount, &field, fs_type)?
        };
        let bind_flag = if is_bind { libc::MS_BIND } else { 0 };
        result.mounts.push(Mount {
            source,
            destination: destination(mount, &field, warnings)?,
            flags: options.flags | bind_flag,
            recursive_set: options.recursive_set,
            recursive_clear: options.recursive_clear,
            propagation: options.propagation,
            // A bind has no file system to tell anything.
            data: if is_bind { String::new() } else { options.data },
            copy_up: options.copy_up,
        });
    }
    Ok(result)
}

fn check(mount: &oci::Mount, field: &str) -> Result<(), PlanError> {
    for (name, mappings) in [
        ("uidMappings", mount.uid_mappings()),
        ("gidMappings", mount.gid_mappings()),
    ] {
        if mappings.as_ref().is_some_and(|list| !list.is_empty()) {
            return Err(PlanError::unsupported(
                format!("{field}.{name}"),
                "mapping the ids of a mount is",
            ));
        }
    }
    Ok(())
}

/// The destination, made absolute as runc does.
fn destination(
    mount: &oci::Mount,
    field: &str,
    warnings: &mut Vec<String>,
) -> Result<String, PlanError> {
    let field = format!("{field}.destination");
    let path = mount
        .destination()
        .to_str()
        .ok_or_else(|| PlanError::invalid(&field, "must be UTF-8"))?;
    if path.is_empty() {
        Err(PlanError::invalid(field, "must not be empty"))
    } else if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        warnings.push(format!(
            "{field}: {path:?} is not absolute, using \"/{path}\""
        ));
        Ok(format!("/{path}"))
    }
}

fn bind(
    bundle: &Bundle,
    mount: &oci::Mount,
    field: &str,
    options: &options::Options,
    id: &str,
    shares: &mut Vec<Share>,
) -> Result<MountSource, PlanError> {
    let field = format!("{field}.source");
    let source = mount
        .source()
        .as_deref()
        .filter(|source| !source.as_os_str().is_empty())
        .ok_or_else(|| PlanError::invalid(&field, "must not be empty for a bind mount"))?;
    let source = normal(&bundle.resolve(source));
    if KERNEL_TREES.iter().any(|tree| source.starts_with(tree)) {
        let path = source
            .to_str()
            .ok_or_else(|| PlanError::invalid(&field, "must be UTF-8"))?;
        return Ok(MountSource::Guest(path.to_owned()));
    }
    let share_path = format!("{id}/mounts/{}", shares.len());
    shares.push(Share {
        field,
        source,
        share_path: share_path.clone(),
        recursive: options.flags & libc::MS_REC != 0,
        readonly: options.flags & libc::MS_RDONLY != 0,
        readonly_recursive: options.recursive_set & libc::MOUNT_ATTR_RDONLY != 0,
        propagation: share_propagation(&options.propagation),
    });
    Ok(MountSource::Share(share_path))
}

/// How the host's clone follows the host's later mounts: as asked, but never so that it spreads
/// mounts of its own, for the guest makes none there.
fn share_propagation(changes: &[u64]) -> u64 {
    match changes.last().map(|change| change & !libc::MS_REC) {
        Some(libc::MS_SLAVE | libc::MS_SHARED) => libc::MS_SLAVE,
        _ => libc::MS_PRIVATE,
    }
}

fn filesystem(mount: &oci::Mount, field: &str, fs_type: &str) -> Result<MountSource, PlanError> {
    let source = mount.source().as_deref().and_then(Path::to_str);
    let fs_type = match fs_type {
        "" => {
            return Err(PlanError::invalid(
                format!("{field}.type"),
                "must not be empty",
            ));
        }
        // The guest has version 2 only, whatever the host has.
        "cgroup" => "cgroup2",
        // The kernel reaches such a path from the host, where the guest is not.
        "overlay" => {
            return Err(PlanError::unsupported(
                format!("{field}.type"),
                "an overlay of host directories is",
            ));
        }
        other => other,
    };
    Ok(MountSource::Filesystem {
        fs_type: fs_type.to_owned(),
        source: source.unwrap_or(fs_type).to_owned(),
    })
}

/// `path` without `.` and `..`, by its words alone.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            other => normal.push(other),
        }
    }
    normal
}
