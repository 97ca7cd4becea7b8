//! `io.lazaret.*` annotations: what a bundle may say about its VM, as far as the configuration
//! allows it.

use std::path::PathBuf;

use oci_spec::runtime::Spec;

use super::PlanError;
use crate::config::{Config, MEMORY_MIB, VCPUS};

/// What our annotations begin with; all others are passed by.
pub(crate) const ANNOTATION_PREFIX: &str = "io.lazaret.";

const CONSOLE: &str = "vm.console";
const MEMORY: &str = "vm.memory_mib";
const CPUS: &str = "vm.vcpus";

/// All annotations there are, without the prefix.
pub(crate) const ANNOTATIONS: [&str; 3] = [CONSOLE, MEMORY, CPUS];

/// What the annotations say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) memory_mib: Option<u64>,
    pub(super) vcpus: Option<u8>,
    pub(super) console: Option<PathBuf>,
}

/// Reads our annotations of `spec`.
///
/// # Errors
/// [`PlanError`] for one that is unknown, not allowed, or has no valid value.
pub(super) fn parse(spec: &Spec, config: &Config) -> Result<Annotations, PlanError> {
    let mut found = Annotations::default();
    let mut ours: Vec<_> = spec
        .annotations()
        .iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.strip_prefix(ANNOTATION_PREFIX)?, value)))
        .collect();
    // A map has no order, but the first error must be the same each time.
    ours.sort_unstable();
    for (name, value) in ours {
        let field = || format!("annotations[{ANNOTATION_PREFIX}{name}]");
        if !ANNOTATIONS.contains(&name) {
            return Err(PlanError::unsupported(field(), "this annotation is"));
        }
        if !config.annotations.iter().any(|allowed| allowed == name) {
            return Err(PlanError::invalid(
                field(),
                format!("is not allowed: add \"{name}\" to `annotations` in the configuration"),
            ));
        }
        match name {
            MEMORY => found.memory_mib = Some(number(value, MEMORY_MIB, field)?),
            CPUS => {
                let vcpus = number(value, VCPUS, field)?;
                found.vcpus = Some(u8::try_from(vcpus).expect("VCPUS ends below 256"));
            }
            _ if value.starts_with('/') => found.console = Some(value.into()),
            _ => return Err(PlanError::invalid(field(), "must be an absolute path")),
        }
    }
    Ok(found)
}

fn number(
    value: &str,
    range: std::ops::RangeInclusive<u64>,
    field: impl Fn() -> String,
) -> Result<u64, PlanError> {
    value
        .parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            PlanError::invalid(
                field(),
                format!("must be a number from {} to {}", range.start(), range.end()),
            )
        })
}
