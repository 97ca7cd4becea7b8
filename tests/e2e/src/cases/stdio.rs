//! Standard streams: every byte arrives, in order, and nothing piles up in between.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::{net::UnixStream, process::CommandExt as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::pipe::{SpliceFlags, splice};

use crate::{
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    host,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "stdio",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(output_is_complete_and_memory_flat)
        .alone()
        .timeout_s(600),
    case!(input_is_complete),
    case!(input_ends),
    case!(input_is_not_held_back),
    case!(input_of_exec_ends),
    case!(streams_are_files),
    case!(streams_are_dev_null),
    case!(streams_are_closed).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun needs its standard streams open",
    ),
    case!(reader_goes_away),
    case!(output_after_the_end_of_input),
    case!(one_pipe_ends_with_both_streams),
    case!(locked_pipe_holds_up_nothing),
];

const PROBES: &[(&str, Probe)] = &[
    ("pour", pour),
    ("drain", drain),
    ("copy", copy),
    ("say", say),
    ("flood", flood),
    ("let-go", let_go),
    ("forward", forward),
];

/// Length of a block of the test pattern, in bytes.
const BLOCK_BYTES: usize = 64 * 1024;
/// Blocks in one MiB.
const BLOCKS_PER_MIB: u64 = (1 << 20) / BLOCK_BYTES as u64;
/// How much more memory all processes of a runtime may have in the end than near the start, in KiB.
const GROWTH_MAX_KIB: u64 = 8 * 1024;

/// A block that differs from all others by its number and its stream: a lost, doubled, swapped or
/// changed byte shows.
fn block(stream: u8, number: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..BLOCK_BYTES)
        .map(|at| (at * 31 + at / 251) as u8 ^ stream)
        .collect();
    stamp(&mut bytes, number);
    bytes
}

fn stamp(bytes: &mut [u8], number: u64) {
    bytes[..8].copy_from_slice(&number.to_le_bytes());
}

