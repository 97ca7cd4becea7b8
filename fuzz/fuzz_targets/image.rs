//! Bytes in place of an image archive: finding the image in it ends in an image or an error.

#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use rootfs_builder::image::{Image, Platform};

#[path = "checksum.rs"]
mod checksum;

fuzz_target!(|bytes: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&checksum::repaired(bytes))
        .expect("room for it");
    let _ = Image::open(file.path(), None, &Platform::guest());
});
