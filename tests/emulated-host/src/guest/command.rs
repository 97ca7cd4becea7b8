//! The command: its streams, its life, and the end of everything it left behind.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::ports;
use crate::relay::Relay;
use crate::wire::{Job, Port, Report};

/// The threads that carry output.
struct Output {
    stdout: Relay,
    stderr: Option<Relay>,
}

/// Runs the job to its end.
pub(super) fn run(job: &Job, stdin: File) -> Result<Report> {
    let (program, arguments) = job
        .arguments
        .split_first()
        .ok_or_else(|| anyhow!("no command was given"))?;
    let mut command = Command::new(program.as_os());
    command
        .args(arguments.iter().map(|argument| argument.as_os()))
        .env_clear()
        .envs(job.environment.iter().map(|(k, v)| (k.as_os(), v.as_os())))
        .current_dir(job.directory.as_os());
    let output = match job.terminal {
        Some(size) => on_terminal(&mut command, stdin, size)?,
        None => on_pipes(&mut command, stdin, job.joined_output)?,
    };
    let has_terminal = job.terminal.is_some();
    // SAFETY: between fork and exec the closure makes only system calls; it neither allocates
    // nor takes a lock.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            if has_terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            Ok(())
        });
    }
    let child = command
        .spawn()
        .with_context(|| format!("starting {} in {}", lossy(program), lossy(&job.directory)))?;
    // The command's ends of pipes and terminal, or output would never end.
    drop(command);
    let status = wait_for(child.id())?;
    end_all()?;
    Ok(Report::Ended {
        status,
        stdout_bytes: output.stdout.wait_for_end(),
        stderr_bytes: output.stderr.map_or(0, |relay| relay.wait_for_end()),
    })
}

fn lossy(bytes: &crate::wire::Bytes) -> String {
    bytes.as_os().to_string_lossy().into_owned()
}

/// Gives the command three pipes, or two where both outputs are one file outside.
fn on_pipes(command: &mut Command, stdin: File, joined: bool) -> Result<Output> {
    let (input, to_input) = pipe()?;
    let (from_output, output) = pipe()?;
    command.stdin(Stdio::from(input));
    Relay::start(stdin, to_input, |_, _| {});
    let stderr = if joined {
        command.stderr(output.try_clone()?);
        None
    } else {
        let (from_errors, errors) = pipe()?;
        command.stderr(errors);
        Some(Relay::start(
            from_errors,
            ports::open(Port::Stderr)?,
            |_, _| {},
        ))
    };
    command.stdout(output);
    let stdout = Relay::start(from_output, ports::open(Port::Stdout)?, |_, _| {});
    Ok(Output { stdout, stderr })
}

fn pipe() -> Result<(File, File)> {
    let (read, write) = std::io::pipe().context("making a pipe")?;
    Ok((OwnedFd::from(read).into(), OwnedFd::from(write).into()))
}

/// Gives the command a terminal of its own.
fn on_terminal(command: &mut Command, stdin: File, size: (u16, u16)) -> Result<Output> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
        .context("opening a terminal")?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let theirs = rustix::fs::open(
        name.as_c_str(),
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .context("opening the terminal's other end")?;
    let (ws_row, ws_col) = size;
    rustix::termios::tcsetwinsize(
        &ours,
        rustix::termios::Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs);
    let ours = File::from(ours);
    Relay::start(stdin, ours.try_clone()?, |_, _| {});
    let stdout = Relay::start(ours, ports::open(Port::Stdout)?, |_, _| {});
    Ok(Output {
        stdout,
        stderr: None,
    })
}

/// Reaps everything until the command has ended; its exit status as a shell has it.
fn wait_for(command: u32) -> Result<u8> {
    loop {
        let Some((pid, status)) =
            rustix::process::wait(WaitOptions::empty()).context("waiting for the command")?
        else {
            continue;
        };
        if pid.as_raw_nonzero().get().cast_unsigned() != command {
            continue;
        }
        let code = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => continue,
        };
        return u8::try_from(code).context("reading the exit status");
    }
}

/// Kills and reaps all that is left, so that nothing writes any more.
fn end_all() -> Result<()> {
    // Group 1, negated, is -1: every process but the first. None being left is fine.
    let _ = rustix::process::kill_process_group(Pid::INIT, Signal::KILL);
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(_) => {}
            Err(rustix::io::Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error).context("reaping what the command left"),
        }
    }
}

/// Sets `lo` up.
pub(super) fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: `ifreq` is plain data; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l'.cast_signed();
    request.ifr_name[1] = b'o'.cast_signed();
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which `request` is and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}
