//! Mounts with options of their own: recursive attributes, mapped ids, overlays, propagation, and
//! what a tmpfs starts with.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        net::UnixListener,
    },
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use serde_json::{Value, json};

use super::{
    errors::check,
    shell::{EACCES, ENOENT, EROFS, commands, perform_in},
};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "mount_options",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(recursive_ones_reach_submounts).covers(&[
        "config#linux-mount-options-42",
        "config#linux-mount-options-34",
    ]),
    case!(read_only_ends_at_submounts),
    case!(flags_of_the_source_are_kept).only(NO_CRUN, "crun loses them"),
    case!(flags_of_submounts_are_their_own),
    case!(flags_of_the_source_are_cleared)
        .only(LAZARET, "the reference runtimes are too old for it"),
    case!(links_are_not_followed).only(LAZARET, "the reference runtimes are too old for it"),
    case!(overlay_of_host_directories),
    case!(overlay_is_wrong).only(LAZARET, "about the wording of lazaret's errors"),
    case!(ids_are_mapped)
        .only(LAZARET, "the reference runtimes are too old for it")
        .covers(&[
            "config#linux-mount-options-59..62",
            "config#linux-mount-options-64",
            "config#posix-platform-mounts-1",
            "config#posix-platform-mounts-4",
            "features-linux#mountextensions-1",
        ])
        .right("lazaret: the fields are newer than the others"),
    case!(ids_are_mapped_as_in_the_user_namespace)
        .only(LAZARET, "the reference runtimes are too old for it")
        .covers(&["config#linux-mount-options-59..61"])
        .right("lazaret: the fields are newer than the others"),
    case!(tmpfs_takes_after_what_it_covers).only(NO_CRUN, "crun leaves the tmpfs as it is"),
    case!(relative_paths)
        .only(NO_CRUN, "crun refuses them")
        .covers(&["config#mounts-4"])
        .right("runc and lazaret: a relative destination is relative to `/`"),
    case!(propagation_of_the_root).only(NO_CRUN, "crun knows other words"),
    case!(root_behind_a_link).only(NO_CRUN, "crun follows it"),
    case!(kernel_file_systems_behind_links).only(NO_CRUN, "crun words it otherwise"),
    case!(read_only_dev).only(NO_CRUN, "crun fails at a mount point below it"),
    case!(sockets_and_pipes_are_warned_of).only(LAZARET, "they work without a VM"),
];

const LAZARET: &[Kind] = &[Kind::Lazaret];
const NO_CRUN: &[Kind] = &[Kind::Runc, Kind::Lazaret];

const PROBES: &[(&str, Probe)] = &[];

/// A symbolic link where none may be.
const ELOOP: &str = "errno 40";

/// A directory of the host with a file and a program in it.
fn source(test: &Test) -> Result<PathBuf> {
    let directory = test.directory.join("source");
    fs::create_dir(&directory)?;
    fs::write(directory.join("file"), "host")?;
    fs::copy(&test.probe, directory.join("program"))?;
    Ok(directory)
}

fn recursive_ones_reach_submounts(test: &Test) -> Result<()> {
    let source = source(test)?;
    let below = source.join("below");
    fs::create_dir(&below)?;
    mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None)?;
    fs::copy(&test.probe, below.join("program"))?;
    let mut bundle = commands(test, &[])?;
    let path = source.to_string_lossy();
    bundle.mount("/data", "bind", &path, &["rbind", "rro"]);
    bundle.mount("/work", "bind", &path, &["rbind", "rnoexec"]);
    let outcome = perform_in(
        test,
        &mut bundle,
        &[
            ("write /data/new x", json!(EROFS)),
            ("write /data/below/new x", json!(EROFS)),
            ("run /data/below/program", json!(99)),
            ("run /work/program", json!(EACCES)),
            ("run /work/below/program", json!(EACCES)),
            ("write /work/below/new x", json!("done")),
        ],
    );
    unmount(&below, UnmountFlags::DETACH)?;
    outcome
}

