//! The guest side: `lazaret-e2e probe NAME ARGUMENTS`, run inside the container.

use std::process::ExitCode;

use crate::cases;

/// Exit code when a probe itself fails: not one that a runtime gives a meaning to.
const FAILED: u8 = 99;

/// Runs a probe.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let Some((name, arguments)) = arguments.split_first() else {
        eprintln!("probe: no name");
        return ExitCode::from(FAILED);
    };
    let Some(probe) = cases::probe(name) else {
        eprintln!("probe: there is no probe {name}");
        return ExitCode::from(FAILED);
    };
    match probe(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("probe {name}: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
