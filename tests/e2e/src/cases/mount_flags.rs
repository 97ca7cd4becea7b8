//! Mount options: each word that the runtime-spec lists does what mount(8) says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount},
};
use serde_json::{Value, json};

use super::shell::{EACCES, EROFS, commands, perform_in};
use crate::{
    bundle::Bundle,
    case::{Case, Probe, Test, Topic, case},
    runtime::Kind,
};

pub(crate) const TOPIC: Topic = Topic {
    name: "mount_flags",
    cases: CASES,
    probes: PROBES,
};

const RUNC: &[Kind] = &[Kind::Runc, Kind::Lazaret];
const CRUN: &[Kind] = &[Kind::Crun, Kind::Lazaret];
const LAZARET: &[Kind] = &[Kind::Lazaret];

const CASES: &[Case] = &[
    case!(flags).covers(&[
        "config#linux-mount-options-1",
        "config#linux-mount-options-9",
        "config#linux-mount-options-14..17",
        "config#linux-mount-options-22",
        "config#linux-mount-options-29",
        "config#linux-mount-options-39",
        "config#linux-mount-options-50",
        "config#linux-mount-options-54",
        "config#linux-mount-options-57",
        "config#linux-mount-options-71",
    ]),
    case!(flags_of_the_root).only(RUNC, "crun drops nosuid and nodev of the root"),
    case!(later_words_win)
        .only(RUNC, "crun keeps what an earlier word has set")
        .covers(&[
            "config#linux-mount-options-3..4",
            "config#linux-mount-options-7..8",
            "config#linux-mount-options-10",
            "config#linux-mount-options-20..21",
            "config#linux-mount-options-55",
        ])
        .right("runc and lazaret: of words that contradict each other mount(8) takes the last"),
    case!(defaults)
        .only(
            CRUN,
            "runc hands the word to the file system, which refuses it",
        )
        .covers(&["config#linux-mount-options-6"])
        .right("crun and lazaret: the word must be supported"),
    case!(lazy_times).covers(&[
        "config#linux-mount-options-12",
        "config#linux-mount-options-19",
    ]),
    case!(silent_flags)
        .only(
            RUNC,
            "crun hands the words to the file system, which refuses them",
        )
        .covers(&[
            "config#linux-mount-options-11",
            "config#linux-mount-options-13",
            "config#linux-mount-options-18",
            "config#linux-mount-options-52",
        ])
        .right("runc and lazaret: the words must be supported"),
    case!(symbolic_links)
        .only(
            RUNC,
            "crun hands the words to the file system, which refuses them",
        )
        .covers(&[
            "config#linux-mount-options-23",
            "config#linux-mount-options-56",
        ])
        .right("runc and lazaret: the words should be supported"),
    case!(remount).covers(&["config#linux-mount-options-30"]),
    case!(propagation)
        .only(RUNC, "crun makes every mount private in the end")
        .covers(&[
            "config#linux-mount-options-24",
            "config#linux-mount-options-40",
            "config#linux-mount-options-44..45",
            "config#linux-mount-options-49",
            "config#linux-mount-options-51",
            "config#linux-mount-options-53",
            "config#linux-mount-options-58",
        ])
        .right("runc and lazaret: the words must be supported"),
    case!(recursive_flags).covers(&[
        "config#linux-mount-options-2",
        "config#linux-mount-options-34",
        "config#linux-mount-options-37",
        "config#linux-mount-options-42",
    ]),
    case!(recursive_flags_are_cleared).covers(&[
        "config#linux-mount-options-27",
        "config#linux-mount-options-31",
        "config#linux-mount-options-47",
    ]),
    case!(recursive_access_times)
        .only(
            RUNC,
            "crun does not clear the access time that was there, which the kernel asks for",
        )
        .covers(&[
            "config#linux-mount-options-32",
            "config#linux-mount-options-35",
            "config#linux-mount-options-41",
            "config#linux-mount-options-46",
        ])
        .right("runc and lazaret: the words should be supported"),
    case!(recursive_access_times_are_cleared)
        .only(
            LAZARET,
            "runc and crun clear a part of the access time, which the kernel refuses",
        )
        .covers(&[
            "config#linux-mount-options-25",
            "config#linux-mount-options-36",
        ])
        .right("lazaret: the words should be supported"),
    case!(recursive_directory_times)
        .only(RUNC, "crun hands the kernel something that it refuses")
        .covers(&[
            "config#linux-mount-options-28",
            "config#linux-mount-options-33",
        ])
        .right("runc and lazaret: the words should be supported"),
    case!(recursive_symbolic_links)
        .only(RUNC, "crun ignores the words")
        .covers(&[
            "config#linux-mount-options-38",
            "config#linux-mount-options-48",
        ])
        .right("runc and lazaret: the words should be supported"),
];

