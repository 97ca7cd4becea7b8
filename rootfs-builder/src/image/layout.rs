//! OCI image layouts: from `index.json` to one manifest, to configuration and layers.
//!
//! Called by the parent module (image-spec: image-layout.md, image-index.md, manifest.md).

use std::collections::BTreeSet;

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout,
};

use super::blob::Blob;
use super::source::Source;
use super::{Image, ImageError, Platform, read_document};

/// Where a name is, in the annotations of an index: the standard's place, then containerd's.
const NAME_ANNOTATIONS: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];
/// Docker's media types of the same documents.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIGURATION: &str = "application/vnd.docker.container.image.v1+json";
/// How the media types of layers begin, OCI's and Docker's.
const LAYER_TYPES: [&str; 2] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
];
/// What is at the end of the media type of an encrypted layer.
const ENCRYPTED: &str = "+encrypted";
/// The most nested indexes that are read. Real images have one or two.
const MAX_INDEXES: usize = 64;

/// Why no single image was found in a layout.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// No image has the name.
    #[error("no image named {name:?} (there is {available})")]
    Name {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// No image of the name is for the platform.
    #[error("no image for {wanted} (there is {available})")]
    Platform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// There are several images and none was named.
    #[error("more than one image: say which by IMAGE:NAME (there is {0})")]
    Ambiguous(String),
    /// Indexes are nested without end.
    #[error("image has more than {MAX_INDEXES} nested indexes")]
    TooManyIndexes,
}

/// Opens the image called `name`, or the only one, in an image layout.
pub(super) fn open(
    source: Source,
    name: Option<&str>,
    platform: &Platform,
) -> Result<Image, ImageError> {
    let version: OciLayout = read_document(&source, &Blob::plain("oci-layout"), "image layout")?;
    if !version.image_layout_version().starts_with("1.") {
        return Err(ImageError::LayoutVersion(
            version.image_layout_version().clone(),
        ));
    }
    let index: ImageIndex = read_document(&source, &Blob::plain("index.json"), "image index")?;
    let blob = Blob::from(&Search::new(&source, platform).manifest(&index, name)?);
    let manifest: ImageManifest = read_document(&source, &blob, "image manifest")?;
    let media_type = manifest.config().media_type();
    if !matches!(media_type, MediaType::ImageConfig) && media_type.as_ref() != DOCKER_CONFIGURATION
    {
        let media_type = media_type.to_string();
        return Err(ImageError::NotAContainer {
            name: blob.name,
            media_type,
        });
    }
    let configuration = Blob::from(manifest.config());
    let configuration: ImageConfiguration =
        read_document(&source, &configuration, "image configuration")?;
    let layers = manifest
        .layers()
        .iter()
        .map(layer)
        .collect::<Result<_, _>>()?;
    Image::new(source, configuration, layers)
}

fn layer(descriptor: &Descriptor) -> Result<Blob, ImageError> {
    let blob = Blob::from(descriptor);
    let media_type = descriptor.media_type().as_ref();
    let known = LAYER_TYPES
        .iter()
        .any(|prefix| media_type.starts_with(prefix));
    if !known || media_type.ends_with(ENCRYPTED) {
        return Err(ImageError::LayerType {
            name: blob.name,
            media_type: media_type.to_owned(),
        });
    }
    Ok(blob)
}

/// The search for a manifest through nested indexes.
struct Search<'s> {
    source: &'s Source,
    platform: &'s Platform,
    indexes: usize,
    /// Platforms that were met and passed by, for the message.
    passed: BTreeSet<String>,
}

impl<'s> Search<'s> {
    fn new(source: &'s Source, platform: &'s Platform) -> Self {
        Self {
            source,
            platform,
            indexes: 0,
            passed: BTreeSet::new(),
        }
    }

    /// Finds the one manifest that `name` and the platform ask for.
    fn manifest(
        mut self,
        index: &ImageIndex,
        name: Option<&str>,
    ) -> Result<Descriptor, ImageError> {
        let listed = index.manifests();
        let named: Vec<&Descriptor> = listed
            .iter()
            .filter(|one| name.is_none_or(|name| is_named(one, name)))
            .collect();
        if let (Some(name), true) = (name, named.is_empty()) {
            let (name, available) = (name.to_owned(), names(listed));
            return Err(SelectError::Name { name, available }.into());
        }
        let mut found: Option<Descriptor> = None;
        for descriptor in named {
            let Some(manifest) = self.first(descriptor)? else {
                continue;
            };
            match &found {
                Some(first) if first.digest() != manifest.digest() && name.is_none() => {
                    return Err(SelectError::Ambiguous(names(listed)).into());
                }
                Some(_) => {}
                None => found = Some(manifest),
            }
        }
        found.ok_or_else(|| {
            let available = or_nothing(self.passed.into_iter().collect());
            SelectError::Platform {
                wanted: self.platform.to_string(),
                available,
            }
            .into()
        })
    }

    /// Returns the first manifest for the platform in what a descriptor stands for: itself, or those of an
    /// index. The standard says to take the first if there are several.
    fn first(&mut self, descriptor: &Descriptor) -> Result<Option<Descriptor>, ImageError> {
        if let Some(platform) = descriptor.platform() {
            let found = Platform {
                os: platform.os().to_string(),
                architecture: platform.architecture().to_string(),
                variant: platform.variant().clone(),
            };
            if !self.platform.accepts(&found) {
                self.passed.insert(found.to_string());
                return Ok(None);
            }
        }
        match descriptor.media_type() {
            MediaType::ImageManifest => return Ok(Some(descriptor.clone())),
            MediaType::Other(other) if other == DOCKER_MANIFEST => {
                return Ok(Some(descriptor.clone()));
            }
            MediaType::ImageIndex => {}
            MediaType::Other(other) if other == DOCKER_LIST => {}
            _ => return Ok(None),
        }
        self.indexes += 1;
        if self.indexes > MAX_INDEXES {
            return Err(SelectError::TooManyIndexes.into());
        }
        let index: ImageIndex = read_document(self.source, &Blob::from(descriptor), "image index")?;
        for nested in index.manifests() {
            if let Some(manifest) = self.first(nested)? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }
}

/// Whether `name` is one of the descriptor's names, the tag of one, or its digest.
fn is_named(descriptor: &Descriptor, name: &str) -> bool {
    let digest = name.rsplit_once('@').map_or(name, |(_, digest)| digest);
    let tag = |full: &str| full.rsplit_once(':').map(|(_, tag)| tag.to_owned());
    descriptor.digest().as_ref() == digest
        || name_annotations(descriptor)
            .any(|full| full == name || tag(full).as_deref() == Some(name))
}

fn name_annotations(descriptor: &Descriptor) -> impl Iterator<Item = &str> {
    let annotations = descriptor.annotations().as_ref();
    let named = move |key: &&str| {
        annotations
            .and_then(|map| map.get(*key))
            .map(String::as_str)
    };
    NAME_ANNOTATIONS.iter().filter_map(named)
}

/// The names of all images, for messages.
fn names(descriptors: &[Descriptor]) -> String {
    let name = |descriptor: &Descriptor| {
        let name = name_annotations(descriptor).next().map(str::to_owned);
        name.unwrap_or_else(|| descriptor.digest().to_string())
    };
    or_nothing(descriptors.iter().map(name).collect())
}

fn or_nothing(names: Vec<String>) -> String {
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}
