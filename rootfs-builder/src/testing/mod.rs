//! What the tests of several modules share.

mod archive;
mod picture;

pub(crate) use archive::Archive;
pub(crate) use picture::picture;
