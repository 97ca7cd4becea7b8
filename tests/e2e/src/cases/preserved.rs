//! `--preserve-fds`: descriptors beside the standard streams come along, each with its end.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use anyhow::{Result, ensure};

use super::exec::{read_pid, reaped};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    invocation::Invocation,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "preserved",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(pipes_of_run),
    case!(pipes_of_create),
    case!(pipes_of_exec),
    case!(pipes_of_a_detached_exec),
    case!(a_socket_has_two_directions),
    case!(a_writer_learns_that_nobody_reads),
    case!(others_stay_outside),
    case!(what_is_no_stream_is_refused).only(&[Kind::Lazaret], "the others pass on everything"),
];

const PROBES: &[(&str, Probe)] = &[
    ("relay", relay),
    ("converse", converse),
    ("close-input", close_input),
    ("descriptors", descriptors),
];

/// What the runtime's input and output are becomes its descriptors 3 and 4.
const PIPES: &str = "3<&0 4>&1 </dev/null >/dev/null";

/// Its input becomes descriptor 3.
const SOCKET: &str = "3<&0 </dev/null";

#[allow(unsafe_code, reason = "the cases put these descriptors there")]
fn descriptor(number: i32) -> File {
    // SAFETY: each probe takes each of its descriptors once.
    unsafe { File::from_raw_fd(number) }
}

/// Copies descriptor 3 to descriptor 4.
fn relay(_: &[String]) -> Result<u8> {
    io::copy(&mut descriptor(3), &mut descriptor(4))?;
    Ok(0)
}

/// Answers on descriptor 3 when the other side has said everything.
fn converse(_: &[String]) -> Result<u8> {
    let mut socket = UnixStream::from(OwnedFd::from(descriptor(3)));
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    socket.write_all(text.to_uppercase().as_bytes())?;
    socket.shutdown(Shutdown::Write)?;
    Ok(0)
}

/// Closes descriptor 3 and says so.
fn close_input(_: &[String]) -> Result<u8> {
    drop(descriptor(3));
    println!("closed");
    Ok(0)
}

/// Lists its descriptors, the one it lists them with left out.
fn descriptors(_: &[String]) -> Result<u8> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(format!("/proc/self/fd/{name}"));
        if link.is_ok_and(|link| !link.ends_with("fd")) {
            names.push(name);
        }
    }
    names.sort();
    println!("{}", names.join(" "));
    Ok(0)
}

/// Both ends of the pipes that `relay` is to have, and the call that has theirs.
fn with_pipes(call: Invocation) -> Result<(Invocation, io::PipeWriter, io::PipeReader)> {
    let (reader, input) = io::pipe()?;
    let (output, writer) = io::pipe()?;
    let call = call
        .option(&["--preserve-fds", "2"])
        .redirected(PIPES)
        .stdin(reader)
        .stdout(writer);
    Ok((call, input, output))
}

/// Sends some, and demands it back, and the end after it.
fn sends_and_receives(mut input: io::PipeWriter, mut output: io::PipeReader) -> Result<()> {
    let sent = vec![b'x'; 300_000];
    let writer = {
        let sent = sent.clone();
        std::thread::spawn(move || input.write_all(&sent))
    };
    let mut received = Vec::new();
    output.read_to_end(&mut received)?;
    ensure!(received == sent, "{} bytes came back", received.len());
    ensure!(
        writer.join().is_ok_and(|sent| sent.is_ok()),
        "not all was taken"
    );
    Ok(())
}

fn pipes_of_run(test: &Test) -> Result<()> {
    let bundle = test.bundle("relay", &[])?;
    let (run, input, output) = with_pipes(test.runtime.run(&bundle)?)?;
    let running = run.spawn()?;
    sends_and_receives(input, output)?;
    running.wait()?.code(0)?;
    Ok(())
}

