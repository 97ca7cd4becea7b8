//! `exec`: a further process in a running container.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};

use super::process::{expect, status};
use crate::{
    bundle::{Bundle, probe_args},
    case::{Case, Probe, Test, Topic, case},
    dialogue::Dialogue,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "exec",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(joins_the_container),
    case!(inherits_the_process_of_the_container).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun starts in the root directory",
    ),
    case!(environment_is_added).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun replaces the environment",
    ),
    case!(working_directory),
    case!(user),
    case!(capability).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun replaces the capabilities",
    ),
    case!(process_file),
    case!(process_file_with_little_in_it)
        .only(&[Kind::Runc, Kind::Lazaret], "crun wants more of the file"),
    case!(detached_with_pid_file),
    case!(program_is_missing).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun leaves the process that failed to its caller",
    ),
    case!(program_cannot_run).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun does not name the program",
    ),
    case!(ends_with_the_container),
    case!(returns_though_a_child_holds_the_streams).only(
        &[Kind::Crun, Kind::Lazaret],
        "runc copies the streams and waits for their end",
    ),
    case!(streams_are_told_apart),
];

const PROBES: &[(&str, Probe)] = &[("leave-child", leave_child)];

/// Starts a child that keeps the standard streams, and exits with 6.
fn leave_child(_: &[String]) -> Result<u8> {
    std::process::Command::new(crate::bundle::PROBE)
        .args(["probe", "hold"])
        .spawn()?;
    println!("left");
    Ok(6)
}

/// A running, idle container.
fn running(test: &Test) -> Result<Bundle> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    Ok(bundle)
}

/// What the probe reports when it is started with these options.
fn reported(test: &Test, id: &str, options: &[&str]) -> Result<Value> {
    test.runtime
        .exec_probe(id, "report", &[])
        .option(options)
        .succeed()?
        .json()
}

fn joins_the_container(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let output = test
        .runtime
        .exec_probe(&bundle.id, "report", &["/proc/1/cmdline"])
        .succeed()?;
    let report = output.json()?;
    expect(
        &report,
        "/files/~1proc~11~1cmdline",
        &json!("/probe\0probe\0hold\0"),
    )?;
    expect(&report, "/hostname", &json!("guest"))?;
    expect(&report, "/cgroup", &json!("0::/"))?;
    ensure!(report["pid"] != 1, "it is the first process: {report}");
    let first = reported(test, &bundle.id, &[])?;
    ensure!(
        first["namespaces"] == report["namespaces"],
        "two calls see different namespaces"
    );
    test.runtime.destroy(&bundle.id)
}

fn inherits_the_process_of_the_container(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(
        "/process/user",
        json!({ "uid": 1000, "gid": 1000, "additionalGids": [77] }),
    );
    bundle.set(
        "/process/env",
        json!(["PATH=/bin", "HOME=/home", "COLOUR=green"]),
    );
    bundle.set("/process/cwd", json!("/etc"));
    bundle.set("/process/noNewPrivileges", json!(true));
    bundle.set(
        "/process/rlimits",
        json!([{ "type": "RLIMIT_NOFILE", "soft": 199, "hard": 199 }]),
    );
    test.runtime.launch(&bundle)?;
    let report = reported(test, &bundle.id, &[])?;
    expect(&report, "/cwd", &json!("/etc"))?;
    expect(
        &report,
        "/environment",
        &json!(["PATH=/bin", "HOME=/home", "COLOUR=green"]),
    )?;
    ensure!(
        status(&report, "Uid")? == "1000 1000 1000 1000",
        "uid {}",
        status(&report, "Uid")?
    );
    ensure!(
        status(&report, "Groups")? == "77",
        "groups {}",
        status(&report, "Groups")?
    );
    ensure!(
        status(&report, "NoNewPrivs")? == "1",
        "no_new_privs is not set"
    );
    let limits = report["limits"].to_string();
    ensure!(
        limits.contains("199                  199"),
        "limits: {limits}"
    );
    test.runtime.destroy(&bundle.id)
}

fn environment_is_added(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let report = reported(
        test,
        &bundle.id,
        &["--env", "COLOUR=green", "--env", "EMPTY="],
    )?;
    let words = report["environment"].to_string();
    for word in ["PATH=/bin:/", "COLOUR=green", "EMPTY="] {
        ensure!(
            words.contains(&format!("\"{word}\"")),
            "{word} is not in {words}"
        );
    }
    test.runtime.destroy(&bundle.id)
}

fn working_directory(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    expect(
        &reported(test, &bundle.id, &["--cwd", "/etc"])?,
        "/cwd",
        &json!("/etc"),
    )?;
    test.runtime.destroy(&bundle.id)
}

fn user(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    for (option, uid, gid) in [("1000:2000", "1000", "2000"), ("33", "33", "0")] {
        let report = reported(test, &bundle.id, &["--user", option])?;
        let (found_uid, found_gid) = (status(&report, "Uid")?, status(&report, "Gid")?);
        ensure!(
            found_uid.starts_with(&format!("{uid} ")),
            "--user {option}: uid {found_uid}"
        );
        ensure!(
            found_gid.starts_with(&format!("{gid} ")),
            "--user {option}: gid {found_gid}"
        );
    }
    test.runtime.destroy(&bundle.id)
}

