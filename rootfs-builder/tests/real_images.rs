//! Images as real tools make them, unpacked here and by umoci: the trees must be the same.
//!
//! Run by `cargo test -p rootfs-builder --features real-tools`, as root, with skopeo, buildah and
//! umoci installed (Debian packages of these names). Images are built offline, from nothing.

#![allow(
    clippy::unwrap_used,
    reason = "a test that panics has failed, which is what it is for"
)]

#[path = "../src/testing/picture.rs"]
mod picture;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use picture::picture;

/// A place to work in, with buildah's storage in it.
struct Workshop {
    directory: tempfile::TempDir,
}

impl Workshop {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a program here, and returns what it prints.
    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.directory.path())
            .output()
            .unwrap_or_else(|error| {
                panic!("{program}: {error} (apt-get install skopeo buildah umoci)")
            });
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn buildah(&self, arguments: &[&str]) -> String {
        let storage = [
            "--root",
            "storage",
            "--runroot",
            "run",
            "--storage-driver",
            "vfs",
        ]
        .as_slice();
        self.run("buildah", &[storage, arguments].concat())
    }

    fn unpack(&self, image: &str, bundle: &str) -> PathBuf {
        self.run(
            env!("CARGO_BIN_EXE_rootfs-builder"),
            &["from-oci", image, bundle],
        );
        self.path(bundle)
    }
}

/// Builds an image of three layers, with everything in it that a layer can hold.
fn build(workshop: &Workshop) {
    let base = workshop.buildah(&["from", "--name", "base", "scratch"]);
    let root = PathBuf::from(workshop.buildah(&["mount", &base]));
    for directory in ["bin", "usr/lib", "etc", "data/opaque/sub", "dev", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "www:x:34:\nlog:x:50:web\n").unwrap();
    fs::write(root.join("bin/program"), vec![7; 300_000]).unwrap();
    fs::hard_link(root.join("bin/program"), root.join("bin/again")).unwrap();
    fs::set_permissions(root.join("bin/program"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    let long = format!("usr/lib/{}", "ü".repeat(120));
    fs::write(root.join(&long), "long name").unwrap();
    chown(root.join(&long), Some(3_000_000), Some(4_000_000)).unwrap();
    fs::write(root.join("data/gone"), "").unwrap();
    fs::write(root.join("data/opaque/sub/old"), "").unwrap();
    let sparse = fs::File::create(root.join("data/sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 5 << 20).unwrap();
    let attribute = rustix::fs::XattrFlags::empty();
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let capable = root.join("bin/capable");
    fs::write(&capable, "").unwrap();
    rustix::fs::setxattr(&capable, "security.capability", capability, attribute).unwrap();
    for (name, kind, device) in [
        (
            "dev/null",
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        ),
        (
            "dev/disk",
            rustix::fs::FileType::BlockDevice,
            rustix::fs::makedev(259, 70_000),
        ),
        ("dev/pipe", rustix::fs::FileType::Fifo, 0),
    ] {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(rustix::fs::CWD, root.join(name), kind, mode, device).unwrap();
    }
    workshop.buildah(&[
        "config",
        "--entrypoint",
        r#"["/bin/program"]"#,
        "--cmd",
        "argument",
        "--env",
        "NAME=value",
        "--user",
        "web",
        "--workingdir",
        "/data",
        "--port",
        "80/tcp",
        "--label",
        "label=value",
        "--stop-signal",
        "SIGINT",
        &base,
    ]);
    workshop.buildah(&["commit", &base, "base"]);

    let second = workshop.buildah(&["from", "--name", "second", "localhost/base"]);
    let root = PathBuf::from(workshop.buildah(&["mount", &second]));
    fs::remove_file(root.join("data/gone")).unwrap();
    fs::remove_dir_all(root.join("data/opaque")).unwrap();
    fs::create_dir(root.join("data/opaque")).unwrap();
    fs::write(root.join("data/opaque/new"), "").unwrap();
    fs::write(root.join("usr/lib/library"), "").unwrap();
    fs::remove_file(root.join("bin/again")).unwrap();
    fs::create_dir(root.join("bin/again")).unwrap();
    fs::write(root.join("bin/again/file"), "").unwrap();
    workshop.buildah(&["commit", &second, "second"]);

    let third = workshop.buildah(&["from", "--name", "third", "localhost/second"]);
    let root = PathBuf::from(workshop.buildah(&["mount", &third]));
    fs::remove_dir_all(root.join("bin/again")).unwrap();
    symlink("program", root.join("bin/again")).unwrap();
    fs::remove_file(root.join("lib")).unwrap();
    fs::create_dir(root.join("lib")).unwrap();
    fs::write(root.join("lib/own"), "").unwrap();
    workshop.buildah(&["commit", &third, "third"]);
}

fn assert_same(ours: &Path, theirs: &Path, image: &str) {
    let (ours, theirs) = (
        picture(&ours.join("rootfs")),
        picture(&theirs.join("rootfs")),
    );
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>(),
        "{image}"
    );
    for (path, object) in &theirs {
        assert!(ours[path] == *object, "{image}: {} differs", path.display());
    }
}

#[test]
fn images_of_every_tool_and_form_unpack_as_umoci_does() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test builds images: run it as root"
    );
    let workshop = Workshop::new();
    build(&workshop);
    workshop.buildah(&["push", "localhost/third", "oci:layout:third"]);
    workshop.buildah(&[
        "push",
        "localhost/base",
        "oci:layout:docker.io/library/base:v1",
    ]);
    workshop.buildah(&["push", "localhost/third", "oci-archive:third.tar:third"]);
    workshop.buildah(&[
        "push",
        "localhost/third",
        "docker-archive:docker.tar:third:latest",
    ]);
    let zstd = [
        "copy",
        "--dest-compress-format",
        "zstd",
        "oci:layout:third",
        "oci:zstd:third",
    ];
    workshop.run("skopeo", &zstd);
    workshop.run("umoci", &["unpack", "--image", "layout:third", "umoci"]);

    for (number, image) in [
        "layout:third",
        "third.tar",
        "third.tar:third",
        "docker.tar:latest",
        "zstd",
    ]
    .iter()
    .enumerate()
    {
        let ours = workshop.unpack(image, &format!("ours{number}"));
        assert_same(&ours, &workshop.path("umoci"), image);
    }
    let blobs = fs::read_dir(workshop.path("zstd/blobs/sha256")).unwrap();
    let magic = |path: PathBuf| {
        fs::read(path)
            .unwrap()
            .starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
    };
    assert_eq!(
        blobs
            .filter(|blob| magic(blob.as_ref().unwrap().path()))
            .count(),
        3
    );

    workshop.run(
        "umoci",
        &[
            "unpack",
            "--image",
            "layout:docker.io/library/base:v1",
            "umoci-base",
        ],
    );
    let base = workshop.unpack("layout:v1", "base");
    assert_same(&base, &workshop.path("umoci-base"), "base");
    let text = fs::read(base.join("config.json")).unwrap();
    let spec: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(spec["process"]["args"], json!(["/bin/program", "argument"]));
    assert_eq!(
        spec["process"]["user"],
        json!({"uid": 33, "gid": 34, "additionalGids": [50]})
    );
    assert_eq!(spec["process"]["cwd"], "/data");
    assert_eq!(
        spec["annotations"]["org.opencontainers.image.stopSignal"],
        "SIGINT"
    );
    assert_eq!(
        spec["annotations"]["org.opencontainers.image.exposedPorts"],
        "80/tcp"
    );
    assert_eq!(spec["annotations"]["label"], "value");
}