/// Runs a part of a case on a source with a mount on it and another below, of these flags; takes
/// both away whatever came of it.
fn on_mounts(
    test: &Test,
    flags: MountFlags,
    flags_below: MountFlags,
    part: impl FnOnce(&mut Bundle, &str) -> Result<()>,
) -> Result<()> {
    let source = test.directory.join("source");
    for (path, flags) in [(source.clone(), flags), (source.join("below"), flags_below)] {
        fs::create_dir(&path)?;
        mount("tmpfs", &path, "tmpfs", flags, None)?;
        fs::copy(&test.probe, path.join("program"))?;
        mknodat(
            CWD,
            path.join("null"),
            FileType::CharacterDevice,
            Mode::from(0o666),
            rustix::fs::makedev(1, 3),
        )?;
    }
    let outcome = part(&mut commands(test, &[])?, &source.to_string_lossy());
    unmount(source.join("below"), UnmountFlags::DETACH)?;
    unmount(&source, UnmountFlags::DETACH)?;
    outcome
}

/// `ro` is about the mount itself, `rro` about those below, too.
fn read_only_ends_at_submounts(test: &Test) -> Result<()> {
    let none = MountFlags::empty();
    on_mounts(test, none, none, |bundle, source| {
        bundle.mount("/data", "bind", source, &["rbind", "ro"]);
        let commands = [
            ("write /data/new x", json!(EROFS)),
            ("write /data/below/new x", json!("done")),
            ("read /data/below/new", json!("x")),
        ];
        perform_in(test, bundle, &commands)
    })
}

/// What must not be run or opened on the host must not be so in the container.
fn flags_of_the_source_are_kept(test: &Test) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    on_mounts(test, flags, MountFlags::empty(), |bundle, source| {
        bundle.mount("/data", "bind", source, &["bind"]);
        bundle.mount("/deep", "bind", source, &["rbind"]);
        let commands = [
            ("run /data/program", json!(EACCES)),
            ("read /data/null", json!(EACCES)),
            ("run /deep/program", json!(EACCES)),
            ("read /deep/null", json!(EACCES)),
            ("run /deep/below/program", json!(99)),
            ("read /deep/below/null", json!("")),
        ];
        perform_in(test, bundle, &commands)
    })
}

fn flags_of_submounts_are_their_own(test: &Test) -> Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOEXEC;
    on_mounts(test, MountFlags::empty(), flags, |bundle, source| {
        bundle.mount("/data", "bind", source, &["rbind"]);
        let commands = [
            ("run /data/program", json!(99)),
            ("read /data/null", json!("")),
            ("run /data/below/program", json!(EACCES)),
            ("read /data/below/null", json!(EACCES)),
        ];
        perform_in(test, bundle, &commands)
    })
}

fn flags_of_the_source_are_cleared(test: &Test) -> Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOEXEC;
    on_mounts(test, flags, MountFlags::empty(), |bundle, source| {
        bundle.mount("/data", "bind", source, &["bind", "exec"]);
        let commands = [
            ("run /data/program", json!(99)),
            ("read /data/null", json!(EACCES)),
        ];
        perform_in(test, bundle, &commands)
    })
}

/// An image cannot have the mounts that protect the container go elsewhere.
fn kernel_file_systems_behind_links(test: &Test) -> Result<()> {
    for kind in ["proc", "sysfs"] {
        let mut bundle = test.idle_bundle()?;
        symlink("etc", bundle.rootfs().join("link"))?;
        bundle.mount("/link", kind, kind, &[]);
        check(
            test,
            test.runtime.create(&bundle)?.output()?,
            &[kind, "must be mounted on ordinary directory"],
        )?;
    }
    Ok(())
}

/// A read-only `/dev` has its devices and mount points all the same.
fn read_only_dev(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    let mounts = bundle.config["mounts"].as_array_mut();
    let dev = mounts.and_then(|all| all.iter_mut().find(|mount| mount["destination"] == "/dev"));
    let options = dev.and_then(|mount| mount["options"].as_array_mut());
    options.context("no /dev")?.push(json!("ro"));
    perform_in(
        test,
        &mut bundle,
        &[
            ("write /dev/new x", json!(EROFS)),
            ("write /dev/shm/new x", json!("done")),
            ("write /dev/null x", json!("done")),
            ("link /dev/fd", json!("/proc/self/fd")),
        ],
    )
}