fn capability(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let before = reported(test, &bundle.id, &[])?;
    let after = reported(test, &bundle.id, &["--cap", "CAP_SYS_CHROOT"])?;
    let set = |report: &Value| {
        Ok::<_, anyhow::Error>(u64::from_str_radix(&status(report, "CapEff")?, 16)?)
    };
    ensure!(
        set(&after)? == set(&before)? | 1 << 18,
        "{:x} and {:x}",
        set(&before)?,
        set(&after)?
    );
    test.runtime.destroy(&bundle.id)
}

/// What a file leaves out is zero: it needs neither a user nor an environment.
fn process_file_with_little_in_it(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let path = test.directory.join("process.json");
    let exec = |process: Value| {
        fs::write(&path, process.to_string())?;
        test.runtime
            .exec(&bundle.id, &[])
            .option(&["--process", &path.to_string_lossy()])
            .output()
    };
    let report = exec(json!({ "args": probe_args("report", &[]), "cwd": "/" }))?.code(0)?;
    ensure!(
        status(&report.json()?, "Uid")?.starts_with("0 "),
        "somebody else ran it: {}",
        report.stdout
    );
    for (process, words) in [
        (json!({ "cwd": "/" }), "args must not be empty"),
        (
            json!({ "args": ["/probe"] }),
            "Cwd property must not be empty",
        ),
        (
            json!({ "args": ["/probe"], "cwd": "etc" }),
            "Cwd must be an absolute path",
        ),
    ] {
        exec(process)?.fails(255, &[words])?;
    }
    test.runtime.destroy(&bundle.id)
}

fn process_file(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let path = test.directory.join("process.json");
    let process = json!({
        "args": probe_args("report", &["x"]),
        "cwd": "/tmp",
        "env": ["ONLY=this"],
        "user": { "uid": 7, "gid": 8 },
    });
    fs::write(&path, process.to_string())?;
    let report = test
        .runtime
        .exec(&bundle.id, &[])
        .option(&["--process", &path.to_string_lossy()])
        .succeed()?
        .json()?;
    expect(&report, "/cwd", &json!("/tmp"))?;
    expect(&report, "/arguments", &json!(["x"]))?;
    ensure!(
        report["environment"].to_string().contains("ONLY=this"),
        "{}",
        report["environment"]
    );
    ensure!(
        status(&report, "Uid")?.starts_with("7 "),
        "uid {}",
        status(&report, "Uid")?
    );
    test.runtime.destroy(&bundle.id)
}

fn detached_with_pid_file(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let pid_file = test.directory.join("pid");
    let (reader, writer) = std::io::pipe()?;
    test.runtime
        .exec_probe(&bundle.id, "tell", &[])
        .option(&["--detach", "--pid-file", &pid_file.to_string_lossy()])
        .stdout(writer)
        .succeed()?;
    let mut told = Dialogue::after("ready\n", reader)?;
    let pid = read_pid(&pid_file)?;
    kill_process(pid, Signal::TERM).context("the pid file names no process")?;
    told.expect("got 15\n")?;
    ensure!(reaped(pid)? == Some(15), "the exit code was lost");
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

/// The pid in a file that `--pid-file` wrote.
pub(super) fn read_pid(path: &Path) -> Result<Pid> {
    let number: i32 = fs::read_to_string(path)?
        .parse()
        .context("the pid file has no number")?;
    Pid::from_raw(number).context("the pid file has no pid")
}

/// The exit code of a process whose runtime left it to this subreaper. Until it is reaped, the
/// first process of its pid namespace cannot end.
pub(super) fn reaped(pid: Pid) -> Result<Option<i32>> {
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .context("the process is no child of its subreaper")?
        .context("it has no status")?;
    Ok(status.exit_status())
}

fn program_is_missing(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    test.runtime
        .exec(&bundle.id, &["/no/such/program"])
        .output()?
        .fails(255, &["/no/such/program"])?;
    test.runtime
        .exec(&bundle.id, &["nothing-on-path"])
        .output()?
        .fails(255, &["nothing-on-path"])?;
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

fn program_cannot_run(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    test.runtime
        .exec(&bundle.id, &["/etc/passwd"])
        .output()?
        .fails(255, &["/etc/passwd"])?;
    test.runtime
        .exec(&bundle.id, &["/etc"])
        .output()?
        .fails(255, &["/etc"])?;
    test.runtime.destroy(&bundle.id)
}

/// The end of the first process ends all others of its pid namespace.
fn ends_with_the_container(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let (reader, writer) = std::io::pipe()?;
    let call = test
        .runtime
        .exec_probe(&bundle.id, "tell", &[])
        .stdout(writer)
        .spawn()?;
    let _told = Dialogue::after("ready\n", reader)?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    call.wait()?.code(137)?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

fn returns_though_a_child_holds_the_streams(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let output = test
        .runtime
        .exec_probe(&bundle.id, "leave-child", &[])
        .output()?
        .code(6)?;
    ensure!(output.stdout == "left\n", "got {:?}", output.stdout);
    test.runtime.status_is(&bundle.id, "running")?;
    test.runtime.destroy(&bundle.id)
}

fn streams_are_told_apart(test: &Test) -> Result<()> {
    let bundle = running(test)?;
    let output = test
        .runtime
        .exec_probe(&bundle.id, "say", &["one", "two"])
        .succeed()?;
    ensure!(
        (&*output.stdout, &*output.stderr) == ("one\n", "two\n"),
        "{output:?}"
    );
    test.runtime.destroy(&bundle.id)
}
