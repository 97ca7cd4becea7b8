//! The hooks of a plan: checked, and sorted by who runs them.

use std::collections::BTreeMap;

use lazaret_protocol::hook::{Hook, StartHooks};
use oci_spec::runtime as oci;
use serde::Serialize;

use super::PlanError;
use crate::{bundle::Bundle, hooks::State};

/// The hooks of a container that the host runs, each list in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub(crate) struct HostHooks {
    /// Before anything is shared with the guest.
    pub(crate) prestart: Vec<Hook>,
    /// After those.
    pub(crate) create_runtime: Vec<Hook>,
    /// After those, where the container's mounts are put together.
    pub(crate) create_container: Vec<Hook>,
    /// When the container's process runs.
    pub(crate) poststart: Vec<Hook>,
    /// When nothing is left of the container.
    pub(crate) poststop: Vec<Hook>,
}

impl HostHooks {
    /// Whether something is to be run while the container is made.
    pub(crate) fn at_creation(&self) -> bool {
        !(self.prestart.is_empty()
            && self.create_runtime.is_empty()
            && self.create_container.is_empty())
    }
}

/// Translates `hooks` for container `id`.
///
/// # Errors
/// [`PlanError::Invalid`], which names the hook by its list and index.
pub(super) fn hooks(bundle: &Bundle, id: &str) -> Result<(HostHooks, StartHooks), PlanError> {
    let Some(hooks) = bundle.spec.hooks() else {
        return Ok(Default::default());
    };
    let host = HostHooks {
        prestart: list("prestart", hooks.prestart().as_deref())?,
        create_runtime: list("createRuntime", hooks.create_runtime().as_deref())?,
        create_container: list("createContainer", hooks.create_container().as_deref())?,
        poststart: list("poststart", hooks.poststart().as_deref())?,
        poststop: list("poststop", hooks.poststop().as_deref())?,
    };
    let start = list("startContainer", hooks.start_container().as_deref())?;
    let state = if start.is_empty() {
        String::new()
    } else {
        let annotations: BTreeMap<String, String> = bundle
            .spec
            .annotations()
            .iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        State {
            oci_version: bundle.spec.version(),
            id,
            status: "created",
            pid: 0,
            bundle: &bundle.path,
            annotations: &annotations,
        }
        .to_json()
    };
    let start = StartHooks {
        hooks: start,
        state,
    };
    Ok((host, start))
}

fn list(name: &str, hooks: Option<&[oci::Hook]>) -> Result<Vec<Hook>, PlanError> {
    let hooks = hooks.unwrap_or_default().iter().enumerate();
    hooks
        .map(|(index, hook)| translate(hook, &format!("hooks.{name}[{index}]")))
        .collect()
}

fn translate(hook: &oci::Hook, field: &str) -> Result<Hook, PlanError> {
    let invalid =
        |name: &str, problem: &str| PlanError::invalid(format!("{field}.{name}"), problem);
    let path = hook.path().to_str();
    let path = path.ok_or_else(|| invalid("path", "must be UTF-8"))?;
    if !path.starts_with('/') {
        return Err(invalid("path", "must be an absolute path"));
    }
    let args = hook.args().clone().unwrap_or_default();
    if path.contains('\0') || args.iter().any(|argument| argument.contains('\0')) {
        return Err(invalid("args", "must not hold a NUL character"));
    }
    let variable = |(index, text): (usize, &String)| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(invalid(
            &format!("env[{index}]"),
            "must be of the form NAME=value",
        )),
    };
    let env = hook
        .env()
        .as_ref()
        .map(|env| env.iter().enumerate().map(variable).collect());
    let timeout_s = match hook.timeout() {
        None => None,
        Some(timeout) => match u64::try_from(timeout) {
            Ok(timeout) if timeout > 0 => Some(timeout),
            _ => return Err(invalid("timeout", "must be greater than 0")),
        },
    };
    Ok(Hook {
        path: path.to_owned(),
        args,
        env: env.transpose()?,
        timeout_s,
    })
}
