//! The user namespace of a plan: `linux.uidMappings` and `linux.gidMappings`, or the mappings of the
//! container whose user namespace is joined. Called by [`super::plan`].

use lazaret_protocol::container::IdMapping;
use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType};
use serde::{Deserialize, Serialize};

use super::{Join, PlanError, namespaces};

/// How a user namespace maps ids. Without mappings it is the guest's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserNamespace {
    /// Of users.
    pub(crate) uids: Vec<IdMapping>,
    /// Of groups.
    pub(crate) gids: Vec<IdMapping>,
}

impl UserNamespace {
    /// Whether nothing is mapped.
    pub(crate) fn is_guests(&self) -> bool {
        self.uids.is_empty() && self.gids.is_empty()
    }
}

/// The mappings of the container's user namespace. The rules for one that is joined are runc's:
/// mappings are not needed, and if there are any, they must be those that it has.
///
/// # Errors
/// [`PlanError`], which names the field.
pub(super) fn user_namespace(
    linux: Option<&Linux>,
    joins: &[Join],
) -> Result<UserNamespace, PlanError> {
    let listed = UserNamespace {
        uids: id_mappings(linux.and_then(|linux| linux.uid_mappings().as_ref())),
        gids: id_mappings(linux.and_then(|linux| linux.gid_mappings().as_ref())),
    };
    let Some((field, join)) = joined(linux, joins) else {
        return Ok(listed);
    };
    let Some(theirs) = &join.user_namespace else {
        let problem = format!(
            "container {:?} has no user namespace of its own",
            join.container
        );
        return Err(PlanError::invalid(field, problem));
    };
    if !listed.is_guests() && listed != *theirs {
        return Err(PlanError::invalid(
            field,
            "user namespaces enabled, but both namespace path and non-matching mapping specified -- \
             you may only provide one",
        ));
    }
    Ok(theirs.clone())
}

/// The container whose user namespace is joined, and the field that says so.
fn joined<'a>(linux: Option<&Linux>, joins: &'a [Join]) -> Option<(String, &'a Join)> {
    let listed = linux.and_then(|linux| linux.namespaces().as_deref());
    let (index, path) = (listed.unwrap_or_default().iter().enumerate())
        .filter(|(_, namespace)| namespace.typ() == LinuxNamespaceType::User)
        .find_map(|(index, namespace)| Some((index, namespaces::path_of(namespace)?)))?;
    let join = joins.iter().find(|join| join.path == path)?;
    Some((format!("linux.namespaces[{index}].path"), join))
}

/// Mappings as the agent takes them.
pub(super) fn id_mappings(mappings: Option<&Vec<LinuxIdMapping>>) -> Vec<IdMapping> {
    mappings
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|mapping| IdMapping {
            container_id: mapping.container_id(),
            host_id: mapping.host_id(),
            size: mapping.size(),
        })
        .collect()
}
