//! A blob, checked against its size and digest while it is read (image-spec, descriptor.md).
//!
//! Called by the other modules of [`crate::image`].

use std::io::{self, Read};

use oci_spec::image::{Descriptor, Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use super::source::Source;

/// Why a blob cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// There is no such blob.
    #[error("blob {0} is missing from the image")]
    Missing(String),
    /// The blob cannot be read.
    #[error("blob {name} cannot be read")]
    Read {
        /// The blob.
        name: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The blob is longer or shorter than its descriptor says.
    #[error("blob {name} has {found} bytes instead of {stated}")]
    Size {
        /// The blob.
        name: String,
        /// The descriptor's size.
        stated: u64,
        /// The blob's.
        found: u64,
    },
    /// The blob's bytes are not those its name stands for.
    #[error("blob {name} is damaged: its digest is {found}")]
    Digest {
        /// The blob.
        name: String,
        /// The digest of its bytes.
        found: String,
    },
    /// The digest is of an algorithm that is not known here.
    #[error("digest {0} is of an unsupported algorithm (only sha256 and sha512)")]
    Algorithm(String),
}

/// Where a blob is, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// What messages call it: its digest, or else its file.
    pub(super) name: String,
    /// Its file within the image.
    pub(super) file: String,
    pub(super) size: Option<u64>,
    pub(super) digest: Option<Digest>,
}

impl Blob {
    /// A file of the image that is not named by a digest.
    pub(super) fn plain(file: &str) -> Self {
        Self {
            name: file.to_owned(),
            file: file.to_owned(),
            size: None,
            digest: None,
        }
    }

    /// Opens the blob to be read once, from beginning to end.
    pub(super) fn open<'s>(&self, source: &'s Source) -> Result<BlobReader<'s>, BlobError> {
        let hasher = self.digest.as_ref().map(Hasher::new).transpose()?;
        let (content, size) = source
            .file(&self.file)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => BlobError::Missing(self.name.clone()),
                _ => BlobError::Read {
                    name: self.name.clone(),
                    source,
                },
            })?;
        if let Some(stated) = self.size.filter(|stated| *stated != size) {
            return Err(BlobError::Size {
                name: self.name.clone(),
                stated,
                found: size,
            });
        }
        Ok(BlobReader {
            blob: self.clone(),
            content,
            size,
            read: 0,
            hasher,
        })
    }
}

impl From<&Descriptor> for Blob {
    fn from(descriptor: &Descriptor) -> Self {
        let digest = descriptor.digest().clone();
        Self {
            name: digest.to_string(),
            // Both parts of a parsed digest are free of slashes and dots.
            file: format!("blobs/{}/{}", digest.algorithm(), digest.digest()),
            size: Some(descriptor.size()),
            digest: Some(digest),
        }
    }
}

/// A blob being read.
pub(super) struct BlobReader<'s> {
    blob: Blob,
    content: Box<dyn Read + 's>,
    size: u64,
    read: u64,
    hasher: Option<Hasher>,
}

impl BlobReader<'_> {
    /// The blob's length in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Reads what is left, and succeeds if the whole blob is what it should be.
    pub(super) fn finish(mut self) -> Result<(), BlobError> {
        let drained = io::copy(&mut self, &mut io::sink());
        let Self {
            blob: Blob { name, digest, .. },
            size,
            read,
            hasher,
            ..
        } = self;
        if let Err(source) = drained {
            return Err(BlobError::Read { name, source });
        }
        if read != size {
            return Err(BlobError::Size {
                name,
                stated: size,
                found: read,
            });
        }
        match (hasher, digest) {
            (Some(hasher), Some(digest)) => hasher
                .check(&digest)
                .map_err(|found| BlobError::Digest { name, found }),
            _ => Ok(()),
        }
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.size - self.read).unwrap_or(usize::MAX);
        let limit = limit.min(buffer.len());
        let count = self.content.read(&mut buffer[..limit])?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        self.read += count as u64;
        Ok(count)
    }
}

/// A digest being computed.
#[derive(Debug)]
pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Returns a hasher of the same algorithm as `digest`.
    pub(super) fn new(digest: &Digest) -> Result<Self, BlobError> {
        match digest.algorithm() {
            DigestAlgorithm::Sha256 => Ok(Self::Sha256(Sha256::new())),
            DigestAlgorithm::Sha512 => Ok(Self::Sha512(Sha512::new())),
            _ => Err(BlobError::Algorithm(digest.to_string())),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Compares with `expected`; fails with the digest that was found.
    pub(super) fn check(self, expected: &Digest) -> Result<(), String> {
        let found = match self {
            Self::Sha256(hasher) => format!("sha256:{:x}", hasher.finalize()),
            Self::Sha512(hasher) => format!("sha512:{:x}", hasher.finalize()),
        };
        if found == expected.as_ref() {
            Ok(())
        } else {
            Err(found)
        }
    }
}
