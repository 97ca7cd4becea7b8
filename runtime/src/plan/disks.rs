//! Block devices of the host that a container shall have. Each becomes a disk of its VM, whose serial
//! number tells the agent which device it is: in the guest it has other numbers. Called by
//! [`super::devices`]; opens nothing.

use lazaret_protocol::container::{DeviceKind, DeviceRule};
use serde::Serialize;

use super::PlanError;

/// Most disks of a VM: it has slots for them and its other devices.
pub(crate) const DISKS_MAX: usize = 24;

/// A block device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HostDisk {
    /// Field of the spec, for errors.
    pub(crate) field: String,
    /// Major number on the host.
    pub(crate) major: u32,
    /// Minor number on the host.
    pub(crate) minor: u32,
    /// Whether the guest may only read.
    pub(crate) readonly: bool,
}

impl HostDisk {
    /// What the guest reads as the disk's serial number: at most 20 bytes, since numbers of devices
    /// have 12 and 20 bits.
    pub(crate) fn serial(&self) -> String {
        format!("{}:{}", self.major, self.minor)
    }
}

/// The disks of a plan.
#[derive(Debug, Default)]
pub(super) struct Disks(Vec<HostDisk>);

impl Disks {
    /// Adds a block device, if it is not there. Who may not write to it by `rules` cannot do so
    /// through the VM either.
    ///
    /// # Errors
    /// [`PlanError`] if there are too many.
    pub(super) fn add(
        &mut self,
        field: &str,
        (major, minor): (u32, u32),
        rules: &[DeviceRule],
    ) -> Result<(), PlanError> {
        let known = |disk: &HostDisk| (disk.major, disk.minor) == (major, minor);
        if self.0.iter().any(known) {
            return Ok(());
        }
        if self.0.len() == DISKS_MAX {
            return Err(PlanError::unsupported(
                field,
                format!("more than {DISKS_MAX} block devices of the host are"),
            ));
        }
        self.0.push(HostDisk {
            field: field.to_owned(),
            major,
            minor,
            readonly: !may_write(rules, major, minor),
        });
        Ok(())
    }

    /// All of them.
    pub(super) fn into_vec(self) -> Vec<HostDisk> {
        self.0
    }
}

/// Whether the last rule on writing to this block device allows it.
fn may_write(rules: &[DeviceRule], major: u32, minor: u32) -> bool {
    let concerns = |rule: &&DeviceRule| {
        rule.write
            && matches!(rule.kind, None | Some(DeviceKind::Block))
            && rule.major.is_none_or(|number| number == major)
            && rule.minor.is_none_or(|number| number == minor)
    };
    rules.iter().rfind(concerns).is_some_and(|rule| rule.allow)
}
