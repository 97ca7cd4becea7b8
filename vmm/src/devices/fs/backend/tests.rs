//! What cannot be seen through the device.

use std::os::fd::OwnedFd;

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;

use super::{Share, descriptors::DescriptorShare};

/// Looks up the names `0` to `names` in `root` with at most `limit` descriptors; how many worked.
/// The others fail with `ENFILE`, and work after the first were forgotten.
pub(in super::super) fn limited(root: OwnedFd, limit: u64, names: u32) -> usize {
    let share = Share::new(root, DescriptorShare::with_limit(limit)).unwrap();
    let look_up = |index: u32| {
        let name = std::ffi::CString::new(index.to_string()).unwrap();
        share.look_up(ROOT_ID, &name)
    };
    let results: Vec<_> = (0..names).map(look_up).collect();
    let entries: Vec<_> = results.iter().flatten().collect();
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
    }
    for entry in &entries {
        share.unfind(entry);
    }
    look_up(names - 1).unwrap();
    entries.len()
}
