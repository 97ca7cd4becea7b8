//! `--preserve-fds` and listening sockets: descriptors that a caller left to this process for the
//! container. None can come along: a descriptor is an object of this host's kernel, and the
//! container has another. Called by `create`, `run` and `exec`; says what it was and why not.

use std::{fs::Metadata, os::unix::fs::FileTypeExt as _};

use super::{VerbError, option_error};

/// First descriptor that is not a standard stream.
const FIRST: u32 = 3;

/// Refuses `count` descriptors beside the standard streams; none is fine.
///
/// # Errors
/// [`VerbError`], which names the first of them.
pub(super) fn check(count: u32) -> Result<(), VerbError> {
    if count == 0 {
        return Ok(());
    }
    let path = format!("/proc/self/fd/{FIRST}");
    let what = match std::fs::metadata(&path) {
        Ok(metadata) => kind(&metadata),
        // As runc, which looks at each.
        Err(error) => {
            return Err(VerbError::WrongStatus(format!(
                "unable to stat preserved-fd 0 (of {count}): stat {path}: {}",
                crate::log::chain(&error)
            )));
        }
    };
    Err(option_error(
        "--preserve-fds",
        format!(
            "descriptor {FIRST}, {what}, cannot be passed into a VM: it belongs to this host's \
             kernel"
        ),
    ))
}

fn kind(metadata: &Metadata) -> &'static str {
    let kind = metadata.file_type();
    if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_dir() {
        "a directory"
    } else {
        "a file"
    }
}

/// Refuses listening sockets that a service manager left to process `pid`, which is this one
/// (`sd_listen_fds(3)`), as runc would pass them on; those for another process are none of ours.
///
/// # Errors
/// [`VerbError::Option`].
pub(super) fn check_activation(
    variable: impl Fn(&str) -> Option<String>,
    pid: i32,
) -> Result<(), VerbError> {
    let number = |name: &str| variable(name).and_then(|text| text.parse::<i32>().ok());
    match number("LISTEN_FDS") {
        Some(count @ 1..) if number("LISTEN_PID") == Some(pid) => Err(option_error(
            "LISTEN_FDS",
            format!(
                "{count} listening socket{} cannot be passed into a VM, whose network is not this \
                 host's",
                if count == 1 { "" } else { "s" }
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activation(variables: &[(&str, &str)], pid: i32) -> Result<(), String> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|&(_, value)| value.to_owned())
        };
        check_activation(variable, pid).map_err(|error| error.to_string())
    }

    #[test]
    fn only_sockets_for_this_process_are_refused() {
        for ours in [
            &[][..],
            &[("LISTEN_FDS", "1")],
            &[("LISTEN_FDS", "1"), ("LISTEN_PID", "6")],
            &[("LISTEN_FDS", "0"), ("LISTEN_PID", "5")],
            &[("LISTEN_FDS", "x"), ("LISTEN_PID", "5")],
            &[("LISTEN_PID", "5")],
        ] {
            assert_eq!(activation(ours, 5), Ok(()), "{ours:?}");
        }
        let error = activation(&[("LISTEN_FDS", "2"), ("LISTEN_PID", "5")], 5).unwrap_err();
        assert_eq!(
            error,
            "LISTEN_FDS: 2 listening sockets cannot be passed into a VM, whose network is not \
             this host's"
        );
    }
}
