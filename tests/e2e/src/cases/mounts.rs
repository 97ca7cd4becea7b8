//! Mounts: what the container's file system looks like from inside, and what of it the host sees.

use std::{fs, io::Write as _, os::unix::fs::symlink};

use anyhow::{Result, bail, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, mount},
};
use serde_json::json;

use super::shell::{EACCES, ENOENT, ENOSPC, EROFS, commands, perform_in, shell};
use crate::{
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "mounts",
    cases: CASES,
    probes: PROBES,
};

const CASES: &[Case] = &[
    case!(standard_mounts).covers(&["config-linux#default-filesystems-1", "runtime#lifecycle-1"]),
    case!(bind_of_a_directory).covers(&["runtime#create-5", "config#linux-mount-options-5"]),
    case!(bind_of_a_file),
    case!(bind_read_only),
    case!(bind_takes_submounts_along).covers(&["config#linux-mount-options-26"]),
    case!(bind_flags_hold),
    case!(destination_is_made),
    case!(destination_stays_in_the_root).only(
        &[Kind::Runc, Kind::Lazaret],
        "crun refuses such a destination",
    ),
    case!(order_of_mounts).covers(&["config#mounts-1"]),
    case!(tmpfs_options).covers(&["config#linux-mount-options-73"]),
    case!(tmpfs_mode_and_owner).only(
        &[Kind::Crun, Kind::Lazaret],
        "runc takes the mode of the directory below",
    ),
    case!(read_only_root).covers(&["config#root-7"]),
    case!(writable_root_is_the_host_s),
    case!(large_files),
];

const PROBES: &[(&str, Probe)] = &[("sh", shell), ("copy-file", copy_file)];

/// Copies one file to another.
fn copy_file(arguments: &[String]) -> Result<u8> {
    let [from, to] = arguments else {
        bail!("two paths are needed")
    };
    std::io::copy(&mut fs::File::open(from)?, &mut fs::File::create(to)?)?;
    Ok(0)
}

fn standard_mounts(test: &Test) -> Result<()> {
    let mounts = [
        ("/proc", "proc", &["rw", "nosuid", "nodev", "noexec"][..]),
        ("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
        (
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "mode=620", "ptmxmode=666"],
        ),
        (
            "/dev/shm",
            "tmpfs",
            &["nosuid", "nodev", "noexec", "size=65536k"],
        ),
        ("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
        ("/sys", "sysfs", &["ro", "nosuid", "nodev", "noexec"]),
        (
            "/sys/fs/cgroup",
            "cgroup2",
            &["ro", "nosuid", "nodev", "noexec"],
        ),
    ];
    let lines = mounts.map(|(path, ..)| format!("mount {path}"));
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let said = test
        .runtime
        .run(&commands(test, &lines)?)?
        .succeed()?
        .json()?;
    for (at, (path, kind, options)) in mounts.iter().enumerate() {
        let found = said[at].as_str().unwrap_or_default();
        let (found_kind, found_options) = found.split_once(' ').unwrap_or_default();
        ensure!(found_kind == *kind, "{path} is {found}, expected {kind}");
        for option in *options {
            ensure!(
                found_options.split(',').any(|other| other == *option),
                "{path} lacks {option}: {found}"
            );
        }
    }
    Ok(())
}

/// A directory of the host for a bind mount, with one file in it.
fn source(test: &Test) -> Result<std::path::PathBuf> {
    let directory = test.directory.join("source");
    fs::create_dir(&directory)?;
    fs::write(directory.join("from-host"), "host")?;
    Ok(directory)
}

fn bind_of_a_directory(test: &Test) -> Result<()> {
    let source = source(test)?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/data", &source, &["rw"]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /data/from-host", json!("host")),
            ("write /data/from-guest guest", json!("done")),
            ("list /data", json!(["from-guest", "from-host"])),
            ("remove /data/from-host x", json!("done")),
        ],
    )?;
    ensure!(
        fs::read_to_string(source.join("from-guest"))? == "guest",
        "the write is not on the host"
    );
    ensure!(
        !source.join("from-host").exists(),
        "the file is still on the host"
    );
    ensure!(
        !bundle.rootfs().join("data/from-guest").exists(),
        "the write went to the root"
    );
    Ok(())
}

fn bind_of_a_file(test: &Test) -> Result<()> {
    let file = source(test)?.join("from-host");
    let mut bundle = commands(test, &[])?;
    bundle.bind("/etc/hosts", &file, &["rw"]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /etc/hosts", json!("host")),
            ("write /etc/hosts changed", json!("done")),
            ("remove /etc/hosts x", json!("errno 16")),
        ],
    )?;
    ensure!(
        fs::read_to_string(&file)? == "changed",
        "the write is not on the host"
    );
    Ok(())
}

fn bind_read_only(test: &Test) -> Result<()> {
    let source = source(test)?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/data", &source, &["ro"]);
    bundle.bind("/etc/hosts", &source.join("from-host"), &["ro"]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /data/from-host", json!("host")),
            ("write /data/from-host guest", json!(EROFS)),
            ("write /data/new guest", json!(EROFS)),
            ("remove /data/from-host x", json!(EROFS)),
            ("read /etc/hosts", json!("host")),
            ("write /etc/hosts guest", json!(EROFS)),
            ("write /etc/other guest", json!("done")),
        ],
    )?;
    ensure!(
        fs::read_to_string(source.join("from-host"))? == "host",
        "the host's file changed"
    );
    Ok(())
}