fn pipes_of_create(test: &Test) -> Result<()> {
    let bundle = test.bundle("relay", &[])?;
    let (create, input, output) = with_pipes(test.runtime.create(&bundle)?)?;
    create.output()?.code(0)?;
    test.runtime.start(&bundle.id).succeed()?;
    sends_and_receives(input, output)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn pipes_of_exec(test: &Test) -> Result<()> {
    let bundle = test.bundle("hold", &[])?;
    test.runtime.run(&bundle)?.option(&["--detach"]).succeed()?;
    let exec = test.runtime.exec_probe(&bundle.id, "relay", &[]);
    let (exec, input, output) = with_pipes(exec)?;
    let running = exec.spawn()?;
    sends_and_receives(input, output)?;
    running.wait()?.code(0)?;
    test.runtime.destroy(&bundle.id)
}

fn pipes_of_a_detached_exec(test: &Test) -> Result<()> {
    let bundle = test.bundle("hold", &[])?;
    test.runtime.run(&bundle)?.option(&["--detach"]).succeed()?;
    let pid_file = bundle.directory.join("exec.pid");
    let exec = test.runtime.exec_probe(&bundle.id, "relay", &[]);
    let exec = exec.option(&["--detach", "--pid-file", &pid_file.to_string_lossy()]);
    let (exec, input, output) = with_pipes(exec)?;
    exec.output()?.code(0)?;
    sends_and_receives(input, output)?;
    ensure!(reaped(read_pid(&pid_file)?)? == Some(0), "it failed");
    test.runtime.destroy(&bundle.id)
}

fn a_socket_has_two_directions(test: &Test) -> Result<()> {
    let bundle = test.bundle("converse", &[])?;
    let (mut ours, theirs) = UnixStream::pair()?;
    let running = test
        .runtime
        .run(&bundle)?
        .option(&["--preserve-fds", "1"])
        .redirected(SOCKET)
        .stdin(OwnedFd::from(theirs))
        .spawn()?;
    ours.write_all(b"to and fro")?;
    ours.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    ours.read_to_string(&mut answer)?;
    ensure!(answer == "TO AND FRO", "it said {answer:?}");
    running.wait()?.code(0)?;
    Ok(())
}

/// Of a container that was created, so that no runtime waits which could have the pipe open.
fn a_writer_learns_that_nobody_reads(test: &Test) -> Result<()> {
    let bundle = test.bundle("close-input", &[])?;
    let (reader, mut input) = io::pipe()?;
    let (mut said, stdout) = io::pipe()?;
    test.runtime
        .create(&bundle)?
        .option(&["--preserve-fds", "1"])
        .redirected(SOCKET)
        .stdin(reader)
        .stdout(stdout)
        .output()?
        .code(0)?;
    test.runtime.start(&bundle.id).succeed()?;
    let mut text = String::new();
    said.read_to_string(&mut text)?;
    ensure!(text == "closed\n", "it said {text:?}");
    let refused = input.write_all(b"x").map_err(|error| error.kind());
    ensure!(refused == Err(io::ErrorKind::BrokenPipe), "{refused:?}");
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn others_stay_outside(test: &Test) -> Result<()> {
    let bundle = test.bundle("descriptors", &[])?;
    let output = test
        .runtime
        .run(&bundle)?
        .option(&["--preserve-fds", "1"])
        .redirected("3</dev/null 4</dev/null 5</dev/null")
        .output()?
        .code(0)?;
    ensure!(output.stdout == "0 1 2 3\n", "it has {:?}", output.stdout);
    Ok(())
}

fn what_is_no_stream_is_refused(test: &Test) -> Result<()> {
    let bundle = test.bundle("descriptors", &[])?;
    for (redirections, what) in [
        (
            "3</dev/null 4</",
            "descriptor 4, a directory, cannot be passed into a VM",
        ),
        (
            "3</dev/zero 4</",
            "descriptor 3, a character device, cannot be passed into a VM",
        ),
        ("3</proc/self/ns/uts", "descriptor 3, uts:["),
        ("3</dev/null", "unable to stat preserved-fd 1 (of 2)"),
    ] {
        test.runtime
            .run(&bundle)?
            .option(&["--preserve-fds", "2"])
            .redirected(redirections)
            .output()?
            .fails(1, &[what])?;
    }
    Ok(())
}
