//! The guest's initramfs: the agent as `/init`, and `/dev/console` for it to be born with.
//!
//! `xtask` and the `rootfs-builder initramfs` command call [`guest_initramfs`]; tests that boot
//! something else build their own [`Archive`]. Knows the archive format and what Linux does with
//! it, nothing of what the agent does.
//!
//! The kernel unpacks the archive at every boot, on the path of every container start, so it is
//! neither compressed nor longer than it must be.

mod agent_file;
mod newc;

pub use agent_file::AgentFileError;
pub use newc::{Archive, ArchiveError, DeviceKind};

/// Why no initramfs could be built.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The file meant to be `/init` could not be started by the guest's kernel.
    #[error("not an agent the guest kernel can start")]
    Agent(#[from] AgentFileError),
    /// The archive could not be put together.
    #[error("initramfs archive")]
    Archive(#[from] ArchiveError),
}

/// Returns the initramfs of a Lazaret guest, an uncompressed newc archive: `/init` is `agent`.
///
/// `/dev/console` is the one other thing the kernel looks for before `/init` runs
/// (`console_on_rootfs()` in `init/main.c`); without it the agent would start with no standard
/// streams. The same `agent` always gives the same bytes.
///
/// # Errors
///
/// When `agent` is not a static x86-64 ELF executable: there is no loader for it in the guest.
pub fn guest_initramfs(agent: &[u8]) -> Result<Vec<u8>, InitramfsError> {
    agent_file::check(agent)?;
    let mut archive = Archive::new();
    archive.directory("dev", 0o755)?;
    archive.device("dev/console", DeviceKind::Character, 0o600, 5, 1)?;
    archive.file("init", 0o755, agent)?;
    Ok(archive.to_bytes()?)
}

#[cfg(test)]
mod tests;
