//! `lazaret-e2e`: end-to-end cases that run against `runc`, `crun` or `lazaret`.
//!
//! The same static binary is several programs: the suite (what a person or `cargo xtask test` calls),
//! `prepare` (makes what some cases need), `suite` (runs the suites of other runtimes), `conformance`
//! (prints `docs/conformance.md`), `case` (one case in its own namespaces, started by the suite),
//! `probe` (the guest side of a case, hard-linked into the container), `room`, `enter` and `log-in` (a
//! place for engines or a systemd, and a program in its namespaces, all started by cases), and the `/init` of a guest
//! that never answers. It must know the runtimes only through their command line: it links no other
//! crate of the project.

#![deny(unsafe_code)]

mod bundle;
mod case;
mod cases;
mod conformance;
mod console;
mod dialogue;
mod enter;
mod host;
mod invocation;
mod isolation;
mod leaks;
mod loop_device;
mod patience;
mod prepare;
mod probe;
mod room;
mod runtime;
mod suite;
mod suites;

use std::process::ExitCode;

use anyhow::Result;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, rest @ ..] = arguments.as_slice()
        && mode == "probe"
    {
        return probe::main(rest);
    }
    if rustix::process::getpid() == rustix::process::Pid::INIT
        && arguments.first().is_some_and(|name| name == "/init")
    {
        // The first process of a guest that never answers; see `cases::vm`.
        loop {
            std::thread::park();
        }
    }
    match dispatch(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lazaret-e2e: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<ExitCode> {
    match arguments {
        [_, mode, request] if mode == "case" => isolation::main(request),
        [_, mode, pid, program, rest @ ..] if mode == "enter" => enter::main(pid, program, rest),
        [_, mode, pid, program, rest @ ..] if mode == "log-in" => enter::log_in(pid, program, rest),
        [_, mode, request] if mode == "room" => room::hold(request),
        [_, mode, rest @ ..] if mode == "prepare" => prepare::main(rest),
        [_, mode, rest @ ..] if mode == "suite" => suites::main(rest),
        [_, mode] if mode == "conformance" => conformance::main(),
        _ => suite::Options::parse_from(arguments).run(),
    }
}
