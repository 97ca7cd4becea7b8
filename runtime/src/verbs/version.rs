//! `version`: what this is, and which runtime-spec it speaks.

use super::{VerbError, print};

/// Version of the runtime-spec whose fields are known; all of version 1 is accepted.
pub(super) const SPEC: &str = "1.3.0";

/// # Errors
/// [`VerbError::Io`].
pub(super) fn run() -> Result<u8, VerbError> {
    let mut text = format!("lazaret version {}\n", env!("CARGO_PKG_VERSION"));
    // Set by a build from a checkout.
    if let Some(commit) = option_env!("LAZARET_COMMIT") {
        text.push_str(&format!("commit: {commit}\n"));
    }
    text.push_str(&format!("spec: {SPEC}\n"));
    print(&text)?;
    Ok(0)
}
