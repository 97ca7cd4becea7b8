//! Where things lie in the checkout.

use std::path::{Path, PathBuf};

/// The checkout's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the package lies in a folder of the workspace")
}

/// Where cargo builds, which the user may have chosen.
pub(crate) fn cargo_target() -> PathBuf {
    let chosen = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(chosen)
}

/// Where build products go: `target/lazaret`.
pub(crate) fn products() -> PathBuf {
    root().join("target/lazaret")
}
