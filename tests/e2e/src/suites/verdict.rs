//! What is to be said of a case: a line of the report.

use std::{fmt, time::Duration};

use super::{
    Suite,
    lists::{Cause, Exception},
    tap::{Outcome, Seen},
};

/// Lines that are shown of what a failed case said: the last ones.
const LINES: usize = 12;

/// The first word of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// It passed, as it must.
    Passed,
    /// It failed and must not, or it passed and is excepted.
    Failed,
    /// It failed, and cannot hold.
    Excepted,
    /// It failed, as what it needs is not built.
    Pending,
}

/// A judged case.
#[derive(Debug)]
pub(super) struct Verdict {
    /// How it was judged.
    pub(super) word: Word,
    suite: Suite,
    case: String,
    took: Duration,
    reason: String,
    said: String,
}

impl Verdict {
    /// Judges a case by what was seen of it.
    pub(super) fn new(
        suite: Suite,
        case: String,
        seen: Seen,
        exception: Option<&Exception>,
    ) -> Self {
        let failure = match seen.outcome {
            Outcome::Passed => None,
            Outcome::Failed => Some("failed".to_owned()),
            Outcome::Skipped(reason) => Some(format!("skipped itself: {reason}")),
        };
        let (word, reason) = match (failure, exception) {
            (None, None) => (Word::Passed, String::new()),
            (None, Some(_)) => (
                Word::Failed,
                "it passes, and is in the list of exceptions".to_owned(),
            ),
            (Some(failure), None) => (Word::Failed, failure),
            (Some(_), Some(exception)) => {
                let word = match exception.cause {
                    Cause::Never => Word::Excepted,
                    Cause::Pending => Word::Pending,
                };
                (word, exception.reason.clone())
            }
        };
        Self {
            word,
            suite,
            case,
            took: seen.took,
            reason,
            said: seen.said,
        }
    }

    /// Case and reason with what the case said, or the end of that.
    pub(super) fn explained(&self, everything: bool) -> String {
        let lines: Vec<&str> = self.said.lines().collect();
        let skipped = if everything {
            0
        } else {
            lines.len().saturating_sub(LINES)
        };
        let mut text = format!(
            "failed: {} {}: {}",
            self.suite.name(),
            self.case,
            self.reason
        );
        for line in &lines[skipped..] {
            text.push_str("\n    ");
            text.push_str(line);
        }
        text
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.word {
            Word::Passed => "ok",
            Word::Failed => "FAILED",
            Word::Excepted => "except",
            Word::Pending => "pending",
        };
        write!(formatter, "{word:<8}{:<6}{}", self.suite.name(), self.case)?;
        write!(formatter, "  {:.1} s", self.took.as_secs_f64())?;
        if !self.reason.is_empty() {
            write!(formatter, "  {}", self.reason)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(outcome: Outcome, cause: Option<Cause>) -> Word {
        let seen = Seen {
            name: "b".to_owned(),
            outcome,
            took: Duration::ZERO,
            said: String::new(),
        };
        let exception = cause.map(|cause| Exception {
            case: "a::b".to_owned(),
            cause,
            reason: "why".to_owned(),
        });
        Verdict::new(Suite::Runc, "a::b".to_owned(), seen, exception.as_ref()).word
    }

    #[test]
    fn what_is_not_excepted_must_pass_and_what_is_must_fail() {
        let skipped = || Outcome::Skipped(String::new());
        assert_eq!(judge(Outcome::Passed, None), Word::Passed);
        assert_eq!(judge(Outcome::Failed, None), Word::Failed);
        assert_eq!(judge(skipped(), None), Word::Failed);
        assert_eq!(judge(Outcome::Passed, Some(Cause::Never)), Word::Failed);
        assert_eq!(judge(Outcome::Failed, Some(Cause::Never)), Word::Excepted);
        assert_eq!(judge(skipped(), Some(Cause::Pending)), Word::Pending);
    }
}
