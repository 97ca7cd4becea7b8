//! Checks that a file can be the guest's `/init`, before a kernel panic says so at boot.
//!
//! Called by [`super::guest_initramfs`]. Reads only the ELF header and the program headers.

/// Size of the ELF-64 file header (System V gABI, "ELF Header").
const FILE_HEADER_BYTES: usize = 64;
/// Size of one ELF-64 program header.
const PROGRAM_HEADER_BYTES: usize = 56;
const MACHINE_X86_64: u16 = 62;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
/// The program header that asks for a dynamic loader.
const SEGMENT_INTERPRETER: u32 = 3;

/// What is wrong with a file that should be the guest's `/init`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentFileError {
    /// The file does not begin with an ELF-64 little-endian header.
    #[error("file is not a 64-bit ELF executable")]
    NotElf,
    /// The file is an ELF file of another machine or kind.
    #[error("ELF file is not an x86-64 executable")]
    NotExecutable,
    /// The program headers lie outside the file.
    #[error("ELF file is cut short")]
    Truncated,
    /// The executable needs a dynamic loader, which the initramfs does not hold.
    #[error("executable is dynamically linked: build it with -C target-feature=+crt-static")]
    Dynamic,
}

/// Succeeds when `file` is a static x86-64 ELF executable (position-independent or not).
pub(super) fn check(file: &[u8]) -> Result<(), AgentFileError> {
    let header = file
        .get(..FILE_HEADER_BYTES)
        .ok_or(AgentFileError::NotElf)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(AgentFileError::NotElf);
    }
    let kind = u16_at(header, 16);
    if u16_at(header, 18) != MACHINE_X86_64 || !matches!(kind, TYPE_EXECUTABLE | TYPE_SHARED) {
        return Err(AgentFileError::NotExecutable);
    }
    let start = usize::try_from(u64_at(header, 32)).map_err(|_| AgentFileError::Truncated)?;
    let length = usize::from(u16_at(header, 56)) * PROGRAM_HEADER_BYTES;
    let table = start
        .checked_add(length)
        .and_then(|end| file.get(start..end))
        .ok_or(AgentFileError::Truncated)?;
    let dynamic = table
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .any(|segment| segment[..4] == SEGMENT_INTERPRETER.to_le_bytes());
    if dynamic {
        Err(AgentFileError::Dynamic)
    } else {
        Ok(())
    }
}

/// Reads a field of the file header, whose length the caller has checked.
fn u16_at(header: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([header[offset], header[offset + 1]])
}

/// Reads a field of the file header, whose length the caller has checked.
fn u64_at(header: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}
