//! Bad input: one clear error that names the thing, exit code 1 as runc's, nothing left behind
//! (which is checked after every case).

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    invocation::Output,
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "errors",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(bundle_is_missing).covers(&["runtime#create-1", "runtime#errors-1"]),
    case!(configuration_is_missing).covers(&["runtime#create-1"]),
    case!(configuration_is_not_json).covers(&["config#valid-values-1", "runtime#create-7..8"]),
    case!(configuration_has_wrong_types)
        .only(
            REFUSING,
            "crun takes a number for a text, and a text for a number",
        )
        .covers(&["config#valid-values-1"])
        .right("runc and lazaret: an invalid value is an error"),
    case!(root_is_wrong).covers(&[
        "runtime#lifecycle-2",
        "runtime#create-7..8",
        "config#valid-values-1",
    ]),
    case!(process_is_wrong)
        .only(REFUSING, "crun takes a process without arguments")
        .covers(&["runtime#start-5", "config#process-5"])
        .right("runc and lazaret: `process` and one argument are required"),
    case!(program_is_missing)
        .only(REFUSING, "crun does not name a directory that it is to run")
        .covers(&["runtime#lifecycle-2", "runtime#create-7..8"])
        .right("runc and lazaret, which name the program; it is not asked for"),
    case!(working_directory_is_wrong)
        .only(REFUSING, "crun takes a relative directory")
        .covers(&["config#valid-values-1"])
        .right("runc and lazaret: the directory must be absolute"),
    case!(mount_is_wrong).covers(&[
        "runtime#lifecycle-2",
        "runtime#create-7..8",
        "config#valid-values-1",
    ]),
    case!(bind_source_is_missing).covers(&["runtime#create-7..8"]),
    case!(identifier_is_wrong)
        .only(REFUSING, "crun takes nearly every identifier")
        .covers(&["runtime#create-2..3"])
        .right("each: which ids are valid is up to the runtime"),
    case!(namespace_is_wrong)
        .only(REFUSING, "crun leaves a cgroup behind")
        .covers(&["config#valid-values-1", "runtime#errors-1"])
        .right("runc and lazaret: an error leaves nothing behind"),
    case!(namespace_is_there_twice)
        .only(REFUSING, "crun takes a namespace twice")
        .covers(&["config-linux#namespaces-8"])
        .right("runc and lazaret: the specification demands an error"),
    case!(capability_is_unknown)
        .only(REFUSING, "crun refuses unknown capabilities")
        .covers(&["config#linux-process-1..2", "runtime#warnings-1"])
        .right("runc and lazaret: the specification asks for a warning"),
    case!(resource_limit_is_wrong)
        .only(REFUSING, "crun leaves a cgroup behind")
        .covers(&["config#posix-process-2", "runtime#errors-1"])
        .right("runc and lazaret: an error leaves nothing behind"),
    case!(kernel_parameter_is_wrong).covers(&["runtime#create-7..8", "config#valid-values-1"]),
    case!(device_is_wrong)
        .only(REFUSING, "crun takes a type that does not exist")
        .covers(&["config#valid-values-1"])
        .right("runc and lazaret: a type that does not exist is an error"),
    case!(version_is_wrong)
        .only(LAZARET, "the reference runtimes do not look at it")
        .covers(&["config#valid-values-1"])
        .right("lazaret: a version that is not supported is an invalid value"),
    case!(pid_file_cannot_be_written),
    case!(console_socket_is_missing),
    case!(state_root_cannot_be_made),
    case!(command_line_is_wrong),
    case!(lazaret_names_the_field)
        .only(LAZARET, LAZARET_ONLY)
        .covers(&["config-linux#intelrdt-2", "config#valid-values-1"])
        .right("each: the wording of errors is not specified"),
];

const REFUSING: &[Kind] = &[Kind::Runc, Kind::Lazaret];
const LAZARET: &[Kind] = &[Kind::Lazaret];
const LAZARET_ONLY: &str = "about the wording of lazaret's errors";