fn links_are_not_followed(test: &Test) -> Result<()> {
    let source = source(test)?;
    symlink("file", source.join("link"))?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/data", &source, &["nosymfollow"]);
    bundle.bind("/work", &source, &[]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /data/file", json!("host")),
            ("read /data/link", json!(ELOOP)),
            ("read /work/link", json!("host")),
        ],
    )
}

/// Adds an overlay of `names` below the case's directory: lower, upper, work.
fn overlay(test: &Test, bundle: &mut Bundle, more: &[&str]) -> Result<()> {
    for name in ["lower", "upper", "scratch"] {
        fs::create_dir_all(test.directory.join(name))?;
    }
    let directory = test.directory.display();
    let layers = [
        format!("lowerdir={directory}/lower"),
        format!("upperdir={directory}/upper"),
        format!("workdir={directory}/scratch"),
    ];
    let mut options: Vec<&str> = layers.iter().map(String::as_str).collect();
    options.extend(more);
    bundle.mount("/data", "overlay", "overlay", &options);
    Ok(())
}

fn overlay_of_host_directories(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    overlay(test, &mut bundle, &[])?;
    let (lower, upper) = (test.directory.join("lower"), test.directory.join("upper"));
    fs::write(lower.join("kept"), "below")?;
    fs::write(lower.join("removed"), "below")?;
    perform_in(
        test,
        &mut bundle,
        &[
            ("list /data", json!(["kept", "removed"])),
            ("write /data/kept changed", json!("done")),
            ("write /data/new guest", json!("done")),
            ("remove /data/removed x", json!("done")),
            ("read /data/removed", json!(ENOENT)),
        ],
    )?;
    ensure!(fs::read_to_string(lower.join("kept"))? == "below");
    ensure!(fs::read_to_string(upper.join("kept"))? == "changed");
    ensure!(fs::read_to_string(upper.join("new"))? == "guest");
    let mut bundle = commands(test, &[])?;
    overlay(test, &mut bundle, &["ro"])?;
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /data/new", json!("guest")),
            ("write /data/new x", json!(EROFS)),
        ],
    )
}

fn overlay_is_wrong(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    let options = &["lowerdir=/no/such"];
    bundle.mount("/data", "overlay", "overlay", options);
    let words = ["mounts[7]: cannot mount overlay (lowerdir=/no/such)"];
    check(test, test.runtime.create(&bundle)?.output()?, &words)
}

fn mappings(host: u32) -> Value {
    json!([{ "containerID": 0, "hostID": host, "size": 100 }])
}

fn ids_are_mapped(test: &Test) -> Result<()> {
    let source = source(test)?;
    chown(source.join("file"), Some(3), Some(4))?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/data", &source, &[]);
    let last = bundle.config["mounts"].as_array_mut();
    let last = last.and_then(|mounts| mounts.last_mut());
    let last = last.context("there is no mount")?;
    last["uidMappings"] = mappings(1000);
    last["gidMappings"] = mappings(2000);
    perform_in(
        test,
        &mut bundle,
        &[("device /data/file", json!("- 0:0 644 1003:2004"))],
    )
}

fn ids_are_mapped_as_in_the_user_namespace(test: &Test) -> Result<()> {
    let source = source(test)?;
    chown(source.join("file"), Some(3), Some(4))?;
    let mut bundle = commands(test, &[])?;
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut();
    namespaces
        .context("there are no namespaces")?
        .push(json!({ "type": "user" }));
    bundle.set("/linux/uidMappings", mappings(1000));
    bundle.set("/linux/gidMappings", mappings(2000));
    bundle.bind("/data", &source, &["idmap"]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /data/file", json!("- 0:0 644 3:4")),
            ("write /data/new guest", json!("done")),
            ("device /data/new", json!("- 0:0 644 0:0")),
        ],
    )?;
    use std::os::unix::fs::MetadataExt as _;
    let new = fs::metadata(source.join("new"))?;
    ensure!(
        (new.uid(), new.gid()) == (0, 0),
        "the host has {}:{}",
        new.uid(),
        new.gid()
    );
    Ok(())
}

