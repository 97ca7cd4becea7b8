//! Documents and the comparison, without any runtime.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;

use super::differences;

#[test]
fn every_place_that_differs_is_told() {
    let expected = json!({ "same": 1, "list": [1, 2], "deep": { "left": true } });
    let found = json!({ "same": 1, "list": [1], "deep": { "right": null } });
    assert_eq!(
        differences(&expected, &found),
        [
            "/deep/left: runc true, lazaret nothing",
            "/deep/right: runc nothing, lazaret null",
            "/list: runc [1,2], lazaret [1]",
        ]
    );
}

#[test]
fn a_mask_is_the_same_whatever_it_is_made_of() {
    let report = |mask: serde_json::Value| {
        let mut report = json!({
            "descriptors": { "0": "pipe" },
            "files": { "/proc/self/cgroup": "0::/\n" },
            "mounts": { "/sys/firmware": mask, "/": { "type": "virtiofs", "root": "/", "propagation": ["master"] } },
            "paths": { "/proc/bus": { "entries": 3 } },
            "status": { "SigIgn": "0000000080001000" },
        });
        super::normalise::normalise(&mut report);
        report
    };
    let plain = json!({
        "type": "tmpfs", "source": "tmpfs", "root": "/", "propagation": [],
        "options": ["ro", "relatime"], "super": ["ro"],
    });
    let small = json!({
        "type": "tmpfs", "source": "tmpfs", "root": "/", "propagation": [],
        "options": ["ro", "nosuid", "nodev"], "super": ["ro", "size=4k", "nr_inodes=2"],
    });
    let open = json!({
        "type": "tmpfs", "source": "tmpfs", "root": "/", "propagation": [],
        "options": ["rw", "relatime"], "super": ["rw"],
    });
    assert_eq!(report(plain.clone()), report(small));
    assert_ne!(report(plain.clone()), report(open));
    assert_eq!(report(plain)["status"]["SigIgn"], "0000000000001000");
}
