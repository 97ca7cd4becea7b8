//! Bytes in place of a tar archive. Checksums are made right, or nothing but them would be tested.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rootfs_builder::tarball::Reader;

#[path = "checksum.rs"]
mod checksum;

fuzz_target!(|bytes: &[u8]| {
    let archive = checksum::repaired(bytes);
    let mut reader = Reader::new(archive.as_slice());
    while let Ok(Some(entry)) = reader.next_entry() {
        let mut end = 0;
        for extent in &entry.extents {
            assert!(extent.offset >= end, "extents overlap");
            end = extent.offset + extent.length;
        }
        assert!(end <= entry.size, "extents go past the file's end");
        assert!(!entry.path.is_empty() && !entry.path.contains(&0));
        let mut buffer = [0; 333];
        while let Ok(1..) = reader.read_content(&mut buffer) {}
    }
});
