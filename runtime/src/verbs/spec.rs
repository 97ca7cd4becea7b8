//! `spec`: a `config.json` to start from, the same that runc writes.

use std::{io, path::Path};

use super::{VerbError, option_error};
use crate::cli::Spec;

const TEMPLATE: &str = include_str!("spec.json");

const FILE: &str = "config.json";

/// # Errors
/// [`VerbError`].
pub(super) fn run(options: &Spec) -> Result<u8, VerbError> {
    use io::Write as _;

    if options.rootless {
        return Err(option_error(
            "--rootless",
            "not supported: lazaret needs root, and a container's root is powerless on the host \
             without it",
        ));
    }
    let bundle = options.bundle.as_deref().unwrap_or(Path::new("."));
    let path = bundle.join(FILE);
    let file = match std::fs::File::create_new(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(VerbError::WrongStatus(format!(
                "File {FILE} exists. Remove it first"
            )));
        }
        result => result,
    };
    file.and_then(|mut file| file.write_all(TEMPLATE.trim_end().as_bytes()))
        .map_err(|source| VerbError::Io {
            action: "write",
            path,
            source,
        })?;
    Ok(0)
}
