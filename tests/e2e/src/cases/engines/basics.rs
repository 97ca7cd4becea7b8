//! What either engine must do with a container in the foreground: streams, exit codes, terminals.

use std::io::Write as _;

use anyhow::Result;
use rustix::process::Signal;

use super::{super::pty::new_terminal, Engine, is};

/// Standard streams, and exit codes: the program's own, and the engine's for what went wrong.
pub(super) fn streams_and_exit_codes(engine: &Engine<'_>) -> Result<()> {
    let (reader, mut writer) = std::io::pipe()?;
    writer.write_all(b"through a pipe\n")?;
    drop(writer);
    let script = "cat; echo err >&2; exit 42";
    let output = engine
        .run(&["--rm", "-i"], &["sh", "-c", script])
        .stdin(reader)
        .output()?
        .code(42)?;
    is(&output.stdout, "through a pipe\n")?;
    is(&output.stderr, "err\n")?;
    let wrong = engine.run(&["--rm", "--no-such"], &["true"]).output()?;
    wrong.fails(125, &["no-such"])?;
    let unknown = engine.run(&["--rm"], &["nonsuch"]).output()?;
    unknown.fails(127, &["nonsuch", "executable file not found"])?;
    let no_program = engine.run(&["--rm"], &["/etc/passwd"]).output()?;
    no_program.fails(126, &["/etc/passwd", "permission denied"])?;
    Ok(())
}

/// Terminals of the container's first process and of another, with their sizes.
pub(super) fn terminals(engine: &Engine<'_>) -> Result<()> {
    let (mut caller, theirs) = new_terminal(93, 31)?;
    let script = "trap 'stty size' WINCH; trap 'exit 5' INT; tty; stty size; \
                  sleep 1000 & while :; do wait; done";
    let running = engine
        .run(&["-it", "--rm", "--name=box"], &["sh", "-c", script])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    caller.expect("/dev/pts/0\r\n")?;
    // Docker sets the size when the program runs already.
    caller.expect("31 93\r\n")?;
    let (mut second, theirs) = new_terminal(80, 24)?;
    let exec = engine
        .call(&["exec", "-it", "box", "sh"])
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    second.expect("# ")?;
    second.type_in("tty; exit 4\n")?;
    second.expect("/dev/pts/1\r\n")?;
    exec.wait()?.code(4)?;
    caller.resize(120, 50)?;
    // The kernel signals the terminal's own session, which the engine is not part of here.
    running.signal(Signal::WINCH)?;
    caller.expect("50 120\r\n")?;
    caller.type_in("\x03")?;
    running.wait()?.code(5)?;
    Ok(())
}
