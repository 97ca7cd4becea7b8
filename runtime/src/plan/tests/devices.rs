//! Devices of containers that may use any: what engines make of `--privileged`.

use lazaret_protocol::vm::DeviceConfig;

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
            "linux.devices[2]: character device 10:232, which the guest kernel has not, is not \
             supported"
        );
    }
}

/// A container with two block devices of the host, one of them under two names, and one that the
/// host has not.
fn with_disks(config: &mut Value) {
    let device = |path: &str, major: u32, minor: u32| json!({"path": path, "type": "b", "major": major, "minor": minor});
    let devices = json!([
        device("/dev/sda", 8, 0),
        device("/dev/nothing", 9, 0),
        device("/dev/sdb", 8, 16),
        device("/dev/again", 8, 0),
    ]);
    set(config, "/linux/devices", devices);
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "major": 8, "access": "rw"},
        {"allow": false, "type": "b", "major": 8, "minor": 16, "access": "w"},
    ]);
    set(config, "/linux/resources/devices", rules);
}

#[test]
fn block_devices_of_the_host_are_disks_of_the_vm() {
    let plan = planned(with_disks).unwrap();
    let disks: Vec<_> = plan
        .vm
        .devices
        .iter()
        .filter_map(|device| match device {
            DeviceConfig::Block(disk) => Some((disk.file.0, disk.serial.as_str(), disk.readonly)),
            _ => None,
        })
        .collect();
    assert_eq!(disks, [(7, "8:0", false), (8, "8:16", true)]);
    let serials: Vec<_> = plan.host.disks.iter().map(HostDisk::serial).collect();
    assert_eq!(serials, ["8:0", "8:16"]);
    assert_eq!(plan.container.devices.len(), 4);
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[test]
fn disks_come_with_the_vm_and_are_not_many() {
    let joins = [Join {
        path: "/proc/5/ns/ipc".into(),
        container: "first".to_owned(),
        user_namespace: None,
    }];
    let planned_in = |joins: &[Join], change: &dyn Fn(&mut Value)| {
        let circumstances = Circumstances {
            joins,
            ..circumstances()
        };
        plan(&bundle(change), &Config::default(), circumstances)
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        planned_in(&joins, &with_disks).unwrap_err(),
        "linux.devices[0]: a block device of the host in a sandbox that runs already is not \
         supported"
    );
    let many = |config: &mut Value| {
        let device = |minor| json!({"path": format!("/dev/sd{minor}"), "type": "b", "major": 8, "minor": minor});
        set(
            config,
            "/linux/devices",
            (0..=DISKS_MAX).map(device).collect(),
        );
    };
    assert_eq!(
        planned_in(&[], &many).unwrap_err(),
        "linux.devices[24]: more than 24 block devices of the host are not supported"
    );
}
