//! The log: `tracing` events as runc's lines (logrus, text or JSON), because that is what Podman,
//! Docker and containerd read back from `--log`. Installed once by the command line.

use std::{
    fmt::{self, Write as _},
    fs::File,
    io::{self, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicI32, Ordering},
    },
};

use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::time;

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `time="…" level=error msg="…"`.
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

/// Where lines go and which are kept.
pub(crate) struct Log {
    /// `None` is standard error.
    file: Option<Mutex<File>>,
    format: Format,
    level: Level,
}

impl Log {
    /// A log to `path`, or to standard error.
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub(crate) fn open(path: Option<&Path>, format: Format, debug: bool) -> io::Result<Self> {
        let file = path
            .map(|path| File::options().append(true).create(true).open(path))
            .transpose()?;
        Ok(Self {
            file: file.map(Mutex::new),
            format,
            level: if debug { Level::DEBUG } else { Level::INFO },
        })
    }

    /// Whether lines reach the user's eyes without further ado.
    pub(crate) fn is_stderr(&self) -> bool {
        self.file.is_none()
    }

    /// Makes this the log of the process.
    pub(crate) fn install(self) {
        if let Some(Ok(file)) = self.file.as_ref().map(Mutex::lock) {
            FILE.store(file.as_raw_fd(), Ordering::Relaxed);
        }
        // The process has one command line, hence one log; in tests a second one is dropped.
        let _ = tracing::subscriber::set_global_default(self);
    }

    fn line(&self, level: Level, message: &str, fields: &[(&'static str, String)]) -> String {
        let time = time::rfc3339_now();
        let level = level_name(level);
        match self.format {
            Format::Text => text_line(&time, level, message, fields),
            Format::Json => json_line(&time, level, message, fields),
        }
    }
}

/// Descriptor of the log's file, or -1.
static FILE: AtomicI32 = AtomicI32::new(-1);

/// Descriptor of the log's file, which a forked process has to keep open.
pub(crate) fn file() -> Option<RawFd> {
    Some(FILE.load(Ordering::Relaxed)).filter(|&fd| fd >= 0)
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = plain(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&plain(&error.to_string()));
        cause = error.source();
    }
    text
}

/// The standard library's "No such file or directory (os error 2)" as everybody else says it.
fn plain(text: &str) -> String {
    let Some((words, _)) = text.split_once(" (os error ") else {
        return text.to_owned();
    };
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(letters).collect()
    })
}

/// Logs as a debug message what was just done, with the time: so can be seen what a verb's time is
/// spent on. Costs nothing unless debug messages are kept.
pub(crate) fn phase(done: &'static str) {
    tracing::debug!(at_us = time::monotonic_us(), process = "lazaret", "{done}");
}

/// The same for what the monitor just did.
pub(crate) fn monitor_phase(done: &'static str) {
    tracing::debug!(at_us = time::monotonic_us(), process = "monitor", "{done}");
}

/// The same for what another process did at `at_us`.
pub(crate) fn phase_of(process: &'static str, at_us: u64, done: &str) {
    tracing::debug!(at_us, process, "{done}");
}

/// Whether debug messages are kept.
pub(crate) fn keeps_debug() -> bool {
    tracing::enabled!(Level::DEBUG)
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

fn text_line(time: &str, level: &str, message: &str, fields: &[(&str, String)]) -> String {
    let mut line = format!("time=\"{time}\" level={level} msg={}", quoted(message));
    for (name, value) in fields {
        let _ = write!(line, " {name}={}", quoted(value));
    }
    line.push('\n');
    line
}

fn json_line(time: &str, level: &str, message: &str, fields: &[(&str, String)]) -> String {
    let mut object = serde_json::Map::new();
    for (name, value) in fields {
        object.insert((*name).to_owned(), value.as_str().into());
    }
    object.insert("level".to_owned(), level.into());
    object.insert("msg".to_owned(), message.into());
    object.insert("time".to_owned(), time.into());
    let mut line = serde_json::Value::Object(object).to_string();
    line.push('\n');
    line
}

/// `value` as logrus writes it: bare when it is one harmless word, otherwise a quoted string.
fn quoted(value: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !value.is_empty() && value.chars().all(harmless) {
        value.to_owned()
    } else {
        // JSON's escapes are a subset of Go's.
        serde_json::Value::from(value).to_string()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with("lazaret")
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = self.line(*event.metadata().level(), &fields.message, &fields.others);
        // Nobody can be told that the log does not work.
        let _ = match &self.file {
            None => io::stderr().write_all(line.as_bytes()),
            Some(file) => match file.lock() {
                Ok(mut file) => file.write_all(line.as_bytes()),
                Err(_) => Ok(()),
            },
        };
    }

    // Spans are not used: the container's id is a field of the events that concern one.
    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.others.push((field.name(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.others.push((field.name(), value.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_what_logrus_prints() {
        assert_eq!(
            text_line(
                "T",
                "error",
                "container \"x\" lost",
                &[("id", "a-b".to_owned())]
            ),
            "time=\"T\" level=error msg=\"container \\\"x\\\" lost\" id=a-b\n"
        );
    }

    #[test]
    fn causes_follow_their_errors() {
        let error = crate::config::ConfigError::Read {
            path: "/x".into(),
            source: io::Error::from_raw_os_error(libc::ENOENT),
        };
        assert_eq!(
            chain(&error),
            "cannot read configuration /x: no such file or directory"
        );
    }

    #[test]
    fn json_is_what_podman_parses() {
        assert_eq!(
            json_line("T", "error", "line\nbreak", &[]),
            "{\"level\":\"error\",\"msg\":\"line\\nbreak\",\"time\":\"T\"}\n"
        );
    }
}