/// Writes that many MiB of the pattern.
fn write_pattern(mut out: impl Write, stream: u8, mib: u64) -> Result<()> {
    let mut bytes = block(stream, 0);
    for number in 0..mib * BLOCKS_PER_MIB {
        stamp(&mut bytes, number);
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads to the end and demands exactly that many MiB of the pattern; `each_mib` is called with
/// the number of each MiB as it has come.
fn read_pattern(
    mut input: impl Read,
    stream: u8,
    mib: u64,
    mut each_mib: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    let mut expected = block(stream, 0);
    let mut bytes = vec![0; BLOCK_BYTES];
    for number in 0..mib * BLOCKS_PER_MIB {
        stamp(&mut expected, number);
        input
            .read_exact(&mut bytes)
            .with_context(|| format!("stream {stream} ended in block {number}"))?;
        ensure!(
            bytes == expected,
            "stream {stream} is wrong in block {number}"
        );
        if (number + 1) % BLOCKS_PER_MIB == 0 {
            each_mib((number + 1) / BLOCKS_PER_MIB)?;
        }
    }
    ensure!(
        input.read(&mut bytes)? == 0,
        "stream {stream} has more than {mib} MiB"
    );
    Ok(())
}

fn number(arguments: &[String], at: usize) -> Result<u64> {
    Ok(arguments
        .get(at)
        .context("an argument is missing")?
        .parse()?)
}

/// Writes the pattern to standard output and standard error at the same time.
fn pour(arguments: &[String]) -> Result<u8> {
    let mib = number(arguments, 0)?;
    let errors = std::thread::spawn(move || write_pattern(std::io::stderr(), 2, mib));
    write_pattern(unbuffered_stdout()?, 1, mib)?;
    match errors.join() {
        Ok(outcome) => outcome.map(|()| 0),
        Err(_) => bail!("the writer of standard error panicked"),
    }
}

/// Rust's own standard output looks for line ends in all that it writes.
fn unbuffered_stdout() -> Result<File> {
    use std::os::fd::AsFd as _;
    Ok(File::from(std::io::stdout().as_fd().try_clone_to_owned()?))
}

/// Reads the pattern from standard input to its end.
fn drain(arguments: &[String]) -> Result<u8> {
    read_pattern(std::io::stdin(), 0, number(arguments, 0)?, |_| Ok(()))?;
    println!("complete");
    Ok(0)
}

/// Copies standard input to standard output.
fn copy(_: &[String]) -> Result<u8> {
    std::io::copy(&mut std::io::stdin(), &mut unbuffered_stdout()?)?;
    Ok(0)
}

/// Says the first argument on standard output and the second on standard error.
fn say(arguments: &[String]) -> Result<u8> {
    let [out, error] = arguments else {
        bail!("two arguments are needed")
    };
    println!("{out}");
    eprintln!("{error}");
    Ok(0)
}

/// Writes to standard output until that fails, and exits with 7 if the reason is a lost reader.
fn flood(_: &[String]) -> Result<u8> {
    let mut out = unbuffered_stdout()?;
    loop {
        match out.write_all(&[b'x'; 4096]) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(7),
            other => other?,
        }
    }
}

/// Says so, closes its standard streams, and stays.
fn let_go(_: &[String]) -> Result<u8> {
    println!("letting go");
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let mut stay = Command::new(crate::bundle::PROBE);
    Err(stay.args(["probe", "hold"]).exec().into())
}

/// Has the kernel move standard input to a socket that takes nothing.
fn forward(_: &[String]) -> Result<u8> {
    let (_idle, mut socket) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    while socket.write(&[0; 4096]).is_ok() {}
    socket.set_nonblocking(false)?;
    println!("full");
    let flags = SpliceFlags::empty();
    splice(
        rustix::stdio::stdin(),
        None,
        &socket,
        None,
        BLOCK_BYTES,
        flags,
    )?;
    Ok(0)
}

fn output_is_complete_and_memory_flat(test: &Test) -> Result<()> {
    let mib = if test.full { 256 } else { 64 };
    let bundle = test.bundle("pour", &[&mib.to_string()])?;
    let (out, out_writer) = std::io::pipe()?;
    let (errors, errors_writer) = std::io::pipe()?;
    let running = test
        .runtime
        .run(&bundle)?
        .stdout(out_writer)
        .stderr(errors_writer)
        .timeout(std::time::Duration::from_secs(600))
        .spawn()?;
    let errors = std::thread::spawn(move || read_pattern(errors, 2, mib, |_| Ok(())));
    let runtime = running.pid().as_raw_nonzero().get();
    let mut samples: Vec<u64> = Vec::new();
    let outcome = read_pattern(out, 1, mib, |done| {
        if done % 8 == 0 {
            samples.push(memory_kib(runtime)?);
        }
        Ok(())
    });
    let errors = errors.join();
    running.wait()?.code(0)?;
    outcome?;
    match errors {
        Ok(outcome) => outcome?,
        Err(_) => bail!("the reader of standard error panicked"),
    }
    let (Some(first), Some(most)) = (samples.first(), samples.iter().max()) else {
        bail!("no memory was sampled");
    };
    ensure!(
        most.saturating_sub(*first) <= GROWTH_MAX_KIB,
        "memory grew: {samples:?} KiB"
    );
    Ok(())
}

/// Memory of the runtime's process and all below it but the probe.
fn memory_kib(runtime: i32) -> Result<u64> {
    let mut total = host::resident_kib(runtime).unwrap_or(0);
    for process in host::descendants(rustix::process::getpid().as_raw_nonzero().get())? {
        if process.pid != runtime && process.name != "probe" {
            total += host::resident_kib(process.pid).unwrap_or(0);
        }
    }
    Ok(total)
}

fn input_is_complete(test: &Test) -> Result<()> {
    let mib = if test.full { 256 } else { 16 };
    let bundle = test.bundle("drain", &[&mib.to_string()])?;
    let (input, writer) = std::io::pipe()?;
    let running = test.runtime.run(&bundle)?.stdin(input).spawn()?;
    write_pattern(writer, 0, mib)?;
    let output = running.wait()?.code(0)?;
    ensure!(
        output.stdout == "complete\n",
        "the probe said {:?}",
        output.stdout
    );
    Ok(())
}

fn input_ends(test: &Test) -> Result<()> {
    let bundle = test.bundle("copy", &[])?;
    let (input, writer) = std::io::pipe()?;
    drop(writer);
    let output = test.runtime.run(&bundle)?.stdin(input).succeed()?;
    ensure!(
        output.stdout.is_empty(),
        "output from nothing: {:?}",
        output.stdout
    );

    let bundle = test.bundle("copy", &[])?;
    let (input, mut writer) = std::io::pipe()?;
    writer.write_all(b"no line end")?;
    drop(writer);
    let output = test.runtime.run(&bundle)?.stdin(input).succeed()?;
    ensure!(output.stdout == "no line end", "got {:?}", output.stdout);
    Ok(())
}

/// Each line comes back before the next is written: no layer waits for more.
fn input_is_not_held_back(test: &Test) -> Result<()> {
    let bundle = test.bundle("copy", &[])?;
    let (input, mut writer) = std::io::pipe()?;
    let (reader, out) = std::io::pipe()?;
    let running = test
        .runtime
        .run(&bundle)?
        .stdin(input)
        .stdout(out)
        .spawn()?;
    let mut answers = Dialogue::from(reader);
    for question in ["a", "bc\n", "\n", "def"] {
        writer.write_all(question.as_bytes())?;
        answers.expect(question)?;
    }
    drop(writer);
    running.wait()?.code(0)?;
    ensure!(answers.rest()?.is_empty(), "more came back than was sent");
    Ok(())
}

fn input_of_exec_ends(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let (input, writer) = std::io::pipe()?;
    let running = test
        .runtime
        .exec_probe(&bundle.id, "drain", &["4"])
        .stdin(input)
        .spawn()?;
    write_pattern(writer, 0, 4)?;
    running.wait()?.code(0)?;
    test.runtime.destroy(&bundle.id)
}

fn streams_are_files(test: &Test) -> Result<()> {
    let path = |name: &str| test.directory.join(name);
    fs::write(path("in"), "from a file")?;
    fs::write(path("out"), "before ")?;
    let bundle = test.bundle("copy", &[])?;
    let out = File::options().append(true).open(path("out"))?;
    test.runtime
        .run(&bundle)?
        .stdin(File::open(path("in"))?)
        .stdout(out)
        .succeed()?;
    let written = fs::read_to_string(path("out"))?;
    ensure!(written == "before from a file", "the file has {written:?}");

    let bundle = test.bundle("say", &["to stdout", "to stderr"])?;
    let (out, errors) = (File::create(path("out"))?, File::create(path("errors"))?);
    test.runtime
        .run(&bundle)?
        .stdout(out)
        .stderr(errors)
        .succeed()?;
    let (out, errors) = (
        fs::read_to_string(path("out"))?,
        fs::read_to_string(path("errors"))?,
    );
    ensure!(
        (&*out, &*errors) == ("to stdout\n", "to stderr\n"),
        "got {out:?} and {errors:?}"
    );
    Ok(())
}

fn streams_are_dev_null(test: &Test) -> Result<()> {
    let bundle = test.bundle("copy", &[])?;
    test.runtime
        .run(&bundle)?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .succeed()?;
    let bundle = test.bundle("say", &["unheard", "unheard"])?;
    test.runtime
        .run(&bundle)?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .succeed()?;
    Ok(())
}

/// Descriptors 0 to 2 are not open at all; a shell makes it so.
fn streams_are_closed(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["5"])?;
    bundle.save()?;
    let status = Command::new("/bin/sh")
        .args(["-c", "exec \"$0\" \"$@\" <&- >&- 2>&-"])
        .arg(&test.runtime.program)
        .arg("--root")
        .arg(&test.runtime.root)
        .args(["run", "--bundle"])
        .arg(&bundle.directory)
        .arg(&bundle.id)
        .status()?;
    ensure!(status.code() == Some(5), "ended with {status}");
    Ok(())
}