const PROBES: &[(&str, Probe)] = &[];

/// Demands that `create` fails with exit code 1, that the error has these words, that lazaret
/// says it in one line, and that no container came of it.
fn refuses(test: &Test, bundle: &Bundle, words: &[&str]) -> Result<()> {
    check(test, test.runtime.create(bundle)?.output()?, words)?;
    test.runtime.has_no(&bundle.id)
}

/// The part of [`refuses`] about the call itself.
pub(super) fn check(test: &Test, output: Output, words: &[&str]) -> Result<()> {
    let output = output.fails(1, words)?;
    let lines = output.stderr.trim_end().lines().count();
    ensure!(
        test.runtime.kind != Kind::Lazaret || lines == 1,
        "{lines} lines: {}",
        output.stderr
    );
    ensure!(
        !output.stderr.contains("panicked at"),
        "it panicked: {}",
        output.stderr
    );
    Ok(())
}

/// [`refuses`], where only lazaret's error has these words.
fn refuses_clearly(test: &Test, bundle: &Bundle, words: &[&str]) -> Result<()> {
    let words = if test.runtime.kind == Kind::Lazaret {
        words
    } else {
        &[]
    };
    refuses(test, bundle, words)
}

/// A valid bundle, changed.
fn changed(test: &Test, pointer: &str, value: serde_json::Value) -> Result<Bundle> {
    let mut bundle = test.idle_bundle()?;
    bundle.set(pointer, value);
    Ok(bundle)
}

fn bundle_is_missing(test: &Test) -> Result<()> {
    let id = format!("{}x", test.tag);
    let output = test
        .runtime
        .verb("create", &[&id])
        .option(&["--bundle", "/no/such/bundle"])
        .output()?;
    check(test, output, &["/no/such/bundle"])
}

fn configuration_is_missing(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let directory = bundle.directory.to_string_lossy().into_owned();
    let output = test
        .runtime
        .verb("create", &[&bundle.id])
        .option(&["--bundle", &directory])
        .output()?;
    check(test, output, &["config.json"])
}

fn configuration_is_not_json(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let directory = bundle.directory.to_string_lossy().into_owned();
    for text in ["", "{", "[]", "{\"process\": }", "\u{0}"] {
        fs::write(bundle.directory.join("config.json"), text)?;
        let output = test
            .runtime
            .verb("create", &[&bundle.id])
            .option(&["--bundle", &directory])
            .output()?;
        check(test, output, &[]).with_context(|| format!("config.json is {text:?}"))?;
    }
    Ok(())
}

fn configuration_has_wrong_types(test: &Test) -> Result<()> {
    for (pointer, value) in [
        ("/process/args", json!("not a list")),
        ("/process/user/uid", json!("root")),
        ("/process/user/uid", json!(-1)),
        ("/mounts", json!({ "destination": "/data" })),
        ("/linux/namespaces", json!("pid")),
        ("/hostname", json!(7)),
    ] {
        refuses(test, &changed(test, pointer, value)?, &[]).with_context(|| pointer.to_owned())?;
    }
    Ok(())
}

fn root_is_wrong(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    if let Some(config) = bundle.config.as_object_mut() {
        config.remove("root");
    }
    refuses(test, &bundle, &["root"]).context("no root")?;
    let bundle = changed(test, "/root/path", json!("not-there"))?;
    refuses(test, &bundle, &["not-there"]).context("root is missing")?;
    let bundle = changed(test, "/root/path", json!("config.json"))?;
    refuses_clearly(test, &bundle, &["config.json"]).context("root is a file")?;
    let bundle = changed(test, "/root/path", json!("loop"))?;
    symlink("loop", bundle.directory.join("loop"))?;
    refuses(test, &bundle, &["loop"]).context("root is a loop of links")
}

