//! Terminals: the container has one of its own, and the caller sits at its other end.

use std::{
    io::{BufRead as _, IsTerminal as _, Write as _},
    os::fd::OwnedFd,
};

use anyhow::{Result, ensure};
use nix::sys::signal::SigSet;
use rustix::{
    process::Signal,
    termios::{LocalModes, tcgetattr, tcgetwinsize},
};
use serde_json::json;

use super::exec::{read_pid, reaped};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    console::{self, ConsoleSocket},
    dialogue::Dialogue,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "pty",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(all_streams_are_the_terminal),
    case!(first_size),
    case!(resize_is_seen),
    case!(typing_and_end_of_input),
    case!(keys_become_signals),
    case!(hang_up),
    case!(run_in_the_foreground).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun does not hand on the first size",
    ),
    case!(exec_with_a_terminal),
    case!(exec_detached_with_a_terminal),
    case!(console_socket_is_needed),
];

const PROBES: &[(&str, Probe)] = &[("terminal", terminal), ("sizes", sizes), ("echo", echo)];

/// Says which streams are terminals, and what `/dev/console` and the terminal's name are.
fn terminal(_: &[String]) -> Result<u8> {
    let (input, out, error) = (
        std::io::stdin().is_terminal(),
        std::io::stdout().is_terminal(),
        std::io::stderr().is_terminal(),
    );
    let name = rustix::termios::ttyname(std::io::stdin(), Vec::new())?;
    println!("terminals: {input} {out} {error}");
    println!("name: {}", name.to_string_lossy());
    println!("controlling: {}", std::fs::File::open("/dev/tty").is_ok());
    Ok(0)
}

/// Says the terminal's size now and after every change, and the number of every other signal;
/// SIGHUP ends it with 3.
fn sizes(_: &[String]) -> Result<u8> {
    SigSet::all().thread_block()?;
    loop {
        let size = tcgetwinsize(std::io::stdin());
        if let Ok(size) = size {
            println!("size {}x{}", size.ws_col, size.ws_row);
        }
        let signal = SigSet::all().wait()?;
        if signal == nix::sys::signal::SIGHUP {
            return Ok(3);
        }
        println!("got {}", signal as i32);
        if signal == nix::sys::signal::SIGTERM {
            return Ok(0);
        }
    }
}

/// Answers every line until the input ends; the number of lines is the exit code.
fn echo(_: &[String]) -> Result<u8> {
    println!("ready");
    let mut lines = 0;
    for line in std::io::stdin().lock().lines() {
        println!("you said {}", line?);
        lines += 1;
    }
    std::io::stdout().flush()?;
    Ok(lines)
}

/// A bundle whose process has a terminal and runs the probe `name`.
fn with_terminal(test: &Test, name: &str) -> Result<Bundle> {
    let mut bundle = test.bundle(name, &[])?;
    bundle.set("/process/terminal", json!(true));
    Ok(bundle)
}

/// Creates the container and returns its terminal.
fn create(test: &Test, bundle: &Bundle) -> Result<Dialogue> {
    let socket = ConsoleSocket::new(&bundle.directory)?;
    test.runtime
        .create(bundle)?
        .option(&["--console-socket", &socket.path.to_string_lossy()])
        .succeed()?;
    socket.terminal()
}

fn all_streams_are_the_terminal(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "terminal")?;
    let terminal = create(test, &bundle)?;
    test.runtime.start(&bundle.id).succeed()?;
    let text = terminal.rest()?;
    for line in [
        "terminals: true true true",
        "name: /dev/pts/0",
        "controlling: true",
    ] {
        ensure!(text.contains(line), "no {line:?} in {text:?}");
    }
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn first_size(test: &Test) -> Result<()> {
    let mut bundle = with_terminal(test, "sizes")?;
    bundle.set(
        "/process/consoleSize",
        json!({ "width": 101, "height": 37 }),
    );
    let mut terminal = create(test, &bundle)?;
    test.runtime.start(&bundle.id).succeed()?;
    terminal.expect("size 101x37\r\n")?;
    test.runtime.destroy(&bundle.id)
}

fn resize_is_seen(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "sizes")?;
    let mut terminal = create(test, &bundle)?;
    // Before start as well: a caller sets the size as soon as it has the terminal.
    terminal.resize(90, 30)?;
    test.runtime.start(&bundle.id).succeed()?;
    terminal.expect("size 90x30\r\n")?;
    for (columns, rows) in [(100, 40), (1, 1), (400, 200)] {
        terminal.resize(columns, rows)?;
        terminal.expect(&format!("size {columns}x{rows}\r\n"))?;
    }
    test.runtime.destroy(&bundle.id)
}

