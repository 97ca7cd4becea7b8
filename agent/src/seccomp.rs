//! The filter of a container's system calls (`seccomp(2)`), which the runtime compiled. Called by
//! [`crate::init`]; knows nothing of what the program means.
#![forbid(unsafe_code)]

use lazaret_protocol::container::{SECCOMP_INSTRUCTIONS_MAX, Seccomp};
use rustix::io::Errno;

use crate::errno::Os;
use crate::sys;

/// A filter in the kernel's form, ready to be loaded where there is no time to convert it.
pub struct Filter {
    flags: u32,
    program: Vec<libc::sock_filter>,
}

/// The filter could not be loaded.
#[derive(Debug, thiserror::Error)]
#[error("load the seccomp filter of {instructions} instructions")]
pub struct SeccompError {
    instructions: usize,
    #[source]
    source: Os,
}

impl Filter {
    /// Converts what came over the wire.
    pub fn new(wire: &Seccomp) -> Self {
        let program = wire.program.iter().map(|instruction| libc::sock_filter {
            code: instruction.code,
            jt: instruction.jump_true,
            jf: instruction.jump_false,
            k: instruction.operand,
        });
        Self {
            flags: wire.flags,
            program: program.collect(),
        }
    }

    /// Filters the system calls of this process from now on.
    ///
    /// # Errors
    /// [`SeccompError`]: the kernel's answer.
    pub fn load(&self) -> Result<(), SeccompError> {
        let instructions = self.program.len();
        let loaded = if instructions > SECCOMP_INSTRUCTIONS_MAX {
            Err(Errno::TOOBIG)
        } else {
            sys::attributes::seccomp_set_filter(self.flags, &self.program)
        };
        loaded.map_err(|errno| SeccompError {
            instructions,
            source: Os(errno),
        })
    }
}
