//! `kill`: a signal for the container's process.

use lazaret_protocol::agent::{ProcessRef, Request};

use super::{VerbError, check_live, open};
use crate::{
    agent::Agent,
    cli::{Global, Kill},
};

/// Highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;

/// # Errors
/// [`VerbError`].
pub(super) fn run(global: &Global, options: &Kill) -> Result<u8, VerbError> {
    let dir = open(global, &options.container_id)?;
    let signal = number(&options.signal)
        .ok_or_else(|| VerbError::WrongStatus(format!("unknown signal {:?}", options.signal)))?;
    match check_live(&dir) {
        // As runc: whoever wants all processes gone has got that.
        Err(VerbError::WrongStatus(_)) if options.all => return Ok(0),
        result => result?,
    }
    if signal == 0 {
        // Only asks whether there is somebody to take it.
        return Ok(0);
    }
    Agent::new(&dir).done(&Request::Signal {
        process: ProcessRef {
            container: dir.id().as_str().to_owned(),
            exec: None,
        },
        signal,
        all: options.all,
    })?;
    Ok(0)
}

/// Number of a signal, or 0, given by number or name, with or without `SIG`, in any case.
fn number(signal: &str) -> Option<i32> {
    if let Ok(number) = signal.parse() {
        return (0..=SIGNAL_MAX).contains(&number).then_some(number);
    }
    let upper = signal.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name);
    named.map(|&(_, number)| number)
}

const NAMES: [(&str, i32); 34] = [
    ("ABRT", libc::SIGABRT),
    ("ALRM", libc::SIGALRM),
    ("BUS", libc::SIGBUS),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("FPE", libc::SIGFPE),
    ("HUP", libc::SIGHUP),
    ("ILL", libc::SIGILL),
    ("INT", libc::SIGINT),
    ("IO", libc::SIGIO),
    ("IOT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("PIPE", libc::SIGPIPE),
    ("POLL", libc::SIGIO),
    ("PROF", libc::SIGPROF),
    ("PWR", libc::SIGPWR),
    ("QUIT", libc::SIGQUIT),
    ("SEGV", libc::SIGSEGV),
    ("STKFLT", libc::SIGSTKFLT),
    ("STOP", libc::SIGSTOP),
    ("SYS", libc::SIGSYS),
    ("TERM", libc::SIGTERM),
    ("TRAP", libc::SIGTRAP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("VTALRM", libc::SIGVTALRM),
    ("WINCH", libc::SIGWINCH),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, expected) in [
            ("KILL", Some(9)),
            ("SIGKILL", Some(9)),
            ("sigterm", Some(15)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("0", Some(0)),
            ("65", None),
            ("-1", None),
            ("SIG", None),
            ("", None),
            ("FOO", None),
        ] {
            assert_eq!(number(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_an_impossible_signal(text: String) {
            prop_assert!(number(&text).is_none_or(|number| (0..=64).contains(&number)));
        }
    }
}
