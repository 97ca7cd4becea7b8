//! Programs that a bundle wants run at points of a container's life (runtime-spec, config.md
//! "POSIX-platform Hooks"). The runtime runs those of the host, the agent runs those of the
//! container's own namespaces, [`StartHooks`].

use std::{
    fs::File,
    io::{Read as _, Seek as _},
};

use serde::{Deserialize, Serialize};

/// How much of what a hook wrote is shown when it fails.
const SHOWN_BYTES_MAX: u64 = 4096;

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// Absolute path.
    pub path: String,
    /// Its arguments, the name of the program included; empty stands for the path alone.
    pub args: Vec<String>,
    /// Its whole environment, names and values; `None` is that of who runs it.
    pub env: Option<Vec<(String, String)>>,
    /// Seconds after which it is killed and has failed, at least 1; `None` waits for ever.
    pub timeout_s: Option<u64>,
}

/// The hooks `startContainer`: run in the container, as its user, before its program.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartHooks {
    /// In order; the first that fails ends the container.
    pub hooks: Vec<Hook>,
    /// The container's state as a JSON object (runtime.md "State") without `pid`, which only the
    /// container's process knows.
    pub state: String,
}

/// What is said of the end of a hook that failed, by its exit code or the signal that killed it, in
/// the words of Go's standard library and hence of runc.
#[must_use]
pub fn describe_end(code: Option<i32>, signal: Option<i32>) -> String {
    match (code, signal) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => {
            let index = usize::try_from(signal).ok();
            let words = index.and_then(|index| SIGNALS.get(index.checked_sub(1)?));
            words.map_or_else(
                || format!("signal: signal {signal}"),
                |words| format!("signal: {words}"),
            )
        }
        (None, None) => "no status".to_owned(),
    }
}

/// What a hook wrote to `file`, in one line.
#[must_use]
pub fn shown(mut file: File) -> String {
    let mut bytes = Vec::new();
    // What cannot be read back cannot be shown.
    let _ = file.rewind();
    let _ = file.take(SHOWN_BYTES_MAX).read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end().replace('\n', "; ")
}

/// Go's words for the signals from 1 on.
const SIGNALS: [&str; 31] = [
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
    "bad system call",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_as_runc_does() {
        for (code, signal, words) in [
            (Some(7), None, "exit status 7"),
            (None, Some(1), "signal: hangup"),
            (None, Some(9), "signal: killed"),
            (None, Some(15), "signal: terminated"),
            (None, Some(31), "signal: bad system call"),
            (None, Some(34), "signal: signal 34"),
            (None, Some(0), "signal: signal 0"),
            (None, None, "no status"),
        ] {
            assert_eq!(describe_end(code, signal), words);
        }
    }
}