fn tmpfs_takes_after_what_it_covers(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    let data = bundle.rootfs().join("data");
    fs::set_permissions(&data, fs::Permissions::from_mode(0o1750))?;
    fs::create_dir(data.join("below"))?;
    fs::write(data.join("below/file"), "covered")?;
    bundle.mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"]);
    fs::set_permissions(
        bundle.rootfs().join("work"),
        fs::Permissions::from_mode(0o711),
    )?;
    bundle.mount("/work", "tmpfs", "tmpfs", &["nosuid"]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("device /data", json!("- 0:0 1750 0:0")),
            ("read /data/below/file", json!("covered")),
            ("write /data/below/file changed", json!("done")),
            ("device /work", json!("- 0:0 711 0:0")),
        ],
    )?;
    ensure!(fs::read_to_string(data.join("below/file"))? == "covered");
    Ok(())
}

fn relative_paths(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    fs::create_dir(bundle.directory.join("beside"))?;
    fs::write(bundle.directory.join("beside/file"), "relative")?;
    bundle.mount("data", "bind", "beside", &["bind"]);
    perform_in(test, &mut bundle, &[("read /data/file", json!("relative"))])
}

fn propagation_of_the_root(test: &Test) -> Result<()> {
    for (word, expected) in [
        ("private", None),
        ("rprivate", None),
        ("slave", None),
        ("rslave", None),
        ("shared", Some("shared:")),
        ("rshared", Some("shared:")),
        ("unbindable", Some("unbindable")),
        ("runbindable", Some("unbindable")),
    ] {
        if test.runtime.kind == Kind::Runc && word == "runbindable" {
            // It makes the host's root unbindable before it binds the container's.
            continue;
        }
        let mut bundle = commands(test, &["read /proc/self/mountinfo"])?;
        bundle.set("/linux/rootfsPropagation", json!(word));
        let said = test.runtime.run(&bundle)?.succeed()?.json()?;
        let text = said[0].as_str().unwrap_or_default();
        let root = text
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"));
        let root = root.with_context(|| format!("{word}: no root in {text}"))?;
        let fields = root.split(" - ").next().unwrap_or_default();
        let fields: Vec<&str> = fields.split(' ').skip(6).collect();
        let found = fields.iter().find(|field| !field.starts_with("master:"));
        let fits = match (found, expected) {
            (None, None) => true,
            (Some(found), Some(expected)) => found.starts_with(expected),
            _ => false,
        };
        // For runc the word is about the host's root, which is another mount than the container's.
        ensure!(fits || test.runtime.kind == Kind::Runc, "{word}: {root}");
    }
    let mut bundle = test.idle_bundle()?;
    bundle.set("/linux/rootfsPropagation", json!("upwards"));
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &["rootfsPropagation"])
}

fn root_behind_a_link(test: &Test) -> Result<()> {
    let mut bundle = test.idle_bundle()?;
    symlink("rootfs", bundle.directory.join("link"))?;
    bundle.set("/root/path", json!("link"));
    let output = test.runtime.create(&bundle)?.output()?;
    check(test, output, &["not an absolute path, or a symlink"])
}

fn sockets_and_pipes_are_warned_of(test: &Test) -> Result<()> {
    let directory = source(test)?;
    let (socket, pipe) = (directory.join("socket"), directory.join("pipe"));
    let _listener = UnixListener::bind(&socket)?;
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    let mut bundle = commands(test, &["device /run/pipe"])?;
    bundle.bind("/run/socket", &socket, &[]);
    bundle.bind("/run/pipe", &pipe, &[]);
    let output = test.runtime.run(&bundle)?.succeed()?;
    ensure!(output.json()? == json!(["p 0:0 600 0:0"]));
    for words in [
        "mounts[7].source: ",
        "is a socket, which cannot be connected to from the guest",
        "mounts[8].source: ",
        "is a pipe, which connects only processes in the guest with each other",
    ] {
        ensure!(output.stderr.contains(words), "{}", output.stderr);
    }
    Ok(())
}