const PROBES: &[(&str, Probe)] = &[("mount-table", mount_table)];

/// Prints for each path the words of its topmost mount: flags, propagation without its number,
/// and options of the file system.
fn mount_table(arguments: &[String]) -> Result<u8> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let words = |path: &String| -> Option<Vec<&str>> {
        let line = text
            .lines()
            .rev()
            .find(|line| line.split(' ').nth(4) == Some(path))?;
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(5);
        let mut words: Vec<&str> = fields.next()?.split(',').collect();
        words.extend(fields.filter_map(|tag| tag.split(':').next()));
        words.extend(right.rsplit(' ').next()?.split(','));
        Some(words)
    };
    let all: Vec<_> = arguments.iter().map(words).collect();
    println!("{}", json!(all));
    Ok(0)
}

/// Options of a mount, what it then shows, and what it does not.
type Row = (
    &'static [&'static str],
    &'static [&'static str],
    &'static [&'static str],
);

/// Makes a mount of each row and looks at it from inside.
fn show(test: &Test, rows: &[Row], add: impl Fn(&mut Bundle, &str, &[&str])) -> Result<()> {
    let paths: Vec<String> = (0..rows.len()).map(|at| format!("/m/{at}")).collect();
    let arguments: Vec<&str> = paths.iter().map(String::as_str).collect();
    let mut bundle = test.bundle("mount-table", &arguments)?;
    for (path, (options, ..)) in paths.iter().zip(rows) {
        add(&mut bundle, path, options);
    }
    let said = test.runtime.run(&bundle)?.succeed()?.json()?;
    let mut wrong = Vec::new();
    for (at, (options, shown, hidden)) in rows.iter().enumerate() {
        let found: Vec<&str> = said[at]
            .as_array()
            .with_context(|| format!("{options:?} made no mount"))?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let right = shown.iter().all(|word| found.contains(word))
            && !hidden.iter().any(|word| found.contains(word));
        if !right {
            wrong.push(format!(
                "{options:?} shows {found:?}: expected {shown:?} and not {hidden:?}"
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    Ok(())
}

fn tmpfs(bundle: &mut Bundle, path: &str, options: &[&str]) {
    bundle.mount(path, "tmpfs", "tmpfs", options);
}

fn flags(test: &Test) -> Result<()> {
    let rows: &[Row] = &[
        (&["rw"], &["rw", "relatime"], &["ro", "nosuid"]),
        (&["ro"], &["ro"], &["nosuid"]),
        (&["nosuid"], &["nosuid"], &["nodev"]),
        (&["nodev"], &["nodev"], &["nosuid"]),
        (&["noexec"], &["noexec"], &["nosuid"]),
        (&["noatime"], &["noatime"], &["relatime"]),
        (&["nodiratime"], &["nodiratime"], &["noatime"]),
        (&["relatime"], &["relatime"], &["noatime"]),
        (&["strictatime"], &["rw"], &["relatime", "noatime"]),
        (&["sync"], &["sync"], &["dirsync"]),
        (&["dirsync"], &["dirsync"], &["sync"]),
    ];
    show(test, rows, tmpfs)
}

fn later_words_win(test: &Test) -> Result<()> {
    let rows: &[Row] = &[
        (&["rw", "ro"], &["ro"], &[]),
        (&["nosuid", "suid"], &["rw"], &["nosuid"]),
        (&["nodev", "dev"], &["rw"], &["nodev"]),
        (&["noexec", "exec"], &["rw"], &["noexec"]),
        (&["noatime", "atime"], &["relatime"], &["noatime"]),
        (&["nodiratime", "diratime"], &["rw"], &["nodiratime"]),
        (&["noatime", "relatime", "norelatime"], &["noatime"], &[]),
        (&["strictatime", "nostrictatime"], &["relatime"], &[]),
        (&["sync", "async"], &["rw"], &["sync"]),
    ];
    show(test, rows, tmpfs)
}

fn defaults(test: &Test) -> Result<()> {
    let rows: &[Row] = &[
        (&["defaults"], &["rw", "relatime"], &["ro", "nosuid"]),
        (&["nosuid", "defaults"], &["rw", "nosuid"], &[]),
    ];
    show(test, rows, tmpfs)
}

fn lazy_times(test: &Test) -> Result<()> {
    let rows: &[Row] = &[
        (&["lazytime"], &["lazytime"], &[]),
        (&["lazytime", "nolazytime"], &["rw"], &["lazytime"]),
    ];
    show(test, rows, tmpfs)
}

/// A mount shows nothing of them: they are taken, at least.
fn silent_flags(test: &Test) -> Result<()> {
    let rows: &[Row] = &[
        (&["iversion"], &["rw"], &[]),
        (&["iversion", "noiversion"], &["rw"], &[]),
        (&["silent"], &["rw"], &[]),
        (&["silent", "loud"], &["rw"], &[]),
    ];
    show(test, rows, tmpfs)
}

fn symbolic_links(test: &Test) -> Result<()> {
    let rows: &[Row] = &[
        (&["nosymfollow"], &["nosymfollow"], &[]),
        (&["nosymfollow", "symfollow"], &["rw"], &["nosymfollow"]),
    ];
    show(test, rows, tmpfs)
}

fn remount(test: &Test) -> Result<()> {
    let mut bundle = commands(test, &[])?;
    bundle.mount("/work", "tmpfs", "tmpfs", &["size=1m"]);
    bundle.mount("/work", "tmpfs", "tmpfs", &["remount", "ro"]);
    perform_in(test, &mut bundle, &[("write /work/file x", json!(EROFS))])
}

fn propagation(test: &Test) -> Result<()> {
    let source = test.directory.join("source");
    fs::create_dir(&source)?;
    let rows: &[Row] = &[
        (&["private"], &["rw"], &["shared", "master", "unbindable"]),
        (&["rprivate"], &["rw"], &["shared", "master", "unbindable"]),
        (&["shared"], &["shared"], &[]),
        (&["rshared"], &["shared"], &[]),
        (&["slave"], &["rw"], &["shared", "unbindable"]),
        (&["rslave"], &["rw"], &["shared", "unbindable"]),
        (&["unbindable"], &["unbindable"], &[]),
        (&["runbindable"], &["unbindable"], &[]),
    ];
    show(test, rows, rbind(&source))
}

/// A directory of the host, with a mount below it: a program and a device are in both.
fn tree(test: &Test, name: &str) -> Result<PathBuf> {
    let top = test.directory.join(name);
    for path in [top.clone(), top.join("below")] {
        fs::create_dir(&path)?;
        mount("tmpfs", &path, "tmpfs", MountFlags::empty(), None)?;
        fs::copy(&test.probe, path.join("program"))?;
        mknodat(
            CWD,
            path.join("null"),
            FileType::CharacterDevice,
            Mode::from(0o666),
            rustix::fs::makedev(1, 3),
        )?;
    }
    Ok(top)
}

/// Takes the tree away, whatever came of the case.
fn remove(top: &Path) -> Result<()> {
    for path in [top.join("below"), top.to_owned()] {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH)?;
    }
    Ok(())
}

fn rbind<'a>(source: &'a Path) -> impl Fn(&mut Bundle, &str, &[&str]) + 'a {
    |bundle, path, options| {
        let options = [&["rbind"], options].concat();
        bundle.mount(path, "bind", &source.to_string_lossy(), &options);
    }
}

/// Runs a part of a case on a tree, and takes the tree away whatever came of it.
fn on_tree(test: &Test, part: fn(&Test, &Path) -> Result<()>) -> Result<()> {
    let top = tree(test, "tree")?;
    let outcome = part(test, &top);
    remove(&top)?;
    outcome
}

fn recursive_flags(test: &Test) -> Result<()> {
    on_tree(test, set_flags)
}

fn set_flags(test: &Test, top: &Path) -> Result<()> {
    let rows: &[Row] = &[
        (&["rnosuid"], &["nosuid"], &["nodev"]),
        (&["rnodev"], &["nodev"], &["nosuid"]),
    ];
    show(test, rows, rbind(top))?;
    let mut bundle = commands(test, &[])?;
    for (path, option) in [
        ("/m/ro", "rro"),
        ("/m/dev", "rnodev"),
        ("/m/exec", "rnoexec"),
    ] {
        rbind(top)(&mut bundle, path, &[option]);
    }
    perform_in(
        test,
        &mut bundle,
        &[
            ("write /m/ro/file x", json!(EROFS)),
            ("write /m/ro/below/file x", json!(EROFS)),
            ("read /m/dev/null", json!(EACCES)),
            ("read /m/dev/below/null", json!(EACCES)),
            ("run /m/exec/program", json!(EACCES)),
            ("run /m/exec/below/program", json!(EACCES)),
            ("run /m/ro/below/program", json!(99)),
            ("write /m/dev/below/file x", json!("done")),
        ],
    )
}

fn recursive_access_times(test: &Test) -> Result<()> {
    on_tree(test, |test, top| {
        let rows: &[Row] = &[
            (&["rnoatime"], &["noatime"], &["relatime"]),
            (&["rrelatime"], &["relatime"], &["noatime"]),
            (&["rnorelatime"], &["rw"], &[]),
            (&["rstrictatime"], &["rw"], &["relatime", "noatime"]),
        ];
        show(test, rows, rbind(top))
    })
}

fn recursive_access_times_are_cleared(test: &Test) -> Result<()> {
    on_tree(test, |test, top| {
        let rows: &[Row] = &[
            (&["rnoatime", "ratime"], &["relatime"], &["noatime"]),
            (&["rstrictatime", "rnostrictatime"], &["relatime"], &[]),
        ];
        show(test, rows, rbind(top))
    })
}

fn recursive_directory_times(test: &Test) -> Result<()> {
    on_tree(test, |test, top| {
        let rows: &[Row] = &[
            (&["rnodiratime"], &["nodiratime"], &[]),
            (&["rdiratime"], &["rw"], &["nodiratime"]),
        ];
        show(test, rows, rbind(top))
    })
}

fn recursive_symbolic_links(test: &Test) -> Result<()> {
    on_tree(test, |test, top| {
        let rows: &[Row] = &[
            (&["rnosymfollow"], &["nosymfollow"], &[]),
            (&["rsymfollow"], &["rw"], &["nosymfollow"]),
        ];
        show(test, rows, rbind(top))
    })
}

fn flags_of_the_root(test: &Test) -> Result<()> {
    let bundle = test.bundle("mount-table", &["/"])?;
    let root = bundle.rootfs();
    mount_bind(&root, &root)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    mount_remount(&root, MountFlags::BIND | flags, "")?;
    let said = test
        .runtime
        .run(&bundle)
        .and_then(|run| run.succeed()?.json());
    unmount(&root, UnmountFlags::empty())?;
    let said = said?;
    let words = said[0].as_array().context("no root")?;
    for word in ["rw", "nosuid", "nodev", "noatime"] {
        ensure!(words.contains(&json!(word)), "{word}: {said}");
    }
    Ok(())
}

/// The mounts of the host have the flags; those of the container do not.
fn recursive_flags_are_cleared(test: &Test) -> Result<()> {
    on_tree(test, clear_flags)
}

fn clear_flags(test: &Test, top: &Path) -> Result<()> {
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    for path in [top.join("below"), top.to_owned()] {
        mount_remount(&path, flags, "")?;
    }
    let rows: &[Row] = &[
        (&["rsuid"], &["relatime"], &["nosuid"]),
        (&["rsuid", "rdev"], &["relatime"], &["nosuid", "nodev"]),
    ];
    show(test, rows, rbind(top))?;
    let mut bundle = commands(test, &[])?;
    for (path, option) in [("/m/dev", "rdev"), ("/m/exec", "rexec")] {
        rbind(top)(&mut bundle, path, &[option]);
    }
    perform_in(
        test,
        &mut bundle,
        &[
            ("read /m/dev/null", json!("")),
            ("read /m/dev/below/null", json!("")),
            ("run /m/exec/program", json!(99)),
            ("run /m/exec/below/program", json!(99)),
            ("write /m/exec/below/file x", json!(EROFS)),
        ],
    )
}
