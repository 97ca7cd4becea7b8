//! What mounts need that needs no mount: flags and their names.

use lazaret_protocol::container::{Mount, MountSource};

use super::{bind_attributes, clone_source, describe_options};
use crate::sys::MountAttr;

#[test]
fn flags_of_a_bind_become_attributes() {
    assert_eq!(
        bind_attributes(libc::MS_BIND | libc::MS_REC),
        MountAttr::default()
    );
    let attributes = bind_attributes(libc::MS_RDONLY | libc::MS_NOEXEC | libc::MS_BIND);
    assert_eq!(
        attributes.set,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC
    );
    assert_eq!(attributes.clear, 0);
    let attributes = bind_attributes(libc::MS_RELATIME);
    assert_eq!(
        (attributes.set, attributes.clear),
        (0, libc::MOUNT_ATTR__ATIME)
    );
    let attributes = bind_attributes(libc::MS_NOATIME);
    assert_eq!(attributes.set, libc::MOUNT_ATTR_NOATIME);
    assert_eq!(attributes.clear, libc::MOUNT_ATTR__ATIME);
}

#[test]
fn messages_name_flags_and_data() {
    assert_eq!(
        describe_options(libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
        "nosuid,nodev,mode=1777"
    );
    assert_eq!(describe_options(0, ""), "no options");
}

#[test]
fn only_kernel_paths_of_the_guest_are_bound() {
    let mount = |path: &str| Mount {
        source: MountSource::Guest(path.to_owned()),
        destination: "/x".to_owned(),
        flags: libc::MS_BIND,
        recursive_set: 0,
        recursive_clear: 0,
        propagation: Vec::new(),
        data: String::new(),
        copy_up: false,
        below: Vec::new(),
    };
    let share = std::path::Path::new("/nowhere");
    for path in [
        "/",
        "/etc/passwd",
        "/device",
        "proc/self",
        "/run/lazaret/share",
    ] {
        let error = clone_source(share, &mount(path)).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is not below /proc, /sys or /dev")
        );
    }
}
