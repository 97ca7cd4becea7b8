//! Unpacks an image's layers one after another: blob, decompression, digests, archive.
//!
//! Called by [`crate::bundle`], through [`Image::unpack`].

use std::io::{self, Read};

use super::blob::{BlobError, BlobReader, Hasher};
use super::decode::{DecodeError, Decoded};
use super::{Image, ImageError, Layer};
use crate::unpack::{UnpackError, Unpacker};
use crate::{Limits, Observer};

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob is not what it should be.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// The blob cannot be decompressed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// What follows the archive in the blob cannot be decompressed.
    #[error("layer cannot be decompressed to its end")]
    Tail(#[source] io::Error),
    /// The uncompressed layer is not the one the configuration names.
    #[error("uncompressed layer has the digest {found} instead of the diff_id {expected}")]
    DiffId {
        /// The configuration's digest.
        expected: String,
        /// The digest of the layer.
        found: String,
    },
    /// The archive cannot be applied.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
}

impl Image {
    /// Applies all layers with `unpacker`, which must be new.
    ///
    /// # Errors
    ///
    /// When a blob is missing or damaged, or a layer cannot be applied. The layers before it
    /// have been applied then, it itself in part.
    pub fn unpack(
        &self,
        unpacker: &mut Unpacker<'_>,
        limits: Limits,
        observer: &dyn Observer,
    ) -> Result<(), ImageError> {
        let mut left = limits.unpacked_bytes;
        for (index, layer) in self.layers.iter().enumerate() {
            let number = index + 1;
            let name = || layer.blob.name.clone();
            let failed = |source| ImageError::Layer {
                number,
                name: name(),
                source,
            };
            let mut blob = layer.blob.open(&self.source)?;
            observer.layer(number, self.layers.len(), &layer.blob.name, blob.size());
            let mut watched = Watched {
                blob: &mut blob,
                observer,
            };
            let applied = apply(layer, &mut watched, unpacker, &mut left, limits);
            if let Err(LayerError::Unpack(UnpackError::Cancelled)) = applied {
                return applied.map_err(failed);
            }
            // A damaged blob shows in many ways. That it is damaged is what the user needs to know.
            blob.finish()?;
            applied.map_err(failed)?;
        }
        Ok(())
    }
}

fn apply(
    layer: &Layer,
    blob: &mut dyn Read,
    unpacker: &mut Unpacker<'_>,
    left: &mut u64,
    limits: Limits,
) -> Result<(), LayerError> {
    let hasher = Hasher::new(&layer.diff_id)?;
    let mut decoded = Decoded::new(blob, hasher, left, limits.unpacked_bytes)?;
    unpacker.apply(&mut decoded)?;
    let hasher = decoded.finish().map_err(LayerError::Tail)?;
    hasher.check(&layer.diff_id).map_err(|found| {
        let expected = layer.diff_id.to_string();
        LayerError::DiffId { expected, found }
    })
}

/// Tells the observer how much of a blob was read.
struct Watched<'w, 's> {
    blob: &'w mut BlobReader<'s>,
    observer: &'w dyn Observer,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.blob.read(buffer)?;
        self.observer.advance(count as u64);
        Ok(count)
    }
}
