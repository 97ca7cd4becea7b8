//! What is known of a VM's start and end beside what its processes say over their sockets: the log
//! of the VMM, the console of the guest, and the guest's own clock. Called by [`super::vm`]; decides
//! nothing.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
};

use lazaret_protocol::agent::Ready;

use crate::{log, time};

/// Bytes at the start of the VMM's log that are passed on once the VM runs: some dozens of lines.
const PASSED_ON_BYTES: usize = 8 << 10;

/// Bytes at the end of a log that are searched for its last line.
const TAIL_BYTES: u64 = 4 << 10;

/// Passes on what the VMM has logged so far, if it was told to log more than what goes wrong.
pub(super) fn pass_on(vmm_log: &File) {
    if !log::keeps_debug() {
        return;
    }
    let mut text = [0; PASSED_ON_BYTES];
    // Without moving the offset, which is the VMM's as well.
    let length = vmm_log.read_at(&mut text, 0).unwrap_or(0);
    for line in String::from_utf8_lossy(&text[..length]).lines() {
        match phase_of_line(line) {
            Some((at_us, done)) => log::phase_of("lazaret-vmm", at_us, done),
            None => tracing::debug!("lazaret-vmm: {line}"),
        }
    }
}

/// Time and message of a line of the VMM's log, whose level is debug.
fn phase_of_line(line: &str) -> Option<(u64, &str)> {
    let (at_us, rest) = line.split_once(' ')?;
    let message = rest.trim_start().strip_prefix("DEBUG ")?;
    Some((at_us.parse().ok()?, message))
}

/// Logs how the guest got ready. Its clock starts some time after it does, so what is taken from it
/// is lengths of time, up to now. A guest may lie about them: nothing but the log depends on it.
pub(super) fn note_guest(ready: &Ready) {
    if !log::keeps_debug() {
        return;
    }
    let now_us = time::monotonic_us();
    let took_us = ready.ready_us.saturating_sub(ready.started_us);
    let clock_us = now_us.saturating_sub(ready.ready_us);
    log::phase_of("guest", clock_us, "guest's clock started");
    log::phase_of(
        "guest",
        now_us.saturating_sub(took_us),
        "guest's kernel booted",
    );
    log::phase_of("guest", now_us, "agent ready");
}

/// The last line of `file` that says something, made fit for a terminal.
pub(super) fn last_line(file: &mut File) -> Option<String> {
    let length = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_vmm_have_their_time() {
        let line = "123456 DEBUG guest memory mapped";
        assert_eq!(phase_of_line(line), Some((123_456, "guest memory mapped")));
        assert_eq!(phase_of_line("123456  WARN no phase"), None);
        assert_eq!(phase_of_line("lazaret-vmm: DEBUG x"), None);
        assert_eq!(phase_of_line(""), None);
    }
}
