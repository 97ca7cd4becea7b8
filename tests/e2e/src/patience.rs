//! One factor for all deadlines of a case's process, so that a machine that is ten times slower
//! than usual does not fail cases that are right.

use std::{sync::OnceLock, time::Duration};

static FACTOR: OnceLock<u32> = OnceLock::new();

/// Sets the factor, once and before anything waits.
pub(crate) fn set(factor: u32) {
    // A second call would be a mistake of `isolation`, and the first one counts.
    FACTOR.set(factor).ok();
}

/// A deadline, stretched.
pub(crate) fn of(timeout: Duration) -> Duration {
    timeout * *FACTOR.get().unwrap_or(&1)
}