fn bind_takes_submounts_along(test: &Test) -> Result<()> {
    let source = source(test)?;
    fs::create_dir(source.join("below"))?;
    mount(
        "tmpfs",
        source.join("below"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )?;
    fs::write(source.join("below/file"), "in the submount")?;
    let mut bundle = commands(test, &[])?;
    bundle.mount("/data", "bind", &source.to_string_lossy(), &["rbind", "rw"]);
    bundle.bind("/work", &source, &["rw"]);
    let outcome = perform_in(
        test,
        &mut bundle,
        &[
            ("read /data/below/file", json!("in the submount")),
            ("read /work/below/file", json!(ENOENT)),
            ("write /data/below/new guest", json!("done")),
        ],
    );
    let written = fs::read_to_string(source.join("below/new"));
    rustix::mount::unmount(source.join("below"), rustix::mount::UnmountFlags::DETACH)?;
    outcome?;
    ensure!(written? == "guest", "the write is not in the submount");
    Ok(())
}

fn bind_flags_hold(test: &Test) -> Result<()> {
    let source = source(test)?;
    fs::copy(&test.probe, source.join("program"))?;
    mknodat(
        CWD,
        source.join("null"),
        FileType::CharacterDevice,
        Mode::from(0o666),
        rustix::fs::makedev(1, 3),
    )?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/data", &source, &["noexec", "nodev", "nosuid"]);
    bundle.bind("/work", &source, &[]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("run /data/program", json!(EACCES)),
            ("run /work/program", json!(99)),
            ("read /data/null", json!(EACCES)),
            ("read /work/null", json!("")),
        ],
    )
}

fn destination_is_made(test: &Test) -> Result<()> {
    let source = source(test)?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/new/directory", &source, &[]);
    bundle.bind("/new/sub/file", &source.join("from-host"), &[]);
    bundle.mount("/new/tmpfs", "tmpfs", "tmpfs", &[]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /new/directory/from-host", json!("host")),
            ("read /new/sub/file", json!("host")),
            ("write /new/tmpfs/file x", json!("done")),
        ],
    )
}

/// An image may have symbolic links where the configuration mounts; they lead nowhere outside.
fn destination_stays_in_the_root(test: &Test) -> Result<()> {
    let source = source(test)?;
    let outside = test.directory.join("outside");
    fs::create_dir(&outside)?;
    let mut bundle = commands(test, &[])?;
    symlink(&outside, bundle.rootfs().join("absolute"))?;
    symlink(
        "../../../../../../../../../../data",
        bundle.rootfs().join("relative"),
    )?;
    bundle.bind("/absolute/below", &source, &[]);
    bundle.bind("/relative", &source, &[]);
    perform_in(
        test,
        &mut bundle,
        &[("read /data/from-host", json!("host"))],
    )?;
    ensure!(
        fs::read_dir(&outside)?.next().is_none(),
        "something was made outside of the root"
    );
    Ok(())
}

fn order_of_mounts(test: &Test) -> Result<()> {
    let source = source(test)?;
    let mut bundle = commands(test, &[])?;
    bundle.bind("/data", &source, &[]);
    bundle.mount("/data", "tmpfs", "tmpfs", &[]);
    bundle.bind("/data/below", &source, &[]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /data/from-host", json!(ENOENT)),
            ("read /data/below/from-host", json!("host")),
        ],
    )
}

fn tmpfs_options(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.mount("/work", "tmpfs", "tmpfs", &["size=1m", "noexec", "nodev"]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("fill /work/fits 900", json!("done")),
            ("fill /work/too-much 900", json!(ENOSPC)),
        ],
    )?;
    ensure!(
        !bundle.rootfs().join("work/fits").exists(),
        "the file went to the root"
    );
    Ok(())
}

fn tmpfs_mode_and_owner(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.mount("/work", "tmpfs", "tmpfs", &["mode=1750", "uid=5", "gid=6"]);
    perform_in(
        test,
        &mut bundle,
        &[("device /work", json!("- 0:0 1750 5:6"))],
    )
}

fn read_only_root(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.set("/root/readonly", json!(true));
    bundle.mount("/work", "tmpfs", "tmpfs", &[]);
    perform_in(
        test,
        &mut bundle,
        &[
            ("write /file x", json!(EROFS)),
            ("write /etc/passwd x", json!(EROFS)),
            ("remove /etc/passwd x", json!(EROFS)),
            ("write /work/file x", json!("done")),
            ("write /dev/shm/file x", json!("done")),
        ],
    )
}

fn writable_root_is_the_host_s(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    perform_in(
        test,
        &mut bundle,
        &[
            ("write /etc/new from the guest", json!("done")),
            ("remove /etc/group x", json!("done")),
        ],
    )?;
    let written = fs::read_to_string(bundle.rootfs().join("etc/new"))?;
    ensure!(written == "from the guest", "the host has {written:?}");
    ensure!(
        !bundle.rootfs().join("etc/group").exists(),
        "the removed file is on the host"
    );
    Ok(())
}

/// Larger than any buffer on the way, both directions, unchanged.
fn large_files(test: &Test) -> Result<()> {
    let source = source(test)?;
    let mut file = fs::File::create(source.join("large"))?;
    for number in 0..1024_u32 {
        let words: Vec<u8> = (0..2048)
            .flat_map(|at| (number * 2048 + at).to_le_bytes())
            .collect();
        file.write_all(&words)?;
    }
    drop(file);
    let mut bundle = test.bundle("copy-file", &["/data/large", "/data/copy"])?;
    bundle.bind("/data", &source, &["rw"]);
    test.runtime.run(&bundle)?.succeed()?;
    let (before, after) = (
        fs::read(source.join("large"))?,
        fs::read(source.join("copy"))?,
    );
    ensure!(before == after, "the copy differs");
    Ok(())
}
