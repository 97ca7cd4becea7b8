//! Tests of finding images: every form they come in, every way they can be wrong.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use tar::EntryType;

use super::{
    BlobError, DecodeError, Image, ImageError, ImageReference, LayerError, Platform, SelectError,
    SourceError,
};
use crate::tarball::TarError;
use crate::testing::Archive;
use crate::unpack::{UnpackError, Unpacker};
use crate::{Limits, Silent};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIGURATION: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{:x}", Sha256::digest(bytes))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An image layout being written.
struct Layout {
    directory: tempfile::TempDir,
}

impl Layout {
    fn new() -> Self {
        let layout = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        layout.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        layout
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// Writes a blob and returns its descriptor.
    fn blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        self.write(&format!("blobs/{}", digest.replace(':', "/")), content);
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    fn document(&self, media_type: &str, content: &Value) -> Value {
        self.blob(media_type, content.to_string().as_bytes())
    }

    /// Writes an image of layers, each uncompressed and as it is stored; returns its manifest's descriptor.
    fn image(&self, architecture: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(plain, _)| sha256(plain)).collect();
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|(_, stored)| self.blob(LAYER, stored))
            .collect();
        self.image_of(architecture, &diff_ids, &descriptors)
    }

    fn image_of(&self, architecture: &str, diff_ids: &[String], layers: &[Value]) -> Value {
        let configuration = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"], "Env": null},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [],
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": self.document(CONFIGURATION, &configuration), "layers": layers,
        });
        self.document(MANIFEST, &manifest)
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        self.write("index.json", index.to_string().as_bytes());
    }

    /// A layout with one image, of one layer with one file.
    fn simple() -> Self {
        let layout = Self::new();
        let image = layout.image("amd64", &[plain("file")]);
        layout.index(&[image]);
        layout
    }

    fn open(&self, name: Option<&str>) -> Result<Image, ImageError> {
        Image::open(self.path(), name, &Platform::guest())
    }

    /// Packs the layout as an archive, the way `tar` does.
    fn archive(&self, prefix: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image.tar");
        let mut archive = Archive::new();
        for (name, object) in crate::testing::picture(self.path()) {
            let name = format!("{prefix}{}", name.display());
            archive = archive.pax(&[("path", name.as_bytes())]);
            archive = match object.mode & 0o170_000 {
                0o040_000 => archive.directory("x"),
                _ => archive.file("x", &object.content),
            };
        }
        fs::write(&path, archive.finish()).unwrap();
        (directory, path)
    }
}

/// A layer with one file, uncompressed.
fn plain(name: &str) -> (Vec<u8>, Vec<u8>) {
    let layer = Archive::new().file(name, name.as_bytes()).finish();
    (layer.clone(), layer)
}

fn unpack_with(image: &Image, limits: Limits) -> (tempfile::TempDir, Result<(), ImageError>) {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        fs::create_dir(directory.path().join(name)).unwrap();
        fs::File::open(directory.path().join(name)).unwrap().into()
    };
    let mut unpacker = Unpacker::new(open("root"), open("trash"), limits, &Silent);
    let result = image.unpack(&mut unpacker, limits, &Silent);
    (directory, result)
}

/// The names an image unpacks to.
fn unpacked(image: &Image) -> Vec<String> {
    let (directory, result) = unpack_with(image, Limits::default());
    result.unwrap();
    let root = crate::testing::picture(&directory.path().join("root"));
    root.keys()
        .skip(1)
        .map(|path| path.display().to_string())
        .collect()
}