fn typing_and_end_of_input(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "echo")?;
    let mut terminal = create(test, &bundle)?;
    test.runtime.start(&bundle.id).succeed()?;
    terminal.expect("ready\r\n")?;
    terminal.type_in("hello\n")?;
    // The terminal shows what is typed, then the answer comes.
    terminal.expect("hello\r\nyou said hello\r\n")?;
    terminal.type_in("wrong\x15right\n")?;
    terminal.expect("you said right\r\n")?;
    terminal.type_in("\x04")?;
    terminal.rest()?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn keys_become_signals(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "sizes")?;
    let mut terminal = create(test, &bundle)?;
    test.runtime.start(&bundle.id).succeed()?;
    terminal.expect("size")?;
    for (key, signal) in [("\x03", 2), ("\x1c", 3), ("\x1a", 20)] {
        terminal.type_in(key)?;
        terminal.expect(&format!("got {signal}\r\n"))?;
    }
    test.runtime.destroy(&bundle.id)
}

/// The process gets SIGHUP when the caller closes the terminal.
fn hang_up(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "sizes")?;
    let mut terminal = create(test, &bundle)?;
    test.runtime.start(&bundle.id).succeed()?;
    terminal.expect("size")?;
    drop(terminal);
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// Both ends of a new terminal of that size: the caller's and the program's.
pub(super) fn new_terminal(columns: u16, rows: u16) -> Result<(Dialogue, OwnedFd)> {
    let (ours, theirs) = console::new_terminal()?;
    let ours = Dialogue::from(ours);
    ours.resize(columns, rows)?;
    Ok((ours, theirs))
}

/// The runtime sits between two terminals: its caller's, which it makes raw and sets back, and
/// the container's, whose size follows the caller's.
fn run_in_the_foreground(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "sizes")?;
    let (mut caller, theirs) = new_terminal(93, 31)?;
    let before = tcgetattr(&theirs)?.local_modes;
    let running = test
        .runtime
        .run(&bundle)?
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs.try_clone()?)
        .spawn()?;
    caller.expect("size 93x31\r\n")?;
    ensure!(
        !tcgetattr(&theirs)?.local_modes.contains(LocalModes::ICANON),
        "the terminal is not raw"
    );
    caller.resize(120, 50)?;
    // The kernel signals the terminal's own session, which the runtime is not part of here.
    running.signal(Signal::WINCH)?;
    caller.expect("size 120x50\r\n")?;
    caller.type_in("\x03")?;
    caller.expect("got 2\r\n")?;
    test.runtime.kill(&bundle.id, "TERM").succeed()?;
    running.wait()?.code(0)?;
    let after = tcgetattr(&theirs)?.local_modes;
    ensure!(
        before == after,
        "the terminal's modes were not set back: {before:?}, {after:?}"
    );
    Ok(())
}

fn exec_with_a_terminal(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let (mut caller, theirs) = new_terminal(93, 31)?;
    let running = test
        .runtime
        .exec_probe(&bundle.id, "echo", &[])
        .option(&["--tty"])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    caller.expect("ready\r\n")?;
    caller.type_in("one\ntwo\n")?;
    caller.expect("you said two\r\n")?;
    caller.type_in("\x04")?;
    running.wait()?.code(2)?;
    test.runtime.destroy(&bundle.id)
}

fn exec_detached_with_a_terminal(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let socket = ConsoleSocket::new(&test.directory)?;
    let pid_file = test.directory.join("pid");
    test.runtime
        .exec_probe(&bundle.id, "sizes", &[])
        .option(&[
            "--tty",
            "--detach",
            "--console-socket",
            &socket.path.to_string_lossy(),
        ])
        .option(&["--pid-file", &pid_file.to_string_lossy()])
        .succeed()?;
    let mut terminal = socket.terminal()?;
    terminal.expect("size")?;
    terminal.resize(77, 22)?;
    terminal.expect("size 77x22\r\n")?;
    drop(terminal);
    ensure!(
        reaped(read_pid(&pid_file)?)? == Some(3),
        "it did not end by SIGHUP"
    );
    test.runtime.destroy(&bundle.id)
}

fn console_socket_is_needed(test: &Test) -> Result<()> {
    let bundle = with_terminal(test, "terminal")?;
    test.runtime
        .create(&bundle)?
        .output()?
        .fails(1, &["console"])?;
    Ok(())
}
