//! Ends of all kinds, after which nothing may be left; that is checked after every case.

use std::process::Command;

use anyhow::{Result, ensure};
use rustix::process::{Signal, WaitOptions, kill_process};

use super::exec::{read_pid, reaped};
use crate::{
    bundle::PROBE,
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "cleanup",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(children_end_with_the_first_process),
    case!(orphans_go_to_the_first_process),
    case!(delete_while_processes_run),
    case!(delete_while_a_detached_process_runs),
    case!(killed_process_of_the_pid_file),
    case!(failed_start_of_run).only(&[Kind::Runc, Kind::Lazaret], "crun ends with another code"),
    case!(many_children_end_at_once),
];

const PROBES: &[(&str, Probe)] = &[("reaper", reaper), ("orphan", orphan), ("crowd", crowd)];

/// Says `ready`, then waits for children that are not its own, and says the exit code of each.
fn reaper(_: &[String]) -> Result<u8> {
    // One child that stays, so that there is always something to wait for.
    Command::new(PROBE).args(["probe", "hold"]).spawn()?;
    println!("ready");
    loop {
        if let Some((_, status)) = rustix::process::wait(WaitOptions::empty())? {
            println!("reaped {:?}", status.exit_status());
        }
    }
}

/// Starts a process that starts another and ends first, so that the other is an orphan.
fn orphan(arguments: &[String]) -> Result<u8> {
    if arguments.is_empty() {
        let status = Command::new(PROBE)
            .args(["probe", "orphan", "middle"])
            .status()?;
        ensure!(
            status.success(),
            "the process in between ended with {status}"
        );
    } else {
        Command::new(PROBE).args(["probe", "exit", "77"]).spawn()?;
    }
    Ok(0)
}

/// Starts that many children that stay, says `ready`, and exits with 8 at SIGTERM.
fn crowd(arguments: &[String]) -> Result<u8> {
    let count: u32 = arguments.first().map_or(Ok(20), |word| word.parse())?;
    for _ in 0..count {
        Command::new(PROBE).args(["probe", "hold"]).spawn()?;
    }
    let mut signals = nix::sys::signal::SigSet::empty();
    signals.add(nix::sys::signal::SIGTERM);
    signals.thread_block()?;
    println!("ready");
    signals.wait()?;
    Ok(8)
}

fn children_end_with_the_first_process(test: &Test) -> Result<()> {
    let bundle = test.bundle("leave-child", &[])?;
    let output = test.runtime.run(&bundle)?.output()?.code(6)?;
    ensure!(output.stdout == "left\n", "got {:?}", output.stdout);
    Ok(())
}

fn many_children_end_at_once(test: &Test) -> Result<()> {
    let bundle = test.bundle("crowd", &["20"])?;
    let (reader, writer) = std::io::pipe()?;
    let running = test.runtime.run(&bundle)?.stdout(writer).spawn()?;
    let _told = Dialogue::after("ready\n", reader)?;
    test.runtime.kill(&bundle.id, "TERM").succeed()?;
    running.wait()?.code(8)?;
    Ok(())
}

fn orphans_go_to_the_first_process(test: &Test) -> Result<()> {
    let bundle = test.bundle("reaper", &[])?;
    let (reader, writer) = std::io::pipe()?;
    let running = test.runtime.run(&bundle)?.stdout(writer).spawn()?;
    let mut told = Dialogue::after("ready\n", reader)?;
    test.runtime
        .exec_probe(&bundle.id, "orphan", &[])
        .succeed()?;
    told.expect("reaped Some(77)\n")?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    running.wait()?.code(137)?;
    Ok(())
}

fn delete_while_processes_run(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let mut calls = Vec::new();
    for _ in 0..3 {
        let (reader, writer) = std::io::pipe()?;
        let call = test
            .runtime
            .exec_probe(&bundle.id, "tell", &[])
            .stdout(writer)
            .spawn()?;
        // A signal on the way to SIGKILL must not find the stream closed.
        calls.push((call, Dialogue::after("ready\n", reader)?));
    }
    test.runtime.delete_force(&bundle.id).succeed()?;
    for (call, _told) in calls {
        call.wait()?.code(137)?;
    }
    Ok(())
}

fn delete_while_a_detached_process_runs(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let pid_file = test.directory.join("pid");
    test.runtime
        .exec_probe(&bundle.id, "hold", &[])
        .option(&["--detach", "--pid-file", &pid_file.to_string_lossy()])
        .succeed()?;
    let pid = read_pid(&pid_file)?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    reaped(pid)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// Callers that know nothing but the pid file kill that process.
fn killed_process_of_the_pid_file(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    kill_process(test.runtime.pid(&bundle.id)?, Signal::KILL)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.status_is(&bundle.id, "stopped")?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// `run` deletes what it made when it cannot start it.
fn failed_start_of_run(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/process/args", serde_json::json!(["/no/such/program"]));
    test.runtime
        .run(&bundle)?
        .output()?
        .fails(1, &["/no/such/program"])?;
    test.runtime.has_no(&bundle.id)
}
