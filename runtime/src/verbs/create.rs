//! `create`: a container whose process waits before exec.

use super::{VerbError, launch};
use crate::cli::{Create, Global};

/// # Errors
/// [`VerbError`]; nothing is left behind then.
pub(super) fn run(global: &Global, options: &Create) -> Result<u8, VerbError> {
    launch::prepare(global, options, true)?.launch(global, false, options.pid_file.as_deref())?;
    Ok(0)
}
