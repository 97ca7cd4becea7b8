//! `create`: a container whose process waits before exec.

use super::{
    VerbError,
    launch::{self, Launch},
};
use crate::cli::{Create, Global};

/// # Errors
/// [`VerbError`]; nothing is left behind then.
pub(super) fn run(global: &Global, options: &Create) -> Result<u8, VerbError> {
    let prepared = launch::prepare(global, options, true)?;
    prepared.launch(global, Launch::Created, options.pid_file.as_deref())?;
    Ok(0)
}