fn process_is_wrong(test: &Test) -> Result<()> {
    let bundle = changed(test, "/process/args", json!([]))?;
    refuses(test, &bundle, &["args"]).context("no arguments")?;
    let bundle = changed(test, "/process/args", json!(null))?;
    refuses(test, &bundle, &["args"]).context("arguments are null")?;
    let mut bundle = test.idle_bundle()?;
    if let Some(config) = bundle.config.as_object_mut() {
        config.remove("process");
    }
    refuses(test, &bundle, &["process"]).context("no process")
}

fn program_is_missing(test: &Test) -> Result<()> {
    for program in ["/no/such/program", "nothing-on-path", "/etc"] {
        let bundle = changed(test, "/process/args", json!([program]))?;
        refuses(test, &bundle, &[program])?;
    }
    Ok(())
}

fn working_directory_is_wrong(test: &Test) -> Result<()> {
    refuses(
        test,
        &changed(test, "/process/cwd", json!("relative"))?,
        &["cwd"],
    )?;
    refuses(test, &changed(test, "/process/cwd", json!(""))?, &["cwd"])?;
    // A file is in the way.
    refuses(
        test,
        &changed(test, "/process/cwd", json!("/etc/passwd"))?,
        &["/etc/passwd"],
    )
}

fn mount_is_wrong(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.mount("/work", "tmpfs", "tmpfs", &["size=nonsense"]);
    refuses(test, &bundle, &[]).context("option size=nonsense")?;
    let mut bundle = test.idle_bundle()?;
    bundle.mount("/work", "nosuchfs", "x", &[]);
    refuses_clearly(test, &bundle, &["nosuchfs"]).context("type nosuchfs")?;
    let mut bundle = test.idle_bundle()?;
    bundle.mount("/etc/passwd", "tmpfs", "tmpfs", &[]);
    // crun leaves out the first slash.
    refuses(test, &bundle, &["etc/passwd"]).context("a tmpfs on a file")
}

fn bind_source_is_missing(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    bundle.bind("/data", Path::new("/no/such/source"), &[]);
    refuses(test, &bundle, &["/no/such/source"])
}

fn identifier_is_wrong(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    for id in [
        "",
        "a/b",
        ".",
        "..",
        "../x",
        "a b",
        "ü",
        "a\n",
        &"x".repeat(2000),
    ] {
        bundle.id = id.to_owned();
        let output = test.runtime.create(&bundle)?.output()?;
        check(test, output, &[]).with_context(|| format!("id {id:?}"))?;
    }
    Ok(())
}

fn namespace_is_wrong(test: &Test) -> Result<()> {
    let bundle = changed(test, "/linux/namespaces", json!([{ "type": "nonesuch" }]))?;
    refuses(test, &bundle, &["nonesuch"])?;
    let mut bundle = test.idle_bundle()?;
    bundle.config["linux"]["namespaces"][2]["path"] = json!("/no/such/namespace");
    refuses(test, &bundle, &["/no/such/namespace"])
}

fn namespace_is_there_twice(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let namespaces = json!([{ "type": "mount" }, { "type": "pid" }, { "type": "pid" }]);
    bundle.set("/linux/namespaces", namespaces);
    refuses(test, &bundle, &["pid"])
}

/// The runtime-spec asks for a warning and not for a failure.
fn capability_is_unknown(test: &Test) -> Result<()> {
    let mut bundle = test.bundle("exit", &["0"])?;
    let set = json!(["CAP_CHOWN", "CAP_NONESUCH"]);
    bundle.set(
        "/process/capabilities",
        json!({ "bounding": set, "permitted": set, "effective": set }),
    );
    let output = test.runtime.run(&bundle)?.succeed()?;
    ensure!(
        output.stderr.contains("CAP_NONESUCH"),
        "no warning: {:?}",
        output.stderr
    );
    Ok(())
}

fn resource_limit_is_wrong(test: &Test) -> Result<()> {
    let limit = json!([{ "type": "RLIMIT_NONESUCH", "soft": 1, "hard": 1 }]);
    refuses(
        test,
        &changed(test, "/process/rlimits", limit)?,
        &["RLIMIT_NONESUCH"],
    )?;
    let limit = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 50 }]);
    refuses(test, &changed(test, "/process/rlimits", limit)?, &[]).context("soft above hard")
}

