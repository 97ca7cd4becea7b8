//! `lazaret`, the OCI runtime's command line and the monitor it forks. The binary calls [`main`]
//! and nothing else; the rest is public to the tests and fuzz targets of this crate.
//!
//! A verb reads the state ([`state`]), talks to the guest's agent ([`agent`]), and for `create`
//! turns the bundle into a [`plan`] that a [`monitor`] carries out. What this crate must not know:
//! how a VM is made (`lazaret-vmm`, a process of its own) and how a container is made in the guest
//! (`lazaret-agent`).

use std::{ffi::OsString, process::ExitCode};

use clap::error::ErrorKind;

pub mod config;

mod agent;
mod bundle;
mod caller;
mod cli;
mod hooks;
mod host_cgroup;
mod log;
mod monitor;
mod plan;
mod process;
mod sandbox;
mod seccomp;
mod share;
mod signals;
mod state;
mod sys;
mod terminal;
mod time;
mod user_namespace;
mod verbs;

/// Exit code of a verb that failed.
const FAILURE: u8 = 1;

/// Exit code for a verb that there is not.
const NO_SUCH_VERB: u8 = 3;

/// The command line, for whoever describes it: man pages, completions.
pub fn command_line() -> clap::Command {
    cli::described()
}

/// Runs the verb that `arguments` ask for; returns what the process exits with.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let started_us = time::monotonic_us();
    let cli = match cli::Cli::read(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let log = match log::Log::open(
        cli.global.log.as_deref(),
        cli.global.log_format,
        cli.global.debug,
    ) {
        Ok(log) => log,
        Err(error) => {
            let file = cli.global.log.unwrap_or_default();
            eprintln!("cannot open log {}: {}", file.display(), log::chain(&error));
            return FAILURE.into();
        }
    };
    let log_is_stderr = log.is_stderr();
    log.install();
    log::phase_of("lazaret", started_us, "program started");
    log::phase("command line read");
    match verbs::run(cli) {
        Ok(code) => code.into(),
        Err(error) => {
            let message = log::chain(&error);
            tracing::error!("{message}");
            if !log_is_stderr {
                eprintln!("{message}");
            }
            error.exit_code().into()
        }
    }
}

/// Answers a command line that is no call of a verb: help, or one line that says what is wrong.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // Nobody to tell if standard output is closed.
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::InvalidSubcommand => {
            // As runc, which looks for help first.
            let name = error.get(clap::error::ContextKind::InvalidSubcommand);
            eprintln!(
                "No help topic for '{}'",
                name.map_or_else(String::new, ToString::to_string)
            );
            NO_SUCH_VERB.into()
        }
        _ => {
            let text = error.render().to_string();
            let first: Vec<_> = text
                .lines()
                .take_while(|line| !line.is_empty())
                .map(str::trim)
                .collect();
            let line = first.join(" ");
            eprintln!("{}", line.strip_prefix("error: ").unwrap_or(&line));
            FAILURE.into()
        }
    }
}
