//! The VM's disks that are block devices of the host. Called by [`crate::container`]: a container's
//! description has the host's numbers of them, which are the disks' serial numbers here.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::Path;

use lazaret_protocol::container::{CreateContainer, DeviceKind, DeviceRule};

/// Where the kernel lists its block devices.
const LIST: &str = "/sys/block";

/// Major and minor number.
type Numbers = (u32, u32);

/// A disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    host: Numbers,
    guest: Numbers,
}

/// Replaces the host's numbers of disks by the guest's, in device nodes and in rules.
///
/// # Errors
/// If the kernel's list cannot be read.
pub fn translate(container: &mut CreateContainer) -> io::Result<()> {
    let (nodes, rules) = (&mut container.devices, &mut container.cgroup.device_rules);
    let names_disks = nodes.iter().any(|node| node.kind == DeviceKind::Block)
        || rules.iter().any(|rule| block_major(rule).is_some());
    if !names_disks {
        return Ok(());
    }
    let disks = list(Path::new(LIST))?;
    for node in nodes {
        let number = (node.major, node.minor);
        let disk = disks.iter().find(|disk| disk.host == number);
        if let Some(disk) = disk.filter(|_| node.kind == DeviceKind::Block) {
            (node.major, node.minor) = disk.guest;
        }
    }
    let translated = rules.iter().flat_map(|rule| translated(rule, &disks));
    *rules = translated.collect();
    Ok(())
}

fn list(folder: &Path) -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let folder = entry?.path();
        // What is no disk of the VM has no serial number.
        let Ok(serial) = fs::read_to_string(folder.join("serial")) else {
            continue;
        };
        let guest = fs::read_to_string(folder.join("dev"))?;
        if let (Some(host), Some(guest)) = (numbers(&serial), numbers(&guest)) {
            disks.push(Disk { host, guest });
        }
    }
    Ok(disks)
}

fn numbers(text: &str) -> Option<Numbers> {
    let (major, minor) = text.trim_end().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The major number of the block devices that the rule is about, if it is about some and not all.
fn block_major(rule: &DeviceRule) -> Option<u32> {
    rule.major
        .filter(|_| rule.kind != Some(DeviceKind::Character))
}

/// The rule as it is in the guest: one that names disks by the host's numbers becomes one for each. On
/// a disk that has these numbers only here it says nothing: that may be another container's.
fn translated(rule: &DeviceRule, disks: &[Disk]) -> Vec<DeviceRule> {
    let names = |numbers: Numbers| {
        block_major(rule) == Some(numbers.0) && rule.minor.is_none_or(|minor| minor == numbers.1)
    };
    if !disks
        .iter()
        .any(|disk| names(disk.host) || names(disk.guest))
    {
        return vec![rule.clone()];
    }
    let disks = disks.iter().filter(|disk| names(disk.host));
    let mut rules: Vec<DeviceRule> = disks
        .map(|disk| DeviceRule {
            kind: Some(DeviceKind::Block),
            major: Some(disk.guest.0),
            minor: Some(disk.guest.1),
            ..rule.clone()
        })
        .collect();
    if rule.kind.is_none() {
        rules.push(DeviceRule {
            kind: Some(DeviceKind::Character),
            ..rule.clone()
        });
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISKS: [Disk; 2] = [
        Disk {
            host: (8, 0),
            guest: (254, 16),
        },
        Disk {
            host: (8, 1),
            guest: (254, 0),
        },
    ];

    fn rule(kind: Option<DeviceKind>, major: Option<u32>, minor: Option<u32>) -> DeviceRule {
        DeviceRule {
            allow: true,
            kind,
            major,
            minor,
            read: true,
            write: false,
            mknod: true,
        }
    }

    #[test]
    fn rules_of_disks_have_the_numbers_of_the_guest() {
        let (block, character) = (Some(DeviceKind::Block), Some(DeviceKind::Character));
        let first = rule(block, Some(254), Some(16));
        let second = rule(block, Some(254), Some(0));
        for (host, guest) in [
            (rule(block, Some(8), Some(0)), vec![first.clone()]),
            (rule(block, Some(8), None), vec![first.clone(), second]),
            (
                rule(None, Some(8), Some(0)),
                vec![first, rule(character, Some(8), Some(0))],
            ),
            // The guest's numbers, which are none of a device that the rule is about.
            (rule(block, Some(254), Some(16)), vec![]),
            (rule(block, Some(254), None), vec![]),
            (
                rule(None, Some(254), Some(0)),
                vec![rule(character, Some(254), Some(0))],
            ),
        ] {
            assert_eq!(translated(&host, &DISKS), guest, "{host:?}");
        }
        for same in [
            rule(block, None, None),
            rule(None, None, None),
            rule(block, Some(8), Some(2)),
            rule(block, Some(7), None),
            rule(block, Some(254), Some(32)),
            rule(character, Some(8), Some(0)),
        ] {
            assert_eq!(translated(&same, &DISKS), std::slice::from_ref(&same));
        }
    }

    #[test]
    fn disks_are_known_by_their_serial_numbers() {
        let folder = std::env::temp_dir().join(format!("disks-{}", std::process::id()));
        for (name, files) in [
            ("vda", &[("serial", "8:1\n"), ("dev", "254:0\n")][..]),
            ("vdb", &[("serial", "8:0"), ("dev", "254:16\n")]),
            ("vdc", &[("serial", "of another kind"), ("dev", "254:32\n")]),
            ("loop0", &[("dev", "7:0\n")]),
        ] {
            fs::create_dir_all(folder.join(name)).unwrap();
            for (file, content) in files {
                fs::write(folder.join(name).join(file), content).unwrap();
            }
        }
        let mut found = list(&folder).unwrap();
        found.sort_by_key(|disk| disk.host);
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, DISKS);
    }
}
