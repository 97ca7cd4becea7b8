//! Whoever joins the mount namespace of the container's pid finds the container's files: engines
//! copy files so.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::{
    bundle::PROBE,
    case::{Case, Probe, Test, Topic, case},
    invocation::{Invocation, Output},
};

pub(crate) const TOPIC: Topic = Topic {
    name: "joined",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(root_and_binds_are_the_containers),
    case!(readonly_root_stays_so),
    case!(proc_is_the_containers),
];

const PROBES: &[(&str, Probe)] = &[("look", look), ("leave", leave)];

/// Prints the content of each file.
fn look(files: &[String]) -> Result<u8> {
    for file in files {
        print!(
            "{}",
            fs::read_to_string(file).with_context(|| file.clone())?
        );
    }
    Ok(0)
}

/// Makes each file, with its name in it.
fn leave(files: &[String]) -> Result<u8> {
    for file in files {
        fs::write(file, format!("{file}\n")).with_context(|| file.clone())?;
    }
    Ok(0)
}

/// Runs a probe in the mount namespace of the container's pid, and in nothing else of it.
fn join(test: &Test, id: &str, probe: &str, files: &[&str]) -> Result<Output> {
    let pid = test.runtime.pid(id)?.as_raw_nonzero().to_string();
    let global = vec!["enter".to_owned(), pid];
    let words = [&["probe", probe], files].concat();
    Invocation::new(test.probe.clone(), global, PROBE, &words).output()
}

fn root_and_binds_are_the_containers(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let (file, directory) = (
        test.directory.join("file"),
        test.directory.join("directory"),
    );
    fs::write(&file, "a file\n")?;
    fs::create_dir(&directory)?;
    fs::write(bundle.rootfs().join("in-root"), "in the root\n")?;
    bundle.bind("/etc/file", &file, &[]);
    bundle.bind("/volume/inner", &directory, &[]);
    test.runtime.launch(&bundle)?;
    let output = join(test, &bundle.id, "look", &["/in-root", "/etc/file"])?.code(0)?;
    ensure!(
        output.stdout == "in the root\na file\n",
        "{:?}",
        output.stdout
    );
    join(test, &bundle.id, "leave", &["/left", "/volume/inner/left"])?.code(0)?;
    let exec = test
        .runtime
        .exec_probe(&bundle.id, "look", &["/left", "/volume/inner/left"]);
    let output = exec.succeed()?;
    ensure!(
        output.stdout == "/left\n/volume/inner/left\n",
        "{:?}",
        output.stdout
    );
    ensure!(
        directory.join("left").is_file(),
        "the bind's source lacks it"
    );
    let output = join(test, &bundle.id, "look", &[&file.to_string_lossy()])?;
    ensure!(!output.status.success(), "the host's files are there");
    test.runtime.destroy(&bundle.id)
}

/// Podman shows a container's processes so.
fn proc_is_the_containers(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    test.runtime.launch(&bundle)?;
    let files = ["/proc/1/cmdline", "/proc/1/comm", "/proc/version"];
    let seen = join(test, &bundle.id, "look", &files)?.code(0)?.stdout;
    let exec = test.runtime.exec_probe(&bundle.id, "look", &files);
    let expected = exec.succeed()?.stdout;
    ensure!(seen == expected, "{seen:?}, not {expected:?}");
    let other = join(test, &bundle.id, "look", &["/proc/999999/stat"])?;
    ensure!(!other.status.success(), "{:?}", other.stdout);
    test.runtime.destroy(&bundle.id)
}

fn readonly_root_stays_so(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.set("/root/readonly", serde_json::json!(true));
    test.runtime.launch(&bundle)?;
    let output = join(test, &bundle.id, "leave", &["/left"])?;
    ensure!(output.stderr.contains("Read-only"), "{:?}", output.stderr);
    ensure!(!bundle.rootfs().join("left").exists(), "it was written");
    test.runtime.destroy(&bundle.id)
}
