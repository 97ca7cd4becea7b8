//! The mounts of a plan: which come from the host through the share, which the guest makes itself.

use std::path::{Component, Path, PathBuf};

use lazaret_protocol::container::{Mount, MountSource};
use oci_spec::runtime as oci;

use super::{
    IdMap, PlanError, Share, options,
    user_namespace::{UserNamespace, id_mappings},
};
use crate::bundle::Bundle;

/// Host trees whose place the guest's own take: what lies there is the kernel's, not a file's.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The one directory in those trees whose files are the host's: a tmpfs, where programs on the host
/// put what they share.
const SHARED_MEMORY: &str = "/dev/shm";

/// The flags a mount has whatever is mounted (`mount(2)`).
pub(crate) const KEPT_FLAGS: u64 = libc::MS_RDONLY
    | libc::MS_NOSUID
    | libc::MS_NODEV
    | libc::MS_NOEXEC
    | libc::MS_NOATIME
    | libc::MS_NODIRATIME
    | libc::MS_STRICTATIME
    | options::MS_NOSYMFOLLOW;

/// Mounts as the agent makes them, and what the host shares for them.
pub(super) struct Mounts {
    pub(super) mounts: Vec<Mount>,
    pub(super) shares: Vec<Share>,
}

/// Translates `mounts` of the spec for container `id`, which is in `user_namespace`.
///
/// # Errors
/// [`PlanError`], which names the mount by its index.
pub(super) fn mounts(
    bundle: &Bundle,
    id: &str,
    user_namespace: &UserNamespace,
    warnings: &mut Vec<String>,
) -> Result<Mounts, PlanError> {
    let listed = bundle.spec.mounts().as_deref().unwrap_or_default();
    let mut result = Mounts {
        mounts: Vec::with_capacity(listed.len()),
        shares: Vec::new(),
    };
    for (index, mount) in listed.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let words = mount.options().as_deref().unwrap_or_default();
        let options = options::parse(words.iter().map(String::as_str));
        let fs_type = mount.typ().as_deref().unwrap_or_default();
        let is_overlay = fs_type == "overlay";
        let is_bind = fs_type == "bind" || options.flags & libc::MS_BIND != 0;
        let id_map = id_map(user_namespace, mount, &options, is_bind, &field)?;
        let share_path = format!("{id}/mounts/{}", result.shares.len());
        let source = if is_bind {
            let (source, share) = bind(bundle, mount, &field, &options, share_path, id_map)?;
            result.shares.extend(share);
            source
        } else if is_overlay {
            let share = overlay(&field, &options, share_path.clone())?;
            result.shares.push(share);
            MountSource::Share(share_path)
        } else {
            filesystem(mount, &field, fs_type)?
        };
        // What comes from the host is bound in the guest.
        let is_bind = is_bind || is_overlay;
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
            below: Vec::new(),
        });
    }
    Ok(result)
}

/// How a mount maps ids: as it says itself, or with the option alone as the container's user
/// namespace does. The rules are runc's.
fn id_map(
    user_namespace: &UserNamespace,
    mount: &oci::Mount,
    options: &options::Options,
    is_bind: bool,
    field: &str,
) -> Result<Option<IdMap>, PlanError> {
    let listed = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
    let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
    let (has_uids, has_gids) = (listed(uids), listed(gids));
    if !has_uids && !has_gids && options.id_mapped.is_none() {
        return Ok(None);
    }
    if !is_bind {
        return Err(PlanError::invalid(
            field,
            "id-mapped mounts are only supported for bind-mounts",
        ));
    }
    let UserNamespace { uids, gids } = if has_uids || has_gids {
        UserNamespace {
            uids: id_mappings(uids.as_ref()),
            gids: id_mappings(gids.as_ref()),
        }
    } else {
        user_namespace.clone()
    };
    if uids.is_empty() || gids.is_empty() {
        return Err(PlanError::invalid(
            field,
            "id-mapped mounts must have both uid and gid mappings specified",
        ));
    }
    Ok(Some(IdMap {
        uids,
        gids,
        recursive: options.id_mapped == Some(options::Depth::All),
    }))
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

/// Where a bind comes from, and what the host shares for it.
fn bind(
    bundle: &Bundle,
    mount: &oci::Mount,
    field: &str,
    options: &options::Options,
    share_path: String,
    id_map: Option<IdMap>,
) -> Result<(MountSource, Option<Share>), PlanError> {
    let field = format!("{field}.source");
    let source = mount
        .source()
        .as_deref()
        .filter(|source| !source.as_os_str().is_empty())
        .ok_or_else(|| PlanError::invalid(&field, "must not be empty for a bind mount"))?;
    let source = normal(&bundle.resolve(source));
    if is_kernels(&source) {
        let path = source
            .to_str()
            .ok_or_else(|| PlanError::invalid(&field, "must be UTF-8"))?;
        if id_map.is_some() {
            return Err(PlanError::unsupported(
                field,
                format!("mapping the ids of the guest's own {path} is"),
            ));
        }
        return Ok((MountSource::Guest(path.to_owned()), None));
    }
    let share = Share {
        field,
        source,
        share_path: share_path.clone(),
        recursive: options.flags & libc::MS_REC != 0,
        readonly: options.flags & libc::MS_RDONLY != 0,
        readonly_recursive: options.recursive_set & libc::MOUNT_ATTR_RDONLY != 0,
        propagation: share_propagation(&options.propagation),
        kept_flags: kept_flags(options),
        id_map,
        overlay: None,
    };
    Ok((MountSource::Share(share_path), Some(share)))
}

/// Whether what lies there is the kernel's, so that the guest's takes its place.
fn is_kernels(path: &Path) -> bool {
    KERNEL_TREES.iter().any(|tree| path.starts_with(tree)) && !path.starts_with(SHARED_MEMORY)
}

/// An overlay: its directories are paths of the host, as they are for runc, so that the host
/// mounts it.
fn overlay(
    field: &str,
    options: &options::Options,
    share_path: String,
) -> Result<Share, PlanError> {
    for (name, path) in options
        .data
        .split(',')
        .filter_map(|word| word.split_once('='))
    {
        if matches!(name, "lowerdir" | "upperdir" | "workdir") && !path.starts_with('/') {
            return Err(PlanError::invalid(
                format!("{field}.options"),
                format!("{name} must be an absolute path"),
            ));
        }
    }
    Ok(Share {
        field: field.to_owned(),
        source: "overlay".into(),
        share_path,
        recursive: false,
        readonly: options.flags & libc::MS_RDONLY != 0,
        readonly_recursive: options.recursive_set & libc::MOUNT_ATTR_RDONLY != 0,
        propagation: libc::MS_PRIVATE,
        kept_flags: 0,
        id_map: None,
        overlay: Some(options.data.clone()),
    })
}

/// Which flags of its source's mount a bind has, too: all that its options do not speak of. What
/// the host cannot write to remains so.
fn kept_flags(options: &options::Options) -> u64 {
    let access_times = libc::MS_NOATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;
    let mut spoken_of = options.cleared;
    if (options.flags | options.cleared) & access_times != 0 {
        spoken_of |= access_times;
    }
    KEPT_FLAGS & !spoken_of | libc::MS_RDONLY
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
