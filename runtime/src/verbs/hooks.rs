//! The hooks that a verb runs itself, in the namespaces and, for `poststop`, in the directory of
//! its caller: after a container has started, and after it has gone.

use lazaret_protocol::hook::Hook;

use super::{VerbError, delete};
use crate::{
    hooks::{self, Place, State},
    state::{Record, StateDir, Status},
};

/// Runs the `poststart` hooks of a container whose process was released. When one fails the
/// process is killed, as the runtime-spec has it; what is left of the container is there to be
/// deleted.
///
/// # Errors
/// [`VerbError::Hook`].
pub(super) fn poststart(dir: &StateDir, record: &Record) -> Result<(), VerbError> {
    if record.hooks.poststart.is_empty() {
        return Ok(());
    }
    let status = dir.status()?.0;
    let pid = match status {
        Status::Stopped => 0,
        _ => record.monitor.pid,
    };
    let state = state(dir, record, status.as_str(), pid);
    let place = Place {
        mount_namespace: None,
        directory: Some(&record.bundle),
    };
    let hooks = &record.hooks.poststart;
    hooks::run("poststart", hooks, state, place, &[]).map_err(|error| {
        delete::kill(dir);
        error.into()
    })
}

/// Runs the `poststop` hooks of a container that is gone. A failure is a warning.
pub(super) fn poststop(dir: &StateDir, record: &Record, hooks: &[Hook]) {
    let state = state(dir, record, Status::Stopped.as_str(), 0);
    hooks::run_all("poststop", hooks, state, Place::default());
}

fn state<'a>(dir: &'a StateDir, record: &'a Record, status: &'static str, pid: i32) -> State<'a> {
    State {
        oci_version: &record.oci_version,
        id: dir.id().as_str(),
        status,
        pid,
        bundle: &record.bundle,
        annotations: &record.annotations,
    }
}
