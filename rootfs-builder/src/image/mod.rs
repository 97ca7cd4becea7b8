//! Finds an image in a file or directory, and hands out its layers, every byte checked.
//!
//! [`crate::bundle`] calls it. Reads OCI image layouts, as directories and as archives (image-spec,
//! image-layout.md), and the archives of `docker save`. Knows nothing of what layers
//! contain: [`crate::unpack`] does.

mod blob;
mod decode;
mod docker;
mod layers;
mod layout;
mod reference;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::{Digest, ImageConfiguration};

pub use blob::BlobError;
pub use decode::DecodeError;
pub use layers::LayerError;
pub use layout::SelectError;
pub use reference::{ImageReference, ParsePlatformError, Platform};
pub use source::SourceError;

use blob::Blob;
use source::Source;

/// The longest index, manifest or configuration: what registries take, doubled.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
/// The most layers an image may have. Overlay file systems allow a few hundred.
const MAX_LAYERS: usize = 1024;

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image's file or directory cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The path is neither an OCI image layout nor a docker archive.
    #[error("{0} is neither an OCI image layout (directory or archive) nor a docker archive")]
    NotAnImage(PathBuf),
    /// A blob is missing, damaged or not what its digest says.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A document is longer than any sensible one.
    #[error("{name} of {bytes} bytes is over the limit of {MAX_DOCUMENT_BYTES}")]
    DocumentTooLong {
        /// Which document.
        name: String,
        /// Its length.
        bytes: u64,
    },
    /// A document is not what its place or media type says.
    #[error("{name} is not a valid {kind}")]
    Document {
        /// Which document.
        name: String,
        /// What it should be.
        kind: &'static str,
        /// Where it fails.
        #[source]
        source: serde_json::Error,
    },
    /// No single image was asked for.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The layout's version is not 1.
    #[error("image layout version {0:?} is not supported (only 1.x)")]
    LayoutVersion(String),
    /// The manifest is that of something else than a container image.
    #[error("{name} is not a container image: {media_type:?} is the type of its configuration")]
    NotAContainer {
        /// The manifest.
        name: String,
        /// The media type of its configuration.
        media_type: String,
    },
    /// A layer is of a kind that cannot be unpacked.
    #[error("layer {name} has the unsupported media type {media_type:?}")]
    LayerType {
        /// The layer.
        name: String,
        /// Its media type.
        media_type: String,
    },
    /// The configuration belongs to another manifest.
    #[error("manifest has {layers} layers, but the configuration has {diff_ids} diff_ids")]
    LayerCount {
        /// Layers of the manifest.
        layers: usize,
        /// Digests of uncompressed layers in the configuration.
        diff_ids: usize,
    },
    /// The image has too many layers.
    #[error("image has {0} layers, more than {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// A digest is not of the form `algorithm:hex`.
    #[error("diff_id {0:?} is not a digest")]
    DiffId(String),
    /// The image is for another machine.
    #[error("image is for {found}, not for {wanted}")]
    Platform {
        /// What the configuration says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A layer cannot be unpacked.
    #[error("layer {number} ({name})")]
    Layer {
        /// Its place in the image, from 1.
        number: usize,
        /// Its digest or path.
        name: String,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
}

/// One layer: where its bytes are, and the digest of what they decompress to.
#[derive(Debug)]
struct Layer {
    blob: Blob,
    diff_id: Digest,
}

/// An image whose documents were read and found right. Layers are checked as they are read.
#[derive(Debug)]
pub struct Image {
    source: Source,
    configuration: ImageConfiguration,
    layers: Vec<Layer>,
}

impl Image {
    /// Opens the image at `path`. `name` chooses among several: a tag, a full name or a manifest's digest.
    ///
    /// # Errors
    ///
    /// When there is no image, none or several of that name and platform, or when one of its
    /// documents is malformed or does not have its digest.
    pub fn open(path: &Path, name: Option<&str>, platform: &Platform) -> Result<Self, ImageError> {
        let source = Source::open(path)?;
        let image = if source.has("oci-layout") {
            layout::open(source, name, platform)?
        } else if source.has("manifest.json") {
            docker::open(source, name)?
        } else {
            return Err(ImageError::NotAnImage(path.to_owned()));
        };
        let found = Platform::of(&image.configuration);
        if !platform.accepts(&found) {
            return Err(ImageError::Platform {
                found: found.to_string(),
                wanted: platform.to_string(),
            });
        }
        Ok(image)
    }

    /// What the image says about running it.
    #[must_use]
    pub fn configuration(&self) -> &ImageConfiguration {
        &self.configuration
    }

    /// Puts an image together; `layers` are in the order of the configuration.
    fn new(
        source: Source,
        configuration: ImageConfiguration,
        layers: Vec<Blob>,
    ) -> Result<Self, ImageError> {
        let diff_ids = configuration.rootfs().diff_ids();
        if layers.len() != diff_ids.len() {
            let (layers, diff_ids) = (layers.len(), diff_ids.len());
            return Err(ImageError::LayerCount { layers, diff_ids });
        }
        if layers.len() > MAX_LAYERS {
            return Err(ImageError::TooManyLayers(layers.len()));
        }
        let layers = layers
            .into_iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| match Digest::try_from(diff_id.as_str()) {
                Ok(diff_id) => Ok(Layer { blob, diff_id }),
                Err(_) => Err(ImageError::DiffId(diff_id.clone())),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            source,
            configuration,
            layers,
        })
    }
}

/// Reads the document in `blob`, which must be JSON of a `kind`.
fn read_document<T: serde::de::DeserializeOwned>(
    source: &Source,
    blob: &Blob,
    kind: &'static str,
) -> Result<T, ImageError> {
    let name = || format!("{kind} {}", blob.name);
    let mut reader = blob.open(source)?;
    if reader.size() > MAX_DOCUMENT_BYTES {
        return Err(ImageError::DocumentTooLong {
            name: name(),
            bytes: reader.size(),
        });
    }
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut reader, &mut bytes).map_err(|source| BlobError::Read {
        name: blob.name.clone(),
        source,
    })?;
    reader.finish()?;
    serde_json::from_slice(&bytes).map_err(|source| ImageError::Document {
        name: blob.name.clone(),
        kind,
        source,
    })
}

#[cfg(test)]
mod tests;
