//! Verbs and options that describe, list or refuse: `ps`, `features`, `spec`, `exec` into
//! sub-cgroups and paused containers, descriptors that cannot come along.

use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

use super::process::expect;
use crate::{
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "verbs",
    cases: CASES,
    probes: PROBES,
};

const LIKE_RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];
const LAZARET: &[Kind] = &[Kind::Lazaret];

const CASES: &[Case] = &[
    case!(processes_as_a_table).only(LIKE_RUNC, "crun lists bare pids"),
    case!(processes_as_json),
    case!(stopped_container_has_no_processes).only(LIKE_RUNC, "crun asks the cgroup that is gone"),
    case!(columns_of_processes).only(LIKE_RUNC, "crun's options of ps are others"),
    case!(features_are_told).only(LIKE_RUNC, "crun 1.8.1 has no features"),
    case!(specification_for_a_user).only(LIKE_RUNC, "crun's document is another"),
    case!(exec_in_a_sub_cgroup)
        .only(LIKE_RUNC, "crun words its errors otherwise")
        .on_v1(LAZARET, super::limits::SEES_V1),
    case!(exec_in_a_paused_container_waits).only(LIKE_RUNC, "crun has no --ignore-paused"),
    case!(process_descriptor).only(LAZARET, "runc has it from version 1.2 on"),
    case!(listening_sockets_are_refused).only(LAZARET, super::vm::REASON),
    case!(checkpoints_are_refused).only(LAZARET, "the reference runtimes call criu"),
    case!(errors_reach_the_log),
];

const PROBES: &[(&str, Probe)] = &[("make-directory", make_directory)];

/// Makes a directory.
fn make_directory(arguments: &[String]) -> Result<u8> {
    fs::create_dir(arguments.first().context("no path given")?)?;
    Ok(0)
}

fn processes_as_a_table(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let table = test.runtime.verb("ps", &[&bundle.id]).succeed()?.stdout;
    let mut lines = table.lines();
    let heading = lines.next().unwrap_or_default();
    let words: Vec<_> = heading.split_whitespace().collect();
    ensure!(
        words == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"],
        "{heading}"
    );
    let rest: Vec<_> = lines.collect();
    ensure!(
        rest.len() == 1 && rest[0].starts_with("root ") && rest[0].ends_with("/probe probe hold"),
        "{rest:?}"
    );
    test.runtime.destroy(&bundle.id)?;
    test.runtime
        .verb("ps", &[&bundle.id])
        .output()?
        .fails(1, &[])?;
    Ok(())
}

/// Having no processes is no failure.
fn stopped_container_has_no_processes(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    test.runtime.kill(&bundle.id, "KILL").succeed()?;
    test.runtime.wait_for_end(&bundle.id)?;
    let ps = || test.runtime.verb("ps", &[&bundle.id]);
    let table = ps().succeed()?.stdout;
    ensure!(
        table.starts_with("UID ") && table.lines().count() == 1,
        "{table}"
    );
    let list = ps().option(&["--format", "json"]).succeed()?.stdout;
    ensure!(list.trim() == "null", "{list}");
    let kill = test.runtime.kill(&bundle.id, "0");
    kill.option(&["--all"]).succeed()?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// Process ids of this host: whoever reads them must not take a stranger for the container.
fn processes_as_json(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let pid = test.runtime.pid(&bundle.id)?.as_raw_nonzero().get();
    let pids = test
        .runtime
        .verb("ps", &[&bundle.id])
        .option(&["--format", "json"])
        .succeed()?
        .json()?;
    ensure!(
        pids.as_array()
            .is_some_and(|pids| pids.contains(&pid.into())),
        "{pids} without {pid}"
    );
    test.runtime.destroy(&bundle.id)
}

fn columns_of_processes(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    for (options, expected) in [
        (&["-e", "-x"][..], "PID TTY STAT TIME COMMAND"),
        (&["-e", "-o", "pid,args"], "PID COMMAND"),
        (
            &["aux"],
            "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
        ),
    ] {
        let words = [&[bundle.id.as_str()], options].concat();
        let table = test.runtime.verb("ps", &words).succeed()?.stdout;
        let heading = table.lines().next().unwrap_or_default();
        let heading = heading.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(heading == expected, "{options:?}: {heading}");
        ensure!(table.contains("probe hold"), "{options:?}: {table}");
    }
    test.runtime
        .verb("ps", &[&bundle.id, "-e", "-o", "args"])
        .output()?
        .fails(1, &["PID"])?;
    test.runtime.destroy(&bundle.id)
}

fn features_are_told(test: &Test) -> Result<()> {
    let features = test.runtime.verb("features", &[]).succeed()?.json()?;
    expect(&features, "/ociVersionMin", &"1.0.0".into())?;
    expect(&features, "/linux/cgroup/v2", &true.into())?;
    let has = |pointer: &str, word: &str| {
        let list = features.pointer(pointer).and_then(Value::as_array);
        list.is_some_and(|list| list.contains(&word.into()))
    };
    for (pointer, word) in [
        ("/mountOptions", "rro"),
        ("/linux/namespaces", "pid"),
        ("/linux/capabilities", "CAP_SYS_ADMIN"),
    ] {
        ensure!(has(pointer, word), "{pointer} without {word}: {features}");
    }
    Ok(())
}

fn specification_for_a_user(test: &Test) -> Result<()> {
    let directory = test.directory.join("new");
    fs::create_dir(&directory)?;
    test.runtime
        .verb("spec", &[])
        .option(&["--bundle", &directory.to_string_lossy(), "--rootless"])
        .succeed()?;
    let spec: Value = serde_json::from_slice(&fs::read(directory.join("config.json"))?)?;
    let namespaces = spec["linux"]["namespaces"].to_string();
    ensure!(namespaces.contains("\"user\""), "{namespaces}");
    ensure!(!namespaces.contains("\"network\""), "{namespaces}");
    expect(&spec, "/linux/uidMappings/0/containerID", &0.into())
}

fn exec_in_a_sub_cgroup(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    if let Some(mounts) = bundle.config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    bundle.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]);
    test.runtime.launch(&bundle)?;
    test.runtime
        .exec_probe(&bundle.id, "make-directory", &["/sys/fs/cgroup/below"])
        .succeed()?;
    for (path, expected) in [
        ("below", "0::/below"),
        ("/below", "0::/below"),
        ("/", "0::/"),
    ] {
        let report = test
            .runtime
            .exec_probe(&bundle.id, "report", &[])
            .option(&["--cgroup", path])
            .succeed()?
            .json()?;
        expect(&report, "/cgroup", &expected.into()).with_context(|| path.to_owned())?;
    }
    for (path, words) in [
        ("..", ".. is not a sub cgroup path"),
        ("nonexistent", "/nonexistent/cgroup.procs: no such file"),
    ] {
        test.runtime
            .exec_probe(&bundle.id, "report", &[])
            .option(&["--cgroup", path])
            .output()?
            .fails(255, &[words])?;
    }
    test.runtime.destroy(&bundle.id)
}

