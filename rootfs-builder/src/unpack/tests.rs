//! Tests of the unpacker: what layers mean, and that nothing hostile in them gets out.
//!
//! Those that set owners or make devices need root, and say so.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::EntryType;

use super::{EntryError, UnpackError, Unpacker, empty_directory};
use crate::testing::{Archive, picture};
use crate::{Limits, Observer, Silent};

/// What is in the files that nobody may read or write.
const SECRET: &[u8] = b"not to be read";

/// A root file system with somebody else's files beside it.
struct Sandbox {
    directory: tempfile::TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["root", "trash", "outside", "outside/directory"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        for name in ["outside/secret", "outside/directory/file", "secret"] {
            fs::write(directory.path().join(name), SECRET).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The absolute path of the directory that must not change, as a link in a layer would say it.
    fn outside(&self) -> String {
        self.path("outside").to_str().unwrap().to_owned()
    }

    fn open(&self, name: &str) -> OwnedFd {
        fs::File::open(self.path(name)).unwrap().into()
    }

    fn unpack(&self, layers: &[Archive]) -> Result<(), UnpackError> {
        self.unpack_with(layers, Limits::default(), &Silent)
    }

    fn unpack_with(
        &self,
        layers: &[Archive],
        limits: Limits,
        observer: &dyn Observer,
    ) -> Result<(), UnpackError> {
        let (root, trash) = (self.open("root"), self.open("trash"));
        let mut unpacker = Unpacker::new(root, trash, limits, observer);
        layers
            .iter()
            .try_for_each(|layer| unpacker.apply(&layer.clone().finish()[..]))
    }

    /// The paths in the root file system, directories with a slash.
    fn names(&self) -> Vec<String> {
        let slash = |path: &Path| {
            if self.path("root").join(path).is_dir() {
                "/"
            } else {
                ""
            }
        };
        let picture = picture(&self.path("root"));
        let names = picture.keys().filter(|path| *path != Path::new(""));
        names
            .map(|path| format!("{}{}", path.display(), slash(path)))
            .collect()
    }

    fn content(&self, name: &str) -> String {
        fs::read_to_string(self.path("root").join(name)).unwrap()
    }

    fn status(&self, name: &str) -> fs::Metadata {
        self.path("root").join(name).symlink_metadata().unwrap()
    }
}

fn refused(layers: &[Archive]) -> EntryError {
    match Sandbox::new().unpack(layers) {
        Err(UnpackError::Entry { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

fn assert_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test sets owners: run it as root"
    );
}

#[test]
fn entries_of_every_kind_get_all_they_say() {
    assert_root();
    let with = |kind, mode, (uid, gid)| {
        let mut header = Archive::header(kind);
        header.set_mode(mode);
        header.set_uid(uid);
        header.set_gid(gid);
        header
    };
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut null = with(EntryType::Char, 0o666, (0, 0));
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let mut disk = with(EntryType::Block, 0o2660, (0, 6));
    disk.set_device_major(259).unwrap();
    disk.set_device_minor(0x12345).unwrap();
    let layer = Archive::new()
        .raw(with(EntryType::Directory, 0o751, (1, 2)), b"./", b"")
        .raw(with(EntryType::Directory, 0o1777, (3, 4)), b"tmp/", b"")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.user.binary", b"\n\0="),
            ("SCHILY.xattr.security.selinux", b"host_label"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("mtime", b"1234567890.987654321"),
        ])
        .raw(
            with(EntryType::Regular, 0o6755, (1000, 1001)),
            b"tmp/program",
            b"#!",
        )
        .hard_link("tmp/again", "./tmp/program")
        .pax(&[
            ("linkpath", b"/no/where"),
            ("SCHILY.xattr.trusted.link", b"t"),
            ("mtime", b"-1"),
        ])
        .raw(with(EntryType::Symlink, 0o777, (5, 6)), b"link", b"")
        .raw(with(EntryType::Fifo, 0o604, (7, 8)), b"pipe", b"")
        .raw(null, b"null", b"")
        .raw(disk, b"disk", b"")
        .file("/implied/parent/file", b"");
    let sandbox = Sandbox::new();
    sandbox.unpack(&[layer]).unwrap();
    let picture = picture(&sandbox.path("root"));
    let get = |name: &str| &picture[Path::new(name)];
    assert_eq!((get("").mode, get("").owner), (0o40751, (1, 2)));
    assert_eq!((get("tmp").mode, get("tmp").owner), (0o41777, (3, 4)));
    assert_eq!(
        get("tmp").mtime,
        (1_000_000_000, 0),
        "dated after its content was made"
    );
    let program = get("tmp/program");
    assert_eq!((program.mode, program.owner), (0o106_755, (1000, 1001)));
    assert_eq!(program.mtime, (1_234_567_890, 987_654_321));
    assert_eq!(program.xattrs[&b"security.capability"[..]], capability);
    assert_eq!(program.xattrs[&b"user.binary"[..]], b"\n\0=");
    assert_eq!(
        program.xattrs.len(),
        2,
        "the host's own attributes are left alone"
    );
    assert_eq!(program.same_as, Path::new("tmp/again"));
    assert_eq!(
        (&get("link").content[..], get("link").owner),
        (&b"/no/where"[..], (5, 6))
    );
    assert_eq!(get("link").xattrs[&b"trusted.link"[..]], b"t");
    assert_eq!(get("link").mtime, (-1, 0));
    assert_eq!((get("pipe").mode, get("pipe").owner), (0o10_604, (7, 8)));
    assert_eq!(
        (get("null").mode, get("null").device),
        (0o20_666, rustix::fs::makedev(1, 3))
    );
    assert_eq!((get("disk").mode, get("disk").owner), (0o62_660, (0, 6)));
    assert_eq!(get("disk").device, rustix::fs::makedev(259, 0x12345));
    assert_eq!(
        (get("implied").mode, get("implied").mtime),
        (0o40_755, (0, 0))
    );
}

#[test]
fn whiteouts_hide_lower_layers_wherever_they_stand() {
    let lower = Archive::new()
        .directory("opaque")
        .file("opaque/old", b"")
        .file("opaque/kept/old", b"")
        .file("opaque/both", b"old")
        .file("gone/deep/file", b"")
        .file("file", b"")
        .symlink("link", "file")
        .file("replaced/file", b"old")
        .file("untouched", b"");
    // The same meaning with the markers before and after what the layer itself brings.
    let content = |layer: Archive| {
        layer
            .file("opaque/both", b"new")
            .file("opaque/kept/new", b"")
            .file("replaced/new", b"")
    };
    let markers = |layer: Archive| {
        layer
            .file("opaque/.wh..wh..opq", b"")
            .file(".wh.gone", b"")
            .file(".wh.file", b"")
            .file(".wh.link", b"")
            .file(".wh.replaced", b"")
            .file(".wh.never-there", b"")
            .file("never/there/.wh.x", b"")
            .file("untouched/.wh.x", b"")
            .file(".wh..wh.plnk/1.2", b"")
            .file(".wh..wh.aufs", b"")
    };
    for upper in [
        content(markers(Archive::new())),
        markers(content(Archive::new())),
    ] {
        let sandbox = Sandbox::new();
        sandbox.unpack(&[lower.clone(), upper]).unwrap();
        let expected = [
            "opaque/",
            "opaque/both",
            "opaque/kept/",
            "opaque/kept/new",
            "replaced/",
            "replaced/new",
            "untouched",
        ];
        assert_eq!(sandbox.names(), expected);
        assert_eq!(sandbox.content("opaque/both"), "new");
        assert_eq!(fs::read_dir(sandbox.path("trash")).unwrap().count(), 0);
    }
    // In the first layer there is nothing to hide.
    let sandbox = Sandbox::new();
    sandbox.unpack(&[markers(content(Archive::new()))]).unwrap();
    assert_eq!(sandbox.content("opaque/both"), "new");
}

#[test]
fn later_entries_replace_earlier_ones_of_any_kind() {
    let kinds: [fn(Archive) -> Archive; 5] = [
        |layer| layer.file("x", b"file"),
        |layer| layer.directory("x").file("x/child", b""),
        |layer| layer.symlink("x", "other"),
        |layer| layer.raw(Archive::header(EntryType::Fifo), b"x", b""),
        |layer| layer.hard_link("x", "other"),
    ];
    for first in kinds {
        for second in kinds {
            let base = Archive::new().file("other", b"other");
            let together = Sandbox::new();
            together.unpack(&[second(first(base.clone()))]).unwrap();
            let apart = Sandbox::new();
            apart
                .unpack(&[first(base.clone()), second(Archive::new())])
                .unwrap();
            let alone = Sandbox::new();
            alone.unpack(&[second(base)]).unwrap();
            let root = |sandbox: &Sandbox| picture(&sandbox.path("root"));
            // The root itself is dated by the test's own clock.
            let below = |sandbox| root(sandbox).into_iter().skip(1).collect::<Vec<_>>();
            assert_eq!(below(&together), below(&alone));
            assert_eq!(below(&apart), below(&alone));
        }
    }
}

#[test]
fn directories_described_anew_keep_content_and_lose_old_attributes() {
    assert_root();
    let attribute = |name: &str| (format!("SCHILY.xattr.user.{name}"), b"value".to_vec());
    let (old, new) = (attribute("old"), attribute("new"));
    let lower = Archive::new()
        .pax(&[(&old.0, &old.1)])
        .directory("d")
        .file("d/file", b"");
    let mut header = Archive::header(EntryType::Directory);
    header.set_mode(0o700);
    header.set_mtime(77);
    let upper = Archive::new()
        .pax(&[(&new.0, &new.1)])
        .raw(header, b"d/", b"");
    let sandbox = Sandbox::new();
    sandbox
        .unpack(&[lower, upper, Archive::new().file("d/.wh.file", b"")])
        .unwrap();
    let directory = picture(&sandbox.path("root"))[Path::new("d")].clone();
    assert_eq!((directory.mode, directory.mtime), (0o40700, (77, 0)));
    assert_eq!(directory.xattrs.keys().collect::<Vec<_>>(), [b"user.new"]);
    assert_eq!(sandbox.names(), ["d/"]);
}

#[test]
fn links_in_lower_layers_are_followed_within_the_root() {
    let lower = Archive::new()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .symlink("absolute", "/usr/lib")
        .symlink("up", "../../../../usr/lib");
    let upper = Archive::new()
        .file("lib/a", b"a")
        .file("absolute/b", b"b")
        .file("up/c", b"c")
        .hard_link("hard", "lib/a");
    let sandbox = Sandbox::new();
    sandbox
        .unpack(&[lower, upper, Archive::new().file("lib/.wh.b", b"")])
        .unwrap();
    let expected = [
        "absolute/",
        "hard",
        "lib/",
        "up/",
        "usr/",
        "usr/lib/",
        "usr/lib/a",
        "usr/lib/c",
    ];
    let names: Vec<String> = picture(&sandbox.path("root"))
        .keys()
        .skip(1)
        .map(|path| {
            let name = path.to_str().unwrap();
            let directory = ["usr", "usr/lib", "lib", "up", "absolute"].contains(&name);
            format!("{name}{}", if directory { "/" } else { "" })
        })
        .collect();
    assert_eq!(names, expected);
    assert_eq!(
        sandbox.status("hard").ino(),
        sandbox.status("usr/lib/a").ino()
    );
}

#[test]
fn a_directory_reached_through_a_link_it_replaces_is_opened_anew() {
    let layer = Archive::new()
        .symlink("a", ".")
        .file("a/b", b"")
        .directory("a/a")
        .file("a/c", b"");
    let sandbox = Sandbox::new();
    sandbox.unpack(&[layer]).unwrap();
    assert_eq!(sandbox.names(), ["a/", "a/c", "b"]);
}

/// Layers that try to reach what is outside, by every way known.
fn attacks(outside: &str) -> Vec<(&'static str, Vec<Archive>)> {
    let new = Archive::new;
    let link = || new().symlink("l", outside);
    let relative = || new().symlink("l", "../outside");
    vec![
        (
            "parent in a name",
            vec![new().file("../outside/secret", b"attack")],
        ),
        (
            "parent within a name",
            vec![new().file("a/../../outside/secret", b"attack")],
        ),
        (
            "absolute name",
            vec![new().file(&format!("{outside}/secret"), b"attack")],
        ),
        (
            "write through an absolute link",
            vec![link().file("l/secret", b"attack")],
        ),
        (
            "write through a relative link",
            vec![relative().file("l/secret", b"attack")],
        ),
        (
            "write through a lower layer's link",
            vec![link(), new().file("l/secret", b"attack")],
        ),
        (
            "write to a link",
            vec![
                new()
                    .symlink("l", &format!("{outside}/secret"))
                    .file("l", b"x"),
            ],
        ),
        ("describe a linked directory", vec![link().directory("l")]),
        (
            "describe through a link",
            vec![link().directory("l/directory")],
        ),
        (
            "hard link to outside",
            vec![
                new()
                    .hard_link("h", &format!("{outside}/secret"))
                    .file("h", b"x"),
            ],
        ),
        (
            "hard link to a parent",
            vec![new().hard_link("h", "../outside/secret").file("h", b"x")],
        ),
        (
            "hard link through a link",
            vec![link().hard_link("h", "l/secret").file("h", b"attack")],
        ),
        (
            "hard link to a link",
            vec![
                new()
                    .symlink("s", &format!("{outside}/secret"))
                    .hard_link("h", "s")
                    .file("h", b"x"),
            ],
        ),
        ("hard link to the root", vec![new().hard_link("h", "/")]),
        (
            "hard link into a linked directory",
            vec![link().hard_link("l/new", "l")],
        ),
        (
            "parent replaced by a link",
            vec![
                new().directory("a").file("a/x", b""),
                new().symlink("a", outside).file("a/secret", b"attack"),
            ],
        ),
        (
            "parent replaced within a layer",
            vec![
                new()
                    .directory("a")
                    .file("a/x", b"")
                    .symlink("a", outside)
                    .file("a/secret", b"x"),
            ],
        ),
        (
            "parent replaced and described",
            vec![
                new()
                    .directory("a")
                    .file("a/x", b"")
                    .symlink("a", outside)
                    .file("a/.wh..wh..opq", b""),
            ],
        ),
        (
            "whiteout through a link",
            vec![link(), new().file("l/.wh.secret", b"")],
        ),
        (
            "whiteout of a linked directory",
            vec![link(), new().file(".wh.l", b"")],
        ),
        (
            "opaque through a link",
            vec![link(), new().file("l/.wh..wh..opq", b"").file("l/x", b"")],
        ),
        (
            "opaque through a link, afterwards",
            vec![link(), new().file("x", b"").file("l/.wh..wh..opq", b"")],
        ),
        (
            "whiteout of the parent",
            vec![new().file("a", b""), new().file(".wh...", b"")],
        ),
        (
            "whiteout of itself",
            vec![new().file("a", b""), new().file(".wh..", b"")],
        ),
        (
            "whiteout of nothing",
            vec![new().file("a", b""), new().file(".wh.", b"")],
        ),
        (
            "whiteout with a parent",
            vec![new().file("../.wh.outside", b"")],
        ),
        (
            "chain of links",
            vec![
                new()
                    .symlink("a", "b")
                    .symlink("b", "c/..")
                    .symlink("c", outside)
                    .file("a/secret", b"x"),
            ],
        ),
        (
            "loop of links",
            vec![new().symlink("a", "b").symlink("b", "a").file("a/x", b"")],
        ),
        (
            "root replaced by a link",
            vec![new().symlink(".", outside).file("secret", b"attack")],
        ),
        ("root replaced by a file", vec![new().file("/", b"")]),
        (
            "process's root",
            vec![
                new()
                    .symlink("p", "/proc/self/root")
                    .file("p/secret", b"attack"),
            ],
        ),
        (
            "process's directory",
            vec![new().symlink("p", "/proc/self/cwd").file("p/attack", b"")],
        ),
        (
            "through a pipe",
            vec![
                new()
                    .raw(Archive::header(EntryType::Fifo), b"f", b"")
                    .file("f/x", b""),
            ],
        ),
    ]
}

#[test]
fn nothing_outside_the_root_is_touched() {
    for (name, layers) in attacks("placeholder")
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (name, at))
    {
        let sandbox = Sandbox::new();
        let before = picture(&sandbox.path("outside"));
        let attack = attacks(&sandbox.outside()).swap_remove(layers).1;
        let result = sandbox.unpack(&attack);
        assert_eq!(
            picture(&sandbox.path("outside")),
            before,
            "{name}: {result:?}"
        );
        assert_eq!(fs::read(sandbox.path("secret")).unwrap(), SECRET, "{name}");
        let mut names: Vec<_> = fs::read_dir(sandbox.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "root", "secret", "trash"], "{name}");
        // Nothing of the outside was brought in either.
        for (path, object) in picture(&sandbox.path("root")) {
            assert_ne!(object.content, SECRET, "{name}: {}", path.display());
        }
    }
}

#[test]
fn hostile_names_are_refused_by_name() {
    let new = Archive::new;
    assert!(matches!(
        refused(&[new().file("a/../b", b"")]),
        EntryError::ParentComponent
    ));
    assert!(matches!(
        refused(&[new().file(".wh.a/b", b"")]),
        EntryError::InsideWhiteout
    ));
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        assert!(matches!(
            refused(&[new().file(name, b"")]),
            EntryError::WhiteoutOfNothing
        ));
    }
    assert!(matches!(
        refused(&[new().symlink("/", "x")]),
        EntryError::RootNotDirectory
    ));
    assert!(matches!(
        refused(&[new().hard_link("h", "gone")]),
        EntryError::HardLink { .. }
    ));
    assert!(matches!(
        refused(&[new().hard_link("h", "../x")]),
        EntryError::HardLink { .. }
    ));
    let long = "a/".repeat(2048);
    let long = new().pax(&[("path", long.as_bytes())]).file("x", b"");
    assert!(matches!(refused(&[long]), EntryError::PathTooLong));
    let uid = new().pax(&[("uid", b"4294967295")]).file("x", b"");
    assert!(matches!(
        refused(&[uid]),
        EntryError::OutOfRange {
            field: "user id",
            ..
        }
    ));
    let mut device = Archive::header(EntryType::Char);
    device.set_device_major(4096).unwrap();
    device.set_device_minor(0).unwrap();
    assert!(matches!(
        refused(&[new().raw(device, b"x", b"")]),
        EntryError::OutOfRange { .. }
    ));
}

