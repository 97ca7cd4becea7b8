//! How a user names an image: `PATH[:NAME]`, and the platform it should be for.
//!
//! Called by the command line and by the other modules of [`crate::image`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;

/// An image's file or directory, and its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    /// The image layout or archive.
    pub path: PathBuf,
    /// The image's name in it, if one was given.
    pub name: Option<String>,
}

impl ImageReference {
    /// Splits `PATH[:NAME]`. Both may have colons, so the longest path that exists is taken; if none
    /// does, the whole is the path.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let colons = text.rmatch_indices(':').map(|(index, _)| index);
        let mut ends = std::iter::once(text.len()).chain(colons);
        let Some(end) = ends.find(|end| *end > 0 && Path::new(&text[..*end]).exists()) else {
            return Self {
                path: PathBuf::from(text),
                name: None,
            };
        };
        let name = text
            .get(end + 1..)
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        Self {
            path: PathBuf::from(&text[..end]),
            name,
        }
    }
}

/// What an image is built for: `os/architecture[/variant]` in the words of Go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system, such as `linux`.
    pub os: String,
    /// The processor, such as `amd64`.
    pub architecture: String,
    /// The processor's variant, such as `v8`; none is any.
    pub variant: Option<String>,
}

/// A platform is not of the form `os/architecture[/variant]`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("platform {0:?} is not of the form os/architecture[/variant]")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform Lazaret's guests have.
    #[must_use]
    pub fn guest() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
        }
    }

    /// The platform an image's configuration names.
    pub(super) fn of(configuration: &ImageConfiguration) -> Self {
        Self {
            os: configuration.os().to_string(),
            architecture: configuration.architecture().to_string(),
            variant: configuration.variant().clone(),
        }
    }

    /// Whether what is built for `other` is what was asked for.
    pub(super) fn accepts(&self, other: &Self) -> bool {
        let same = self.os == other.os && self.architecture == other.architecture;
        // Images that name no variant are for all of them.
        let variant = match (&self.variant, &other.variant) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        };
        same && variant
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split('/').collect();
        let variant = match parts.as_slice() {
            [_, _] => None,
            [_, _, variant] => Some((*variant).to_owned()),
            _ => return Err(ParsePlatformError(text.to_owned())),
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(ParsePlatformError(text.to_owned()));
        }
        let (os, architecture) = (parts[0].to_owned(), parts[1].to_owned());
        Ok(Self {
            os,
            architecture,
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}
