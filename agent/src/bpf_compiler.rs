//! The kernel's compiler of BPF programs, switched off while the agent loads the filter of a
//! container's devices, and a child that of its system calls. Called by [`crate::container`]; knows
//! nothing of the filters themselves.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

/// While it lives, the kernel interprets the programs it loads instead of compiling them. Its
/// compiler clears 2 MiB of memory for the first program, which takes longer than all the rest of
/// making a container; and the filters run only when a device is opened or made, and for the system
/// calls whose arguments a profile looks at: the kernel remembers those that it allows anyway
/// (`kernel/seccomp.c`, `seccomp_cache`). A container's own programs come later and are compiled.
#[derive(Debug)]
pub struct Interpreted<'a> {
    /// The switch, if it was moved: a kernel may have no interpreter.
    switch: Option<&'a Path>,
}

impl<'a> Interpreted<'a> {
    /// Begins, by the file `switch`: `bpf_jit_enable` (Documentation/admin-guide/sysctl/net.rst).
    pub fn begin(switch: &'a Path) -> Self {
        Self {
            switch: fs::write(switch, "0").is_ok().then_some(switch),
        }
    }
}

impl Drop for Interpreted<'_> {
    fn drop(&mut self) {
        if let Some(switch) = self.switch {
            // It took the other value a moment ago.
            let _ = fs::write(switch, "1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_is_off_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let switch = directory.path().join("bpf_jit_enable");
        fs::write(&switch, "1").unwrap();
        let interpreted = Interpreted::begin(&switch);
        assert_eq!(fs::read_to_string(&switch).unwrap(), "0");
        drop(interpreted);
        assert_eq!(fs::read_to_string(&switch).unwrap(), "1");
    }

    #[test]
    fn a_switch_that_cannot_be_moved_stays() {
        let directory = tempfile::tempdir().unwrap();
        // Writing to a directory fails, as to the switch of a kernel that only compiles.
        let interpreted = Interpreted::begin(directory.path());
        assert!(interpreted.switch.is_none());
    }
}
