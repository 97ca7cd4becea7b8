//! `run`: `create` and `start` in one, and in the foreground also the wait and `delete`.

use super::{
    VerbError, delete, foreground,
    launch::{self, Launch},
};
use crate::{
    cli::{Global, Run},
    log, signals,
    terminal::{self, RawMode},
};

/// # Errors
/// [`VerbError`]; nothing is left behind then.
pub(super) fn run(global: &Global, options: &Run) -> Result<u8, VerbError> {
    if !options.detach {
        signals::block();
    }
    let prepared = launch::prepare(global, &options.create, options.detach)?;
    let own_terminal = !options.detach && prepared.wants_callers_terminal();
    // Before the container exists, so that its first output is not mangled; it is put back on
    // every way out of here.
    let raw = own_terminal
        .then(terminal::of_caller)
        .flatten()
        .map(RawMode::enter)
        .transpose()?;
    let how = if options.detach {
        Launch::Started
    } else {
        Launch::InForeground
    };
    let launched = prepared.launch(global, how, options.create.pid_file.as_deref())?;
    if options.detach {
        return Ok(0);
    }
    let terminal = raw.as_ref().map(RawMode::terminal);
    log::phase("monitor has reported");
    let code = foreground::wait(&launched, terminal)?;
    log::phase("monitor has ended");
    drop(raw);
    if !options.keep {
        delete::destroy(&launched.dir)?;
        log::phase("state removed");
    }
    Ok(code)
}
