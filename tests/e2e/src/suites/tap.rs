//! Reads the Test Anything Protocol (`testanything.org`) as bats and crun's suite write it.

use std::time::{Duration, Instant};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It did not run, and said why.
    Skipped(String),
}

/// A case that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its name in its file.
    pub(crate) name: String,
    /// How it ended.
    pub(crate) outcome: Outcome,
    /// How long it took.
    pub(crate) took: Duration,
    /// What it said, comment signs removed.
    pub(crate) said: String,
}

impl Seen {
    /// A case that was to run and of which there is no result.
    pub(crate) fn lost(name: &str, said: String) -> Self {
        Self {
            name: name.to_owned(),
            outcome: Outcome::Failed,
            took: Duration::ZERO,
            said,
        }
    }
}

/// Where what a case says stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// After its result, as comments.
    ResultFirst,
    /// Before it.
    ResultLast,
}

/// Reads results as they come.
pub(crate) struct Report {
    order: Order,
    /// The start of a line whose end has not come.
    line: Vec<u8>,
    seen: Vec<Seen>,
    /// What was said and belongs to none of these.
    rest: String,
    /// When the latest result came.
    since: Instant,
}

impl Report {
    /// Nothing has come.
    pub(crate) fn new(order: Order) -> Self {
        Self {
            order,
            line: Vec::new(),
            seen: Vec::new(),
            rest: String::new(),
            since: Instant::now(),
        }
    }

    /// Takes more of the text. Whether there was a result in it.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> bool {
        let before = self.seen.len();
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.line);
                self.add_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
            } else {
                self.line.push(byte);
            }
        }
        self.seen.len() > before
    }

    fn add_line(&mut self, line: &str) {
        if let Some((before, mut seen)) = self.result(line) {
            self.rest.push_str(before);
            seen.took = self.since.elapsed();
            self.since = Instant::now();
            if self.order == Order::ResultLast {
                seen.said = std::mem::take(&mut self.rest);
            }
            self.seen.push(seen);
            return;
        }
        let comment = line
            .strip_prefix('#')
            .map_or(line, |rest| rest.strip_prefix(' ').unwrap_or(rest));
        let said = match self.seen.last_mut() {
            Some(last) if self.order == Order::ResultFirst => &mut last.said,
            _ => &mut self.rest,
        };
        said.push_str(comment);
        said.push('\n');
    }

    /// The result in a line and what stands before it: what is said before a result may lack the end
    /// of its last line.
    fn result<'a>(&self, line: &'a str) -> Option<(&'a str, Seen)> {
        let starts = line.rmatch_indices("ok ").map(|(at, _)| at);
        let starts = starts.filter(|_| self.order == Order::ResultLast);
        starts.chain([0]).find_map(|at| {
            let at = line[..at].strip_suffix("not ").map_or(at, str::len);
            Some((&line[..at], result(&line[at..])?))
        })
    }

    /// Takes the cases of which nothing more is to come.
    pub(crate) fn take(&mut self) -> Vec<Seen> {
        match self.order {
            Order::ResultLast => std::mem::take(&mut self.seen),
            Order::ResultFirst => self
                .seen
                .drain(..self.seen.len().saturating_sub(1))
                .collect(),
        }
    }

    /// Nothing more comes: all cases that are left, and what belongs to none.
    pub(crate) fn end(mut self) -> (Vec<Seen>, String) {
        if !self.line.is_empty() {
            self.add(b"\n");
        }
        (self.seen, self.rest)
    }
}

/// `[not ]ok NUMBER [- ]NAME[ # DIRECTIVE]`.
fn result(line: &str) -> Option<Seen> {
    let (failed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let rest = rest.strip_prefix("- ").unwrap_or(rest);
    let (rest, directive) = match rest.rsplit_once(" #") {
        Some((rest, directive)) if is_directive(directive) => (rest, directive.trim()),
        _ => (rest, ""),
    };
    let outcome = match directive.get(..4) {
        _ if failed => Outcome::Failed,
        Some(word) if word.eq_ignore_ascii_case("skip") => {
            Outcome::Skipped(directive[4..].trim().to_owned())
        }
        _ => Outcome::Passed,
    };
    let said = if failed && !directive.is_empty() {
        format!("{directive}\n")
    } else {
        String::new()
    };
    Some(Seen {
        name: rest.to_owned(),
        outcome,
        took: Duration::ZERO,
        said,
    })
}

fn is_directive(text: &str) -> bool {
    let word = text.split_whitespace().next().unwrap_or_default();
    ["skip", "timeout"].contains(&word.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, order: Order) -> (Vec<Seen>, String) {
        let mut report = Report::new(order);
        report.add(text.as_bytes());
        report.end()
    }

    #[test]
    fn what_bats_writes_is_read() {
        let text = "1..4\r\nok 1 runc run [a # b]\r\nnot ok 2 in b # timeout after 1s\r\n\
             # (in test file)\n#   `false' failed\nok 3 c # skip test requires criu\nok 4 d";
        let (seen, rest) = read(text, Order::ResultFirst);
        let names: Vec<&str> = seen.iter().map(|seen| seen.name.as_str()).collect();
        // The last line has no end, and counts.
        assert_eq!(names, ["runc run [a # b]", "in b", "c", "d"]);
        assert_eq!(seen[0].outcome, Outcome::Passed);
        assert_eq!(seen[1].outcome, Outcome::Failed);
        assert_eq!(
            seen[1].said,
            "timeout after 1s\n(in test file)\n  `false' failed\n"
        );
        let skipped = Outcome::Skipped("test requires criu".to_owned());
        assert_eq!(seen[2].outcome, skipped);
        assert_eq!(rest, "1..4\n");
    }

    #[test]
    fn what_crun_writes_is_read() {
        let text = "1..2\nwrong ownernot ok 1 - mount-ro\nok 2 - sd-notify #SKIP\nbye\n";
        let (seen, rest) = read(text, Order::ResultLast);
        assert_eq!(seen[0].name, "mount-ro");
        assert_eq!(seen[0].said, "1..2\nwrong owner");
        assert_eq!(seen[0].outcome, Outcome::Failed);
        assert_eq!(seen[1].outcome, Outcome::Skipped(String::new()));
        assert_eq!(rest, "bye\n");
    }

    #[test]
    fn a_case_is_taken_when_all_of_it_has_come() {
        let mut report = Report::new(Order::ResultFirst);
        assert!(!report.add(b"1..2\nnot ok 1 "));
        assert!(report.add(b"a\n# why"));
        assert_eq!(report.take(), []);
        assert!(report.add(b" not\nok 2 b\n"));
        let taken = report.take();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].said, "why not\n");
        assert_eq!(report.end().0[0].name, "b");

        let mut report = Report::new(Order::ResultLast);
        report.add(b"ok 1 - a\n");
        assert_eq!(report.take().len(), 1);
    }

    #[test]
    fn other_lines_are_no_results() {
        for line in ["okay 1 x", "ok x y", "not ok", "# ok 1 x", ""] {
            assert_eq!(read(line, Order::ResultFirst).0, [], "{line}");
        }
    }
}
