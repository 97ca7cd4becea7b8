//! The five capability sets of a process (`capabilities(7)`). Called by [`crate::init`], around the
//! change of user.
#![forbid(unsafe_code)]

use lazaret_protocol::container::Capabilities;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::errno::Os;

/// A capability set could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CapabilityError {
    /// From the bounding set.
    #[error("drop capability {number} from the bounding set")]
    Bounding {
        /// Capability number.
        number: u32,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
    /// Effective, permitted and inheritable together.
    #[error("set the capability sets")]
    Sets(#[source] Os),
    /// Into the ambient set.
    #[error("raise capability {number} in the ambient set")]
    Ambient {
        /// Capability number.
        number: u32,
        /// The kernel's answer.
        #[source]
        source: Os,
    },
}

/// Removes everything else from the bounding set; to be called while `CAP_SETPCAP` is effective.
///
/// # Errors
/// [`CapabilityError::Bounding`].
pub fn limit_bounding(wanted: &Capabilities) -> Result<(), CapabilityError> {
    for number in (0..u64::BITS).filter(|number| wanted.bounding & 1 << number == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // Past the last capability this kernel knows.
            Err(Errno::INVAL) => break,
            Err(errno) => {
                let source = Os(errno);
                return Err(CapabilityError::Bounding { number, source });
            }
        }
    }
    Ok(())
}

/// Makes the wanted capabilities effective, and `CAP_SYS_ADMIN` with them; [`apply`] comes later.
/// To be called as the final user.
///
/// # Errors
/// [`CapabilityError::Sets`].
pub fn hold_admin(wanted: &Capabilities) -> Result<(), CapabilityError> {
    let sets = |errno| CapabilityError::Sets(Os(errno));
    let available = capabilities(None).map_err(sets)?;
    let effective = CapabilitySet::from_bits_retain(wanted.effective & wanted.permitted);
    let held = CapabilitySets {
        effective: (effective | CapabilitySet::SYS_ADMIN) & available.permitted,
        ..available
    };
    set_capabilities(None, held).map_err(sets)
}

/// Sets the other four sets; to be called as the final user. Capabilities this process does not
/// have itself are left out, as runc does.
///
/// # Errors
/// [`CapabilityError::Sets`] and [`CapabilityError::Ambient`].
pub fn apply(wanted: &Capabilities) -> Result<(), CapabilityError> {
    let sets = |errno| CapabilityError::Sets(Os(errno));
    let available = capabilities(None).map_err(sets)?.permitted;
    let limit = |bits| CapabilitySet::from_bits_retain(bits) & available;
    let permitted = limit(wanted.permitted);
    let inheritable = limit(wanted.inheritable);
    set_capabilities(
        None,
        CapabilitySets {
            effective: limit(wanted.effective) & permitted,
            permitted,
            inheritable,
        },
    )
    .map_err(sets)?;
    clear_ambient_capability_set().map_err(sets)?;
    let ambient = (limit(wanted.ambient) & permitted & inheritable).bits();
    for number in (0..u64::BITS).filter(|number| ambient & 1 << number != 0) {
        let one = CapabilitySet::from_bits_retain(1 << number);
        configure_capability_in_ambient_set(one, true).map_err(|errno| {
            let source = Os(errno);
            CapabilityError::Ambient { number, source }
        })?;
    }
    Ok(())
}
