//! Signals: how a process dies of one, and how one gets to it.

use std::io::Write as _;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{SigHandler, SigSet};
use rustix::process::{Signal, getpid, kill_process};

use crate::{
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    invocation::Running,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "signals",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(death_by_each_signal).timeout_s(240),
    case!(kill_of_the_init_process).covers(&["runtime#kill-4"]),
    case!(kill_takes_names_and_numbers).covers(&["runtime#kill-4"]),
    case!(kill_of_an_unknown_signal).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun takes any word for a signal",
    ),
    case!(run_forwards_signals),
    case!(exec_forwards_signals),
];

const PROBES: &[(&str, Probe)] = &[("hold", hold), ("die", die), ("tell", tell)];

/// Signals whose default action ends the process, without SIGKILL, by number.
const DEADLY: &[i32] = &[
    1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 24, 25, 26, 27, 29, 30, 31, 34, 64,
];

/// Stays until SIGTERM, then exits with 0.
fn hold(_: &[String]) -> Result<u8> {
    let mut signals = SigSet::empty();
    signals.add(nix::sys::signal::SIGTERM);
    signals.thread_block()?;
    signals.wait()?;
    Ok(0)
}

/// Dies of the given signal.
fn die(arguments: &[String]) -> Result<u8> {
    let number: i32 = arguments.first().context("no signal given")?.parse()?;
    set_default_action(number);
    kill_process(getpid(), signal_of(number)?)?;
    // A signal that a process sends itself arrives before kill returns.
    Ok(0)
}

/// The signal with this number, real-time signals included.
#[allow(unsafe_code, reason = "no safe call makes a real-time signal")]
fn signal_of(number: i32) -> Result<Signal> {
    if let Some(signal) = Signal::from_named_raw(number) {
        return Ok(signal);
    }
    ensure!((34..=64).contains(&number), "{number} is no signal");
    // SAFETY: the number was just checked to be a real-time signal that the C library does not
    // keep for itself, which are 32 and 33.
    Ok(unsafe { Signal::from_raw_unchecked(number) })
}

/// Rust programs ignore SIGPIPE from their first instruction on, and handle SIGSEGV and SIGBUS.
#[allow(unsafe_code, reason = "no safe call sets a signal's disposition")]
fn set_default_action(number: i32) {
    if let Ok(signal) = nix::sys::signal::Signal::try_from(number) {
        // SAFETY: the default action replaces a handler that only reports stack overflows; this
        // process is about to end.
        let before = unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) };
        before.ok();
    }
}

/// Says `ready`, then the number of every signal it gets, until SIGTERM, which it exits with.
fn tell(_: &[String]) -> Result<u8> {
    let mut signals = SigSet::all();
    signals.remove(nix::sys::signal::SIGCHLD);
    signals.thread_block()?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    loop {
        let signal = signals.wait()?;
        writeln!(out, "got {}", signal as i32)?;
        if signal == nix::sys::signal::SIGTERM {
            return Ok(15);
        }
    }
}

fn death_by_each_signal(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    for group in DEADLY.chunks(4) {
        let running = group
            .iter()
            .map(|signal| {
                let word = signal.to_string();
                Ok((
                    signal,
                    test.runtime
                        .exec_probe(&bundle.id, "die", &[&word])
                        .spawn()?,
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        for (signal, call) in running {
            call.wait()?.code(128 + signal)?;
        }
    }
    test.runtime
        .exec_probe(&bundle.id, "die", &["9"])
        .output()?
        .code(137)?;
    test.runtime.destroy(&bundle.id)
}

fn kill_of_the_init_process(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let run = test.runtime.run(&bundle)?.option(&["--detach"]);
    run.succeed()?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;

    let (reader, writer) = std::io::pipe()?;
    let bundle = test.bundle("tell", &[])?;
    let running = test.runtime.run(&bundle)?.stdout(writer).spawn()?;
    let _told = Dialogue::after("ready\n", reader)?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    running.wait()?.code(137)?;
    Ok(())
}

fn kill_takes_names_and_numbers(test: &Test) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let bundle = test.bundle("tell", &[])?;
    let running = test.runtime.run(&bundle)?.stdout(writer).spawn()?;
    let mut told = Dialogue::after("ready\n", reader)?;
    for (name, number) in [
        ("USR1", 10),
        ("SIGUSR2", 12),
        ("1", 1),
        ("INT", 2),
        ("SIGWINCH", 28),
    ] {
        test.runtime.kill(&bundle.id, name).succeed()?;
        told.expect(&format!("got {number}\n"))
            .with_context(|| format!("kill {name}"))?;
    }
    // Without a signal it is SIGTERM.
    test.runtime.verb("kill", &[&bundle.id]).succeed()?;
    told.expect("got 15\n")?;
    running.wait()?.code(15)?;
    Ok(())
}

fn kill_of_an_unknown_signal(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    for signal in ["SIGNONE", "65", "-1", "TERM KILL"] {
        let output = test.runtime.kill(&bundle.id, signal).output()?;
        ensure!(!output.status.success(), "kill {signal:?} succeeded");
    }
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

fn run_forwards_signals(test: &Test) -> Result<()> {
    let (reader, writer) = std::io::pipe()?;
    let bundle = test.bundle("tell", &[])?;
    let running = test.runtime.run(&bundle)?.stdout(writer).spawn()?;
    forwards(&running, Dialogue::from(reader))?;
    running.wait()?.code(15)?;
    Ok(())
}

fn exec_forwards_signals(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let (reader, writer) = std::io::pipe()?;
    let running = test
        .runtime
        .exec_probe(&bundle.id, "tell", &[])
        .stdout(writer)
        .spawn()?;
    forwards(&running, Dialogue::from(reader))?;
    running.wait()?.code(15)?;
    test.runtime.destroy(&bundle.id)
}

fn forwards(running: &Running, mut told: Dialogue) -> Result<()> {
    told.expect("ready\n")?;
    for signal in [
        Signal::HUP,
        Signal::USR1,
        Signal::USR2,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
    ] {
        running.signal(signal)?;
        told.expect(&format!("got {}\n", signal.as_raw()))?;
    }
    Ok(())
}