fn reader_goes_away(test: &Test) -> Result<()> {
    let bundle = test.bundle("flood", &[])?;
    let (mut reader, writer) = std::io::pipe()?;
    let running = test.runtime.run(&bundle)?.stdout(writer).spawn()?;
    reader.read_exact(&mut [0; 100_000])?;
    drop(reader);
    running.wait()?.code(7)?;
    Ok(())
}

fn output_after_the_end_of_input(test: &Test) -> Result<()> {
    let bundle = test.bundle("drain", &["1"])?;
    let (input, writer) = std::io::pipe()?;
    let (reader, out) = std::io::pipe()?;
    let running = test
        .runtime
        .run(&bundle)?
        .stdin(input)
        .stdout(out)
        .spawn()?;
    write_pattern(writer, 0, 1)?;
    let _told = Dialogue::after("complete\n", reader)?;
    running.wait()?.code(0)?;
    Ok(())
}

fn one_pipe_ends_with_both_streams(test: &Test) -> Result<()> {
    let bundle = test.bundle("let-go", &[])?;
    bundle.save()?;
    let (mut reader, writer) = std::io::pipe()?;
    let status = Command::new(&test.runtime.program)
        .arg("--root")
        .arg(&test.runtime.root)
        .args(["run", "--detach", "--bundle"])
        .arg(&bundle.directory)
        .arg(&bundle.id)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .status()?;
    ensure!(status.success(), "ended with {status}");
    let mut all = String::new();
    reader.read_to_string(&mut all)?;
    ensure!(all == "letting go\n", "wrote {all:?}");
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

/// The kernel keeps a pipe locked while what is in it waits for a socket; whoever touches it waits.
fn locked_pipe_holds_up_nothing(test: &Test) -> Result<()> {
    let bundle = test.bundle("forward", &[])?;
    let (input, mut writer) = std::io::pipe()?;
    let (out, out_writer) = std::io::pipe()?;
    let running = test
        .runtime
        .run(&bundle)?
        .stdin(input)
        .stdout(out_writer)
        .spawn()?;
    let _out = Dialogue::after("full\n", out)?;
    writer.write_all(b"This locks it.")?;
    let exec = || test.runtime.exec_probe(&bundle.id, "exit", &["3"]);
    exec().output()?.code(3)?;
    // The pipe may be the container's own.
    let waiting = std::thread::spawn(move || writer.write_all(b"This waits."));
    exec().output()?.code(3)?;
    test.runtime.verb("ps", &[&bundle.id]).succeed()?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    running.wait()?.code(137)?;
    // Whether there was somebody to read it is a matter of who owns the pipe.
    ensure!(waiting.join().is_ok(), "the writer panicked");
    Ok(())
}