fn kernel_parameter_is_wrong(test: &Test) -> Result<()> {
    for name in ["kernel.msg.nonesuch", "net.nonesuch"] {
        let mut bundle = test.idle_bundle()?;
        bundle.config["linux"]["sysctl"][name] = json!("1");
        refuses(test, &bundle, &["nonesuch"])?;
    }
    Ok(())
}

fn device_is_wrong(test: &Test) -> Result<()> {
    let device = json!([{ "path": "/dev/x", "type": "x", "major": 1, "minor": 3 }]);
    refuses(test, &changed(test, "/linux/devices", device)?, &[])
}

fn version_is_wrong(test: &Test) -> Result<()> {
    for version in ["2.0.0", "0.9", "", "one"] {
        let bundle = changed(test, "/ociVersion", json!(version))?;
        refuses(test, &bundle, &["ociVersion"]).with_context(|| format!("version {version:?}"))?;
    }
    Ok(())
}

fn pid_file_cannot_be_written(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let output = test
        .runtime
        .create(&bundle)?
        .option(&["--pid-file", "/no/such/directory/pid"])
        .output()?;
    if test.runtime.kind == Kind::Crun {
        // crun fails but leaves the container.
        test.runtime.delete_force(&bundle.id).succeed()?;
        return Ok(());
    }
    check(test, output, &["/no/such/directory"])?;
    test.runtime.has_no(&bundle.id)
}

fn console_socket_is_missing(test: &Test) -> Result<()> {
    let bundle = changed(test, "/process/terminal", json!(true))?;
    let output = test
        .runtime
        .create(&bundle)?
        .option(&["--console-socket", "/no/such/socket"])
        .output()?;
    check(test, output, &[])?;
    test.runtime.has_no(&bundle.id)
}

fn state_root_cannot_be_made(test: &Test) -> Result<()> {
    let bundle = test.idle_bundle()?;
    let output = test
        .runtime
        .create(&bundle)?
        .global(&["--root", "/proc/no/such"])
        .output()?;
    check(test, output, &["/proc/no"])
}

fn command_line_is_wrong(test: &Test) -> Result<()> {
    let wrong: &[(&str, &[&str])] = &[
        ("create", &[]),
        ("start", &[]),
        ("state", &["a", "b", "c"]),
        ("kill", &[]),
        ("exec", &[]),
        ("run", &["--no-such-flag", "x"]),
    ];
    for (verb, words) in wrong {
        let output = test.runtime.verb(verb, words).output()?;
        ensure!(!output.status.success(), "{verb} {words:?} succeeded");
        ensure!(
            !output.stderr.is_empty() || !output.stdout.is_empty(),
            "{verb} {words:?} said nothing"
        );
    }
    let output = test.runtime.verb("no-such-verb", &[]).output()?;
    ensure!(!output.status.success(), "an unknown verb succeeded");
    Ok(())
}

/// The field is named by its path in `config.json`.
fn lazaret_names_the_field(test: &Test) -> Result<()> {
    for (pointer, value, words) in [
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/args", json!([]), "process.args"),
        ("/process/user/uid", json!("root"), "process.user.uid"),
        (
            "/linux/namespaces",
            json!([{ "type": "nonesuch" }]),
            "linux.namespaces[0]",
        ),
        ("/root/path", json!("not-there"), "root.path"),
        (
            "/linux/intelRdt",
            json!({ "closID": "x" }),
            "linux.intelRdt",
        ),
        (
            "/annotations",
            json!({ "io.lazaret.nonesuch": "1" }),
            "io.lazaret.nonesuch",
        ),
    ] {
        refuses(test, &changed(test, pointer, value)?, &[words])
            .with_context(|| pointer.to_owned())?;
    }
    let mut bundle = test.idle_bundle()?;
    bundle.bind("/data", Path::new("/no/such/source"), &[]);
    refuses(test, &bundle, &["mounts[7].source"])
}
