//! Device nodes and device rules of a plan.

use std::path::Path;

use lazaret_protocol::container::{DeviceKind, DeviceNode, DeviceRule};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::disks::{Disks, HostDisk};
use super::{Circumstances, PlanError};

/// Character devices that the guest's kernel has, as `(major, minors)`
/// (`Documentation/admin-guide/devices.txt`).
const GUEST_DEVICES: [(u32, std::ops::RangeInclusive<u32>); 13] = [
    (1, 3..=3),          // null
    (1, 5..=5),          // zero
    (1, 7..=7),          // full
    (1, 8..=8),          // random
    (1, 9..=9),          // urandom
    (1, 11..=11),        // kmsg
    (5, 0..=0),          // tty
    (5, 1..=1),          // console
    (5, 2..=2),          // ptmx
    (10, 200..=200),     // net/tun
    (10, 229..=229),     // fuse
    (10, 237..=237),     // loop-control
    (136, 0..=u32::MAX), // pts/*
];

/// Major number of loop devices, which the guest's kernel has, too, but not with the host's files
/// behind them.
const LOOP: u32 = 7;

/// Permission bits of a node without `fileMode`, as runc's.
const DEFAULT_MODE: u32 = 0o666;

/// What every container may do with devices (runc's `AllowedDevices`): make any node, and use the
/// ones that belong to every `/dev`. `(kind, major, minor, use)`.
const ALWAYS_ALLOWED: [(DeviceKind, Option<u32>, Option<u32>, bool); 11] = [
    (DeviceKind::Character, None, None, false),
    (DeviceKind::Block, None, None, false),
    (DeviceKind::Character, Some(1), Some(3), true),
    (DeviceKind::Character, Some(1), Some(8), true),
    (DeviceKind::Character, Some(1), Some(7), true),
    (DeviceKind::Character, Some(5), Some(0), true),
    (DeviceKind::Character, Some(1), Some(5), true),
    (DeviceKind::Character, Some(1), Some(9), true),
    (DeviceKind::Character, Some(136), None, true),
    (DeviceKind::Character, Some(5), Some(2), true),
    (DeviceKind::Character, Some(10), Some(200), true),
];

/// Translates `linux.devices`. A container that may use any device is what engines make of
/// `--privileged`, together with the list of all devices of this machine: it gets those that the
/// guest has, and a warning names the others. Any other gets the block devices of the host that it
/// lists, with the access that `rules` grant, as disks of its VM.
///
/// # Errors
/// [`PlanError`], which names the device by its index.
pub(super) fn nodes(
    linux: Option<&Linux>,
    rules: &[DeviceRule],
    circumstances: Circumstances<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<DeviceNode>, Vec<HostDisk>), PlanError> {
    let devices = linux
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let any = may_use_any(linux);
    let mut nodes = Vec::new();
    let mut disks = Disks::default();
    let mut left_out = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        // As runc: this one is a link into the container's own devpts, whoever lists it.
        if device.path().as_path() == Path::new("/dev/ptmx") {
            continue;
        }
        let field = format!("linux.devices[{index}]");
        let wanted = node(device, &field).and_then(|node| {
            // One that the host has not is a node with nothing behind it, as under runc.
            if node.kind == DeviceKind::Block
                && (circumstances.host_has_block_device)(node.major, node.minor)
                && !(any && node.major == LOOP)
            {
                if any || !circumstances.joins.is_empty() {
                    let what = "a block device of the host in a sandbox that runs already is";
                    return Err(PlanError::unsupported(&field, what));
                }
                disks.add(&field, (node.major, node.minor), rules)?;
            }
            Ok(node)
        });
        match wanted {
            Err(PlanError::Unsupported { .. }) if any => {
                left_out.push(device.path().to_string_lossy());
            }
            node => nodes.push(node?),
        }
    }
    if !left_out.is_empty() {
        warnings.push(format!(
            "linux.devices: left out what only this machine has: {}",
            left_out.join(", ")
        ));
    }
    Ok((nodes, disks.into_vec()))
}

/// Whether the last rule that is about all devices allows them.
fn may_use_any(linux: Option<&Linux>) -> bool {
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_deref());
    let is_for_all = |rule: &&LinuxDeviceCgroup| {
        let all = |number: Option<i64>| number.is_none_or(|number| number == -1);
        matches!(rule.typ(), None | Some(LinuxDeviceType::A))
            && all(rule.major())
            && all(rule.minor())
    };
    let last = rules.unwrap_or_default().iter().rfind(is_for_all);
    last.is_some_and(LinuxDeviceCgroup::allow)
}

fn node(device: &LinuxDevice, field: &str) -> Result<DeviceNode, PlanError> {
    let number = |name, value: i64| {
        u32::try_from(value)
            .map_err(|_| PlanError::invalid(format!("{field}.{name}"), "must be a device number"))
    };
    let kind = match device.typ() {
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => {
            return Err(PlanError::invalid(
                format!("{field}.type"),
                "must be one of c, b, u, p",
            ));
        }
    };
    let (major, minor) = (
        number("major", device.major())?,
        number("minor", device.minor())?,
    );
    let known = GUEST_DEVICES
        .iter()
        .any(|(known, minors)| *known == major && minors.contains(&minor));
    if kind == DeviceKind::Character && !known {
        return Err(PlanError::unsupported(
            field,
            format!("character device {major}:{minor}, which the guest kernel has not, is"),
        ));
    }
    let path = device.path().to_str().filter(|path| path.starts_with('/'));
    Ok(DeviceNode {
        path: path
            .ok_or_else(|| PlanError::invalid(format!("{field}.path"), "must be an absolute path"))?
            .to_owned(),
        kind,
        major,
        minor,
        mode: device
            .file_mode()
            .map_or(DEFAULT_MODE, |mode| mode & 0o7777),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// Translates `linux.resources.devices`: everything is denied but what the spec allows and what
/// every container may.
///
/// # Errors
/// [`PlanError`], which names the rule by its index.
pub(super) fn rules(listed: &[LinuxDeviceCgroup]) -> Result<Vec<DeviceRule>, PlanError> {
    let mut rules = vec![DeviceRule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        read: true,
        write: true,
        mknod: true,
    }];
    for (index, device) in listed.iter().enumerate() {
        rules.push(rule(device, &format!("linux.resources.devices[{index}]"))?);
    }
    rules.extend(
        ALWAYS_ALLOWED.map(|(kind, major, minor, usable)| DeviceRule {
            allow: true,
            kind: Some(kind),
            major,
            minor,
            read: usable,
            write: usable,
            mknod: true,
        }),
    );
    Ok(rules)
}

fn rule(device: &LinuxDeviceCgroup, field: &str) -> Result<DeviceRule, PlanError> {
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Character),
        Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
        Some(LinuxDeviceType::P) => {
            return Err(PlanError::invalid(
                format!("{field}.type"),
                "must be one of a, b, c",
            ));
        }
    };
    // -1 and a missing number both stand for all.
    let number = |name, value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value).map(Some).map_err(|_| {
            PlanError::invalid(format!("{field}.{name}"), "must be a device number or -1")
        }),
    };
    let access = match device.access().as_deref() {
        None | Some("") => "rwm",
        Some(access) => access,
    };
    // As runc, which does not look at what is denied anyway.
    if device.allow() && access.chars().any(|c| !"rwm".contains(c)) {
        return Err(PlanError::invalid(
            format!("{field}.access"),
            "must consist of r, w and m",
        ));
    }
    Ok(DeviceRule {
        allow: device.allow(),
        kind,
        major: number("major", device.major())?,
        minor: number("minor", device.minor())?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    })
}
