//! Devices of containers that may use any: what engines make of `--privileged`.

use super::*;

/// The devices of a machine with a disk, a loop device and a virtual machine monitor.
fn machine(config: &mut Value) {
    let device = |path: &str, kind: &str, major: u32, minor: u32| json!({"path": path, "type": kind, "major": major, "minor": minor});
    let devices = json!([
        device("/dev/sda", "b", 8, 0),
        device("/dev/fuse", "c", 10, 229),
        device("/dev/kvm", "c", 10, 232),
        device("/dev/loop-control", "c", 10, 237),
        device("/dev/loop8", "b", 7, 8),
    ]);
    set(config, "/linux/devices", devices);
}

fn with_rules(rules: Value) -> Result<Plan, String> {
    planned(|config| {
        machine(config);
        set(config, "/linux/resources/devices", rules);
    })
}

#[test]
fn one_that_may_use_any_device_gets_those_of_the_guest() {
    for rules in [
        json!([{"allow": true, "access": "rwm"}]),
        json!([{"allow": false}, {"allow": true, "type": "a", "major": -1, "minor": -1}, {"allow": false, "type": "c", "major": 1}]),
    ] {
        let plan = with_rules(rules).unwrap();
        let paths: Vec<&str> = plan
            .container
            .devices
            .iter()
            .map(|device| device.path.as_str())
            .collect();
        assert_eq!(paths, ["/dev/fuse", "/dev/loop-control", "/dev/loop8"]);
        assert_eq!(
            plan.warnings,
            ["linux.devices: left out what only this machine has: /dev/sda, /dev/kvm"]
        );
    }
}

#[test]
fn one_that_may_use_some_is_told_what_it_cannot_have() {
    for rules in [
        json!([]),
        json!([{"allow": false, "access": "rwm"}]),
        json!([{"allow": true}, {"allow": false}]),
        json!([{"allow": true, "type": "b"}]),
        json!([{"allow": true, "major": 8}]),
    ] {
        assert_eq!(
            with_rules(rules).unwrap_err(),
            "linux.devices[0]: a block device of the host is not supported"
        );
    }
}