fn exec_in_a_paused_container_waits(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    test.runtime.verb("pause", &[&bundle.id]).succeed()?;
    test.runtime
        .exec_probe(&bundle.id, "exit", &["0"])
        .output()?
        .fails(255, &["cannot exec in a paused container"])?;
    let waiting = test
        .runtime
        .exec_probe(&bundle.id, "exit", &["9"])
        .option(&["--ignore-paused"])
        .spawn()?;
    test.runtime.status_is(&bundle.id, "paused")?;
    test.runtime.verb("resume", &[&bundle.id]).succeed()?;
    waiting.wait()?.code(9)?;
    test.runtime.destroy(&bundle.id)
}

fn process_descriptor(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let path = test.directory.join("pidfd.sock");
    let listener = UnixListener::bind(&path)?;
    test.runtime
        .create(&bundle)?
        .option(&["--pidfd-socket", &path.to_string_lossy()])
        .succeed()?;
    let (socket, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let pidfd: Option<OwnedFd> = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let pidfd = pidfd.context("no descriptor came")?;
    let signal = rustix::process::Signal::KILL;
    rustix::process::pidfd_send_signal(&pidfd, signal).context("it is of no process")?;
    test.runtime.wait_for_end(&bundle.id)?;
    test.runtime.delete(&bundle.id).succeed()?;
    Ok(())
}

/// What a service manager leaves to the runtime for the container: a shell makes it so.
fn listening_sockets_are_refused(test: &Test) -> Result<()> {
    let bundle = test.bundle("exit", &["0"])?;
    bundle.save()?;
    let run = |variables: &str| {
        let script = format!("{variables} exec \"$0\" \"$@\"");
        Command::new("/bin/sh")
            .args(["-c", &script])
            .arg(&test.runtime.program)
            .arg("--root")
            .arg(&test.runtime.root)
            .args(["run", "--bundle"])
            .arg(&bundle.directory)
            .arg(&bundle.id)
            .output()
    };
    let output = run("LISTEN_PID=$$ LISTEN_FDS=2")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{stderr}");
    ensure!(
        stderr.contains("LISTEN_FDS: 2 listening sockets cannot be passed into a VM"),
        "{stderr}"
    );
    // Sockets for somebody else are none of the container's business.
    let output = run("LISTEN_PID=1 LISTEN_FDS=2")?;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

fn checkpoints_are_refused(test: &Test) -> Result<()> {
    for verb in ["checkpoint", "restore"] {
        test.runtime
            .verb(verb, &["x"])
            .option(&["--image-path", "/images", "--tcp-established"])
            .output()?
            .fails(1, &[verb, "not supported yet"])?;
    }
    Ok(())
}

/// As engines read it: the last line of a log in JSON is what went wrong.
fn errors_reach_the_log(test: &Test) -> Result<()> {
    let path = test.directory.join("log.json");
    let log = path.to_string_lossy().into_owned();
    test.runtime
        .verb("state", &["no-such-container"])
        .global(&["--log", &log, "--log-format", "json"])
        .output()?
        .code(1)?;
    let text = fs::read_to_string(&path)?;
    let line: Value = serde_json::from_str(text.lines().last().context("the log is empty")?)?;
    expect(&line, "/level", &"error".into())?;
    let message = line["msg"].as_str().context("no message")?;
    ensure!(
        test.runtime.kind == Kind::Crun || message.contains("does not exist"),
        "{message}"
    );
    ensure!(line["time"].is_string(), "{line}");
    Ok(())
}
