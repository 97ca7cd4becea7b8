//! The archives of `docker save` and `podman save`: `manifest.json` names configuration and layers.
//!
//! Called by the parent module. The format is Docker's "image specification v1.2"; layers have no
//! digest of their own there, but their diff_ids in the configuration are checked.

use oci_spec::image::{Digest, ImageConfiguration};
use serde::Deserialize;

use super::blob::Blob;
use super::layout::SelectError;
use super::source::Source;
use super::{Image, ImageError, read_document};

/// One image of an archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Opens the image called `name`, or the only one, in a docker archive.
pub(super) fn open(source: Source, name: Option<&str>) -> Result<Image, ImageError> {
    let manifest = Blob::plain("manifest.json");
    let entries: Vec<Entry> = read_document(&source, &manifest, "docker manifest")?;
    let entry = select(&entries, name)?;
    let configuration: ImageConfiguration = read_document(
        &source,
        &configuration_blob(&entry.config),
        "image configuration",
    )?;
    let layers = entry.layers.iter().map(|file| Blob::plain(file)).collect();
    Image::new(source, configuration, layers)
}

fn select<'e>(entries: &'e [Entry], name: Option<&str>) -> Result<&'e Entry, SelectError> {
    let tags: Vec<&str> = entries
        .iter()
        .flat_map(|entry| entry.repo_tags.iter().flatten())
        .map(String::as_str)
        .collect();
    let available = || {
        if tags.is_empty() {
            "nothing".to_owned()
        } else {
            tags.join(", ")
        }
    };
    match (name, entries) {
        (None, [entry]) => Ok(entry),
        (None, _) => Err(SelectError::Ambiguous(available())),
        (Some(name), _) => entries
            .iter()
            .find(|entry| {
                entry
                    .repo_tags
                    .iter()
                    .flatten()
                    .any(|tag| is_named(tag, name))
            })
            .ok_or_else(|| SelectError::Name {
                name: name.to_owned(),
                available: available(),
            }),
    }
}

/// Whether `name` is the full name, or its tag alone.
fn is_named(full: &str, name: &str) -> bool {
    full == name || full.rsplit_once(':').is_some_and(|(_, tag)| tag == name)
}

/// The configuration's file is named by its digest, `HEX.json` or `blobs/sha256/HEX`: then it is checked.
fn configuration_blob(file: &str) -> Blob {
    let stem = file.strip_suffix(".json").unwrap_or(file);
    let hex = stem.rsplit('/').next().unwrap_or(stem);
    let digest = Digest::try_from(format!("sha256:{hex}")).ok();
    Blob {
        digest,
        ..Blob::plain(file)
    }
}
