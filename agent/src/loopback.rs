//! The loopback interface of a network namespace. Called for the guest's and for a container's own.
#![forbid(unsafe_code)]

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::errno::Os;

/// Brings `lo` of the caller's network namespace up; the kernel gives it its addresses.
///
/// # Errors
/// The kernel's.
pub fn bring_up() -> Result<(), Os> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(crate::sys::set_interface_up(&socket, "lo")?)
}