#[test]
fn limits_end_the_work() {
    let many = (0..11).fold(Archive::new(), |layer, number| {
        layer.file(&number.to_string(), b"")
    });
    let limits = |unpacked_bytes, entries| Limits {
        unpacked_bytes,
        entries,
    };
    let run = |layer: &Archive, limits| {
        Sandbox::new().unpack_with(std::slice::from_ref(layer), limits, &Silent)
    };
    let entry = |result| match result {
        Err(UnpackError::Entry { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(run(&many, limits(1 << 20, 11)).is_ok());
    assert!(matches!(
        entry(run(&many, limits(1 << 20, 10))),
        EntryError::TooMany(10)
    ));
    let implied = Archive::new().file("1/2/3/4/5/6/7/8/9/10/file", b"");
    assert!(matches!(
        entry(run(&implied, limits(1 << 20, 10))),
        EntryError::TooMany(10)
    ));
    let sparse = [
        ("GNU.sparse.size", &b"9000000000000"[..]),
        ("GNU.sparse.map", b"0,1"),
    ];
    let sparse = Archive::new().pax(&sparse).file("sparse", b"x");
    let result = entry(run(&sparse, limits(1 << 20, 10)));
    assert!(matches!(
        result,
        EntryError::TooLarge {
            bytes: 9_000_000_000_000,
            ..
        }
    ));
}

#[test]
fn a_cancelled_layer_ends() {
    struct Cancelled;
    impl Observer for Cancelled {
        fn layer(&self, _: usize, _: usize, _: &str, _: u64) {}
        fn advance(&self, _: u64) {}
        fn warning(&self, _: &str) {}
        fn is_cancelled(&self) -> bool {
            true
        }
    }
    let layer = [Archive::new().file("a", b"a")];
    let result = Sandbox::new().unpack_with(&layer, Limits::default(), &Cancelled);
    assert!(matches!(result, Err(UnpackError::Cancelled)), "{result:?}");
}

#[test]
fn holes_stay_holes() {
    let map = [
        ("GNU.sparse.size", &b"50000000"[..]),
        ("GNU.sparse.map", b"40000000,4"),
    ];
    let sandbox = Sandbox::new();
    sandbox
        .unpack(&[Archive::new().pax(&map).file("sparse", b"data")])
        .unwrap();
    let status = sandbox.status("sparse");
    assert_eq!(status.len(), 50_000_000);
    assert!(status.blocks() < 1000, "{} blocks", status.blocks());
    let content = fs::read(sandbox.path("root/sparse")).unwrap();
    assert_eq!(&content[39_999_999..40_000_005], b"\0data\0");
}

#[test]
fn trees_of_any_depth_and_kind_are_removed() {
    let sandbox = Sandbox::new();
    let root = sandbox.open("root");
    // Deeper than a path can say and a process has descriptors for.
    let mut directory = root.try_clone().unwrap();
    for level in 0..5000 {
        rustix::fs::mkdirat(&directory, "d", rustix::fs::Mode::RWXU).unwrap();
        if level % 1000 == 0 {
            symlink(
                sandbox.outside(),
                sandbox.path("root").join(format!("l{level}")),
            )
            .unwrap();
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            rustix::fs::openat(&directory, ".removed-1", flags, rustix::fs::Mode::RWXU).unwrap();
        }
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        directory = rustix::fs::openat(&directory, "d", flags, rustix::fs::Mode::empty()).unwrap();
    }
    empty_directory(root.as_fd()).unwrap();
    assert_eq!(fs::read_dir(sandbox.path("root")).unwrap().count(), 0);
    assert_eq!(fs::read(sandbox.path("outside/secret")).unwrap(), SECRET);
}

#[test]
fn a_whiteout_of_a_deep_tree_works_or_says_why_not() {
    let deep = "d/".repeat(600);
    let lower = Archive::new()
        .pax(&[("path", format!("top/{deep}file").as_bytes())])
        .file("x", b"");
    let sandbox = Sandbox::new();
    sandbox
        .unpack(&[lower.clone(), Archive::new().file(".wh.top", b"")])
        .unwrap();
    assert!(sandbox.names().is_empty());
    let after = Archive::new()
        .file("top/new", b"")
        .file("top/.wh..wh..opq", b"");
    assert!(matches!(refused(&[lower, after]), EntryError::TooDeep(_)));
}

/// One entry of a hostile layer: what kind, and two names of a few that matter.
fn hostile_entry() -> impl Strategy<Value = (u8, String, String)> {
    let usual = prop::sample::select(vec!["a", "b", "secret", "directory"]);
    let odd = prop::sample::select(vec![
        "..",
        ".",
        "",
        "OUTSIDE",
        ".wh.a",
        ".wh.secret",
        ".wh..wh..opq",
        ".wh...",
    ]);
    let part = prop_oneof![4 => usual, 1 => odd];
    let name = prop::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    let outside = prop::sample::select(vec!["OUTSIDE", "../outside", "OUTSIDE/secret"]);
    let target = prop_oneof![name.clone(), outside.prop_map(str::to_owned)];
    (0u8..5, name, target)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_sequence_of_entries_reaches_outside(
        layers in prop::collection::vec(prop::collection::vec(hostile_entry(), 0..12), 1..4)
    ) {
        let sandbox = Sandbox::new();
        let before = picture(&sandbox.path("outside"));
        let outside = sandbox.outside();
        let layers: Vec<Archive> = layers
            .iter()
            .map(|entries| entries.iter().fold(Archive::new(), |layer, (kind, name, target)| {
                let (name, target) =
                    (name.replace("OUTSIDE", &outside), target.replace("OUTSIDE", &outside));
                if name.is_empty() || target.is_empty() {
                    return layer;
                }
                let named = |layer: Archive| layer.pax(&[("path", name.as_bytes())]);
                match kind {
                    0 => named(layer).file("x", b"attack"),
                    1 => named(layer).directory("x"),
                    2 => layer.link(EntryType::Symlink, &name, &target),
                    3 => layer.link(EntryType::Link, &name, &target),
                    _ => named(layer).raw(Archive::header(EntryType::Fifo), b"x", b""),
                }
            }))
            .collect();
        let _ = sandbox.unpack(&layers);
        prop_assert_eq!(picture(&sandbox.path("outside")), before);
        prop_assert_eq!(fs::read(sandbox.path("secret")).unwrap(), SECRET);
        for (path, object) in picture(&sandbox.path("root")) {
            prop_assert!(object.content != SECRET, "{} was brought in", path.display());
        }
        empty_directory(sandbox.open("root").as_fd()).unwrap();
    }
}

/// One object of a random tree: path, kind, mode, owner and content.
type Planned = (Vec<String>, u8, u32, u32, Vec<u8>);

/// A random tree on disk, for the round trip.
fn tree() -> impl Strategy<Value = Vec<Planned>> {
    let path = prop::collection::vec("[a-cé\n ]{1,3}|[x-z]{90,120}", 1..5);
    let content = prop::collection::vec(any::<u8>(), 0..5000);
    prop::collection::vec(
        (path, 0u8..7, 0u32..0o10_000, 0u32..100_000, content),
        0..25,
    )
}

fn make_tree(root: &Path, entries: &[Planned]) {
    use std::os::unix::fs::{PermissionsExt, chown, lchown};
    let mut files = Vec::new();
    for (path, kind, mode, id, content) in entries {
        let path = path
            .iter()
            .fold(root.to_owned(), |path, part| path.join(part));
        // Whatever does not fit what is there already is left out.
        if fs::create_dir_all(path.parent().unwrap()).is_err() || path.symlink_metadata().is_ok() {
            continue;
        }
        let made = match kind {
            0 => fs::create_dir(&path),
            1 => symlink(format!("target-{mode}"), &path),
            2 if !files.is_empty() => fs::hard_link(&files[*id as usize % files.len()], &path),
            3 => rustix::fs::mknodat(
                rustix::fs::CWD,
                &path,
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .map_err(Into::into),
            4 => fs::File::create(&path).and_then(|file| {
                use std::os::unix::fs::FileExt;
                file.write_all_at(content, u64::from(*id) * 41)?;
                file.set_len(u64::from(*id) * 41 + content.len() as u64 + u64::from(*mode))
            }),
            _ => fs::write(&path, content),
        };
        if made.is_err() || *kind == 2 {
            continue;
        }
        lchown(&path, Some(*id), Some(*mode)).unwrap();
        if *kind == 1 {
            continue;
        }
        chown(&path, Some(*id), Some(*mode)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        if path.symlink_metadata().unwrap().is_file() {
            files.push(path.clone());
        }
        if !path.symlink_metadata().unwrap().file_type().is_fifo() {
            let value = &content[..content.len().min(60)];
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&path, "user.test", value, flags).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn trees_packed_by_tar_unpack_the_same(entries in tree(), sparse in any::<bool>()) {
        assert_root();
        let sandbox = Sandbox::new();
        make_tree(&sandbox.path("outside"), &entries);
        let mut tar = std::process::Command::new("tar");
        tar.args(["-c", "--format=posix", "--xattrs", "--xattrs-include=*", "-C"]);
        tar.arg(sandbox.path("outside"));
        tar.args(sparse.then_some("-S")).arg(".");
        let output = tar.output().unwrap();
        prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut unpacker =
            Unpacker::new(sandbox.open("root"), sandbox.open("trash"), Limits::default(), &Silent);
        unpacker.apply(&output.stdout[..]).unwrap();
        let (found, expected) = (picture(&sandbox.path("root")), picture(&sandbox.path("outside")));
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, object) in &expected {
prop_assert!(*object == found[path], "{} differs", path.display());
        }
    }
}