fn layer_error(image: &Image, limits: Limits) -> LayerError {
    match unpack_with(image, limits).1 {
        Err(ImageError::Layer { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn layers_of_every_compression_unpack() {
    let layout = Layout::new();
    let layer = |name: &str, pack: fn(&[u8]) -> Vec<u8>| {
        let (plain, _) = plain(name);
        (plain.clone(), pack(&plain))
    };
    let image = layout.image(
        "amd64",
        &[
            layer("plain", <[u8]>::to_vec),
            layer("gzip", gzip),
            layer("gzip-of-several-members", |bytes| {
                [gzip(&bytes[..700]), gzip(&bytes[700..])].concat()
            }),
            layer("zstd", zstd),
            layer("zstd-of-several-frames", |bytes| {
                let skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip";
                [
                    &skippable[..],
                    &zstd(&bytes[..700]),
                    skippable,
                    &zstd(&bytes[700..]),
                ]
                .concat()
            }),
        ],
    );
    layout.index(&[image]);
    let expected = [
        "gzip",
        "gzip-of-several-members",
        "plain",
        "zstd",
        "zstd-of-several-frames",
    ];
    assert_eq!(unpacked(&layout.open(None).unwrap()), expected);
    for prefix in ["", "./"] {
        let (_directory, path) = layout.archive(prefix);
        let image = Image::open(&path, None, &Platform::guest()).unwrap();
        assert_eq!(unpacked(&image), expected);
    }
}

#[test]
fn sha512_is_checked_too() {
    let layout = Layout::new();
    let (layer, _) = plain("file");
    let digest = format!("sha512:{:x}", Sha512::digest(&layer));
    layout.write(&format!("blobs/{}", digest.replace(':', "/")), &layer);
    let descriptor = json!({"mediaType": LAYER, "digest": digest, "size": layer.len()});
    let image = layout.image_of("amd64", std::slice::from_ref(&digest), &[descriptor]);
    layout.index(&[image]);
    assert_eq!(unpacked(&layout.open(None).unwrap()), ["file"]);
    let mut damaged = layer.clone();
    damaged[600] ^= 1;
    layout.write(&format!("blobs/{}", digest.replace(':', "/")), &damaged);
    let result = unpack_with(&layout.open(None).unwrap(), Limits::default()).1;
    assert!(
        matches!(result, Err(ImageError::Blob(BlobError::Digest { .. }))),
        "{result:?}"
    );
}

#[test]
fn every_damaged_blob_is_named() {
    let count = fs::read_dir(Layout::simple().path().join("blobs/sha256"))
        .unwrap()
        .count();
    assert_eq!(count, 3);
    for damage in ["flip", "cut", "longer", "remove"] {
        let layout = Layout::simple();
        for file in fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
            let path = file.unwrap().path();
            let good = fs::read(&path).unwrap();
            let mut bad = good.clone();
            match damage {
                "flip" => bad[good.len() / 2] ^= 0x20,
                "cut" => bad.truncate(good.len() - 1),
                "longer" => bad.push(0),
                _ => fs::remove_file(&path).unwrap(),
            }
            if damage != "remove" {
                fs::write(&path, &bad).unwrap();
            }
            let result = layout
                .open(None)
                .and_then(|image| unpack_with(&image, Limits::default()).1);
            let Err(ImageError::Blob(error)) = result else {
                panic!("{damage}: {result:?}")
            };
            let message = error.to_string();
            assert!(
                message.contains(path.file_name().unwrap().to_str().unwrap()),
                "{message}"
            );
            fs::write(&path, &good).unwrap();
        }
    }
}

#[test]
fn a_compressed_layer_that_is_damaged_is_said_to_be_damaged() {
    let layout = Layout::new();
    let (plain, _) = plain("file");
    let stored = gzip(&plain);
    let image = layout.image("amd64", &[(plain, stored.clone())]);
    layout.index(&[image]);
    let mut damaged = stored.clone();
    damaged[12] ^= 0xff;
    layout.write(
        &format!("blobs/{}", sha256(&stored).replace(':', "/")),
        &damaged,
    );
    let result = unpack_with(&layout.open(None).unwrap(), Limits::default()).1;
    assert!(
        matches!(result, Err(ImageError::Blob(BlobError::Digest { .. }))),
        "{result:?}"
    );
}

#[test]
fn layers_that_are_not_what_the_configuration_says_are_refused() {
    let layout = Layout::new();
    let (one, _) = plain("one");
    let (other, _) = plain("other");
    // The blob is right, but decompresses to something else than the diff_id.
    layout.index(&[layout.image("amd64", &[(one.clone(), gzip(&other))])]);
    let error = layer_error(&layout.open(None).unwrap(), Limits::default());
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
    // Bytes behind the archive's end count, too.
    layout.index(&[layout.image("amd64", &[(one.clone(), [&one[..], b"more"].concat())])]);
    let error = layer_error(&layout.open(None).unwrap(), Limits::default());
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
    let descriptors = [layout.blob(LAYER, &one), layout.blob(LAYER, &other)];
    layout.index(&[layout.image_of("amd64", &[sha256(&one)], &descriptors)]);
    let error = layout.open(None).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::LayerCount {
                layers: 2,
                diff_ids: 1
            }
        ),
        "{error:?}"
    );
    layout.index(&[layout.image_of("amd64", &["md5:abc".to_owned()], &descriptors[..1])]);
    let error = layer_error(&layout.open(None).unwrap(), Limits::default());
    assert!(
        matches!(error, LayerError::Blob(BlobError::Algorithm(_))),
        "{error:?}"
    );
    layout.index(&[layout.image_of("amd64", &["nonsense".to_owned()], &descriptors[..1])]);
    assert!(matches!(
        layout.open(None).unwrap_err(),
        ImageError::DiffId(_)
    ));
}

#[test]
fn layers_that_cannot_be_unpacked_are_named() {
    let layout = Layout::new();
    let case = |stored: &[u8]| {
        layout.index(&[layout.image("amd64", &[plain("x"), (stored.to_vec(), stored.to_vec())])]);
        let result = unpack_with(&layout.open(None).unwrap(), Limits::default()).1;
        let Err(ImageError::Layer {
            number: 2,
            name,
            source,
        }) = result
        else {
            panic!("{result:?}")
        };
        assert_eq!(name, sha256(stored));
        source
    };
    let decode = |source| match source {
        LayerError::Decode(DecodeError::Compression(name)) => name,
        other => panic!("{other:?}"),
    };
    assert_eq!(decode(case(b"\xfd7zXZ\0whatever")), "xz");
    assert_eq!(decode(case(b"BZh9whatever")), "bzip2");
    let not_tar = case(&[b'x'; 600]);
    assert!(
        matches!(
            not_tar,
            LayerError::Unpack(UnpackError::Archive(TarError::Checksum { .. }))
        ),
        "{not_tar:?}"
    );
    let cut = gzip(&plain("file").0);
    let cut = case(&cut[..cut.len() - 9]);
    assert!(
        matches!(cut, LayerError::Unpack(_) | LayerError::Tail(_)),
        "{cut:?}"
    );
    let descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar+encrypted", b"x");
    layout.index(&[layout.image_of("amd64", &[sha256(b"x")], &[descriptor])]);
    assert!(matches!(
        layout.open(None).unwrap_err(),
        ImageError::LayerType { .. }
    ));
}

#[test]
fn decompression_bombs_are_stopped() {
    let bomb = Archive::new().file("zeros", &vec![0; 8 << 20]).finish();
    for pack in [gzip, zstd] {
        let layout = Layout::new();
        let stored = pack(&bomb);
        assert!(stored.len() < 1 << 20);
        layout.index(&[layout.image("amd64", &[plain("x"), (bomb.clone(), stored)])]);
        let limits = Limits {
            unpacked_bytes: 7 << 20,
            entries: 10,
        };
        let error = format!("{:?}", layer_error(&layout.open(None).unwrap(), limits));
        assert!(error.contains("TooLarge"), "{error}");
        let limits = Limits {
            unpacked_bytes: 9 << 20,
            entries: 10,
        };
        assert!(unpack_with(&layout.open(None).unwrap(), limits).1.is_ok());
    }
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

fn built_for(mut descriptor: Value, architecture: &str, variant: Option<&str>) -> Value {
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    if let Some(variant) = variant {
        descriptor["platform"]["variant"] = json!(variant);
    }
    descriptor
}

#[test]
fn images_are_found_by_name_tag_and_digest() {
    let layout = Layout::new();
    let one = layout.image("amd64", &[plain("one")]);
    let two = layout.image("amd64", &[plain("two")]);
    let digest = two["digest"].as_str().unwrap().to_owned();
    layout.index(&[named(one, "example.org/name:v1"), named(two, "latest")]);
    let find = |name: &str| unpacked(&layout.open(Some(name)).unwrap());
    assert_eq!(find("example.org/name:v1"), ["one"]);
    assert_eq!(find("v1"), ["one"]);
    assert_eq!(find("latest"), ["two"]);
    assert_eq!(find(&digest), ["two"]);
    assert_eq!(find(&format!("name@{digest}")), ["two"]);
    let error = layout.open(None).unwrap_err().to_string();
    assert_eq!(
        error,
        "more than one image: say which by IMAGE:NAME (there is example.org/name:v1, latest)"
    );
    let error = layout.open(Some("v2")).unwrap_err().to_string();
    assert_eq!(
        error,
        r#"no image named "v2" (there is example.org/name:v1, latest)"#
    );
}

#[test]
fn platforms_are_found_in_nested_indexes() {
    let layout = Layout::new();
    let arm = layout.image("arm64", &[plain("arm")]);
    let amd = layout.image("amd64", &[plain("amd")]);
    let attestation = built_for(layout.image("amd64", &[plain("no")]), "unknown", None);
    let nest = |manifests: &[Value]| {
        layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": manifests}))
    };
    let list = nest(&[
        attestation,
        built_for(arm, "arm64", Some("v8")),
        built_for(amd, "amd64", None),
    ]);
    layout.index(&[named(nest(&[list]), "latest")]);
    let open = |platform: &str| Image::open(layout.path(), None, &platform.parse().unwrap());
    assert_eq!(unpacked(&open("linux/amd64").unwrap()), ["amd"]);
    assert_eq!(unpacked(&open("linux/arm64/v8").unwrap()), ["arm"]);
    assert_eq!(unpacked(&open("linux/arm64").unwrap()), ["arm"]);
    let error = open("linux/arm64/v9").unwrap_err().to_string();
    assert!(error.contains("no image for linux/arm64/v9"), "{error}");
    assert!(
        error.contains("linux/amd64, linux/arm64/v8, linux/unknown"),
        "{error}"
    );
    // An image that says nothing in the index says it in its configuration.
    layout.index(&[layout.image("arm64", &[plain("arm")])]);
    let error = open("linux/amd64").unwrap_err().to_string();
    assert_eq!(error, "image is for linux/arm64, not for linux/amd64");
}

#[test]
fn indexes_nested_without_end_are_refused() {
    let layout = Layout::new();
    let mut list = layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": []}));
    for _ in 0..70 {
        // Twice each time: without a limit on the whole, the search would double at each level.
        let manifests = [list.clone(), list];
        list = layout.document(INDEX, &json!({"schemaVersion": 2, "manifests": manifests}));
    }
    layout.index(&[list]);
    let error = layout.open(None).unwrap_err();
    assert!(
        matches!(error, ImageError::Select(SelectError::TooManyIndexes)),
        "{error:?}"
    );
}

#[test]
fn docker_archives_are_read() {
    let (one, _) = plain("one");
    let configuration = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&one), sha256(&one)]},
    })
    .to_string();
    let file = format!("{}.json", &sha256(configuration.as_bytes())[7..]);
    let manifest = json!([{"Config": file, "RepoTags": ["name:tag"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let archive = |configuration: &str| {
        Archive::new()
            .file("a/layer.tar", &one)
            // As `docker save` writes a layer that occurs twice.
            .symlink("b/layer.tar", "../a/layer.tar")
            .pax(&[("path", file.as_bytes())])
            .file("x", configuration.as_bytes())
            .file("manifest.json", manifest.to_string().as_bytes())
            .finish()
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("saved.tar");
    let open = |name| Image::open(&path, name, &Platform::guest());
    fs::write(&path, archive(&configuration)).unwrap();
    for name in [None, Some("name:tag"), Some("tag")] {
        assert_eq!(unpacked(&open(name).unwrap()), ["one"]);
    }
    assert!(matches!(
        open(Some("other")).unwrap_err(),
        ImageError::Select(SelectError::Name { .. })
    ));
    fs::write(&path, archive(&configuration.replace("sh", "id"))).unwrap();
    assert!(matches!(
        open(None).unwrap_err(),
        ImageError::Blob(BlobError::Digest { .. })
    ));
}

#[test]
fn what_is_no_image_is_said_to_be_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    let open = |path: &Path| Image::open(path, None, &Platform::guest()).unwrap_err();
    assert!(matches!(
        open(&path),
        ImageError::Source(SourceError::Open { .. })
    ));
    assert!(matches!(open(directory.path()), ImageError::NotAnImage(_)));
    fs::write(&path, Archive::new().file("hello", b"").finish()).unwrap();
    assert!(matches!(open(&path), ImageError::NotAnImage(_)));
    fs::write(&path, "not an archive").unwrap();
    assert!(matches!(
        open(&path),
        ImageError::Source(SourceError::Archive { .. })
    ));
    fs::write(&path, gzip(b"archive")).unwrap();
    let error = open(&path).to_string();
    assert!(
        error.ends_with("is compressed: decompress it first (gunzip)"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(
        matches!(open(&path), ImageError::Source(SourceError::Open { .. })),
        "no waiting"
    );

    let layout = Layout::simple();
    layout.write("oci-layout", br#"{"imageLayoutVersion":"2.0.0"}"#);
    assert!(matches!(
        layout.open(None).unwrap_err(),
        ImageError::LayoutVersion(_)
    ));
    layout.write("oci-layout", b"{");
    assert!(matches!(
        layout.open(None).unwrap_err(),
        ImageError::Document { .. }
    ));
    let layout = Layout::simple();
    layout.write("index.json", &vec![b' '; 9 << 20]);
    assert!(matches!(
        layout.open(None).unwrap_err(),
        ImageError::DocumentTooLong { .. }
    ));
    let helm = json!({
        "schemaVersion": 2, "layers": [],
        "config": layout.blob("application/vnd.cncf.helm.config.v1+json", b"{}"),
    });
    layout.index(&[layout.document(MANIFEST, &helm)]);
    assert!(matches!(
        layout.open(None).unwrap_err(),
        ImageError::NotAContainer { .. }
    ));
}

#[test]
fn files_outside_a_hostile_image_are_not_read() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("private"), b"{}").unwrap();
    let image = directory.path().join("image");
    fs::create_dir(&image).unwrap();
    let manifest = json!([{"Config": "../private", "RepoTags": null, "Layers": []}]);
    fs::write(image.join("manifest.json"), manifest.to_string()).unwrap();
    let error = Image::open(&image, None, &Platform::guest()).unwrap_err();
    assert!(
        matches!(error, ImageError::Blob(BlobError::Missing(_))),
        "{error:?}"
    );
    let traversal = Archive::new()
        .symlink("config", "../../../private")
        .file(
            "manifest.json",
            manifest
                .to_string()
                .replace("../private", "config")
                .as_bytes(),
        )
        .finish();
    let path = directory.path().join("image.tar");
    fs::write(&path, traversal).unwrap();
    let error = Image::open(&path, None, &Platform::guest()).unwrap_err();
    assert!(
        matches!(error, ImageError::Blob(BlobError::Missing(_))),
        "{error:?}"
    );
}

#[test]
fn archives_cut_short_or_with_sparse_parts_are_refused() {
    let (_directory, path) = Layout::simple().archive("");
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(512 + 37) {
        fs::write(&path, &whole[..length]).unwrap();
        let result = Image::open(&path, None, &Platform::guest())
            .and_then(|image| unpack_with(&image, Limits::default()).1);
        // What is cut off may be the archive's end alone.
        assert!(result.is_err() || length + 1024 > whole.len(), "{length}");
    }
    let sparse = [
        ("GNU.sparse.size", &b"9"[..]),
        ("GNU.sparse.map", b"0,1,5,1"),
    ];
    fs::write(
        &path,
        Archive::new()
            .pax(&sparse)
            .file("oci-layout", b"{}")
            .finish(),
    )
    .unwrap();
    let error = Image::open(&path, None, &Platform::guest()).unwrap_err();
    assert!(matches!(error, ImageError::NotAnImage(_)), "{error:?}");
    let huge = Archive::new().pax(&[("size", b"9223372036854775807")]).raw(
        Archive::header(EntryType::Regular),
        b"oci-layout",
        b"",
    );
    fs::write(&path, huge.finish()).unwrap();
    let error = Image::open(&path, None, &Platform::guest()).unwrap_err();
    assert!(
        matches!(error, ImageError::Source(SourceError::Archive { .. })),
        "{error:?}"
    );
}

#[test]
fn references_split_at_the_longest_path_that_exists() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("with:colon");
    fs::write(&path, "").unwrap();
    let path = path.to_str().unwrap();
    let parse = |text: &str| ImageReference::new(text);
    let is = |text: &str, name: Option<&str>| {
        let expected = ImageReference {
            path: path.into(),
            name: name.map(str::to_owned),
        };
        assert_eq!(parse(text), expected);
    };
    is(path, None);
    is(&format!("{path}:"), None);
    is(&format!("{path}:latest"), Some("latest"));
    is(
        &format!("{path}:example.org:5000/name:tag"),
        Some("example.org:5000/name:tag"),
    );
    assert_eq!(parse("/no/where:tag").path, Path::new("/no/where:tag"));
}

#[test]
fn platforms_are_parsed() {
    let parse = |text: &str| text.parse::<Platform>();
    assert_eq!(parse("linux/amd64").unwrap(), Platform::guest());
    assert_eq!(
        parse("linux/arm64/v8").unwrap().to_string(),
        "linux/arm64/v8"
    );
    for wrong in [
        "",
        "linux",
        "linux/",
        "/amd64",
        "linux/arm64/",
        "linux/arm64/v8/x",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
