//! What stands before a compiled filter: system calls that are newer than everything the profile
//! names fail with `ENOSYS` and not by the profile's default. C libraries try new calls and fall
//! back to old ones on that error alone; a profile cannot have meant what it could not know. runc
//! decides by the same numbers.

use lazaret_protocol::container::SockFilter;
use libseccomp::ScmpSyscall;

use super::{Action, Architecture, Profile};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Bit that tells calls of x32 from those of 64-bit x86 (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 1 << 30;

/// `AUDIT_ARCH_*` of `linux/audit.h`.
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

/// Instructions of classic BPF (`linux/filter.h`).
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const JUMP_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// The instructions to put before the filter of `profile`; they end where the filter begins.
pub(super) fn program(profile: &Profile) -> Vec<SockFilter> {
    if let Action::Allow | Action::Log | Action::Trace(_) = profile.default_action {
        return Vec::new();
    }
    let mut architectures = vec![Architecture::X86_64];
    for &architecture in &profile.architectures {
        if !architectures.contains(&architecture) {
            architectures.push(architecture);
        }
    }
    let sections = architectures.into_iter().filter_map(|architecture| {
        let newest = newest_call(profile, architecture)?;
        section(architecture, newest)
    });
    sections.flatten().collect()
}

/// The largest number that a name of the profile has on an architecture.
fn newest_call(profile: &Profile, architecture: Architecture) -> Option<u32> {
    let architecture = architecture.library()?;
    let numbers = profile.rules.iter().filter_map(|rule| {
        let call = ScmpSyscall::from_name_by_arch(&rule.name, architecture).ok()?;
        // Negative numbers stand for calls that this architecture does not have.
        u32::try_from(call.as_raw_syscall()).ok()
    });
    numbers.max().filter(|&number| number != 0)
}

/// Ends with `ENOSYS` for a call of the architecture that is newer, and goes on after the section
/// for every other.
fn section(architecture: Architecture, newest: u32) -> Option<Vec<SockFilter>> {
    let load = |offset| instruction(LOAD, 0, 0, offset);
    let end = [
        instruction(JUMP_GREATER, 0, 1, newest),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    // The two ABIs of 64-bit x86 have one number as architecture.
    let (audit, mode) = match architecture {
        Architecture::X86 => (AUDIT_ARCH_I386, None),
        Architecture::X86_64 => (AUDIT_ARCH_X86_64, Some((2, 0))),
        Architecture::X32 => (AUDIT_ARCH_X86_64, Some((0, 2))),
        Architecture::Foreign => return None,
    };
    let mode = mode.map(|(set, clear)| instruction(JUMP_BITS, set, clear, X32_BIT));
    let body: Vec<SockFilter> = [load(NUMBER)].into_iter().chain(mode).chain(end).collect();
    let skip = u8::try_from(body.len()).expect("a section has five instructions at most");
    let head = [load(ARCHITECTURE), instruction(JUMP_EQUAL, 0, skip, audit)];
    Some(head.into_iter().chain(body).collect())
}

fn instruction(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> SockFilter {
    SockFilter {
        code,
        jump_true,
        jump_false,
        operand,
    }
}
