//! Reads the Test Anything Protocol (`testanything.org`) as bats and crun's suite write it.

use std::time::Duration;

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
    /// How long it took, if that was said.
    pub(crate) took: Option<Duration>,
    /// What it said, comment signs removed.
    pub(crate) said: String,
}

/// Reads the results out of `text`; bats says a case's comments after its result, `comments_first`
/// is for those that say them before.
fn parse(text: &str, comments_first: bool) -> Vec<Seen> {
    let mut found: Vec<Seen> = Vec::new();
    let mut before = String::new();
    for line in text.lines() {
        if let Some(mut seen) = result(line) {
            if comments_first {
                seen.said = std::mem::take(&mut before);
            }
            found.push(seen);
            continue;
        }
        let comment = line
            .strip_prefix('#')
            .map_or(line, |rest| rest.strip_prefix(' ').unwrap_or(rest));
        let said = match found.last_mut() {
            Some(last) if !comments_first => &mut last.said,
            _ => &mut before,
        };
        said.push_str(comment);
        said.push('\n');
    }
    // What follows the last result belongs to it.
    if comments_first && let Some(last) = found.last_mut() {
        last.said.push_str(&before);
    }
    found
}

/// The result of the one case that was to run, from both outputs; without one it has failed, and
/// the outputs are all it said.
pub(crate) fn only(output: &str, comments_first: bool, name: &str, errors: &str) -> Seen {
    let found = parse(output, comments_first)
        .into_iter()
        .find(|seen| seen.name == name);
    let mut seen = found.unwrap_or_else(|| Seen {
        name: name.to_owned(),
        outcome: Outcome::Failed,
        took: None,
        said: output.to_owned(),
    });
    seen.said.push_str(errors);
    seen
}

/// `[not ]ok NUMBER [- ]NAME[ in MSms][ # DIRECTIVE]`.
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
    let timed = rest.rsplit_once(" in ").and_then(|(name, time)| {
        let milliseconds = time.strip_suffix("ms")?.parse().ok()?;
        Some((name, Duration::from_millis(milliseconds)))
    });
    let (name, took) = match timed {
        Some((name, took)) => (name, Some(took)),
        None => (rest, None),
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
        name: name.to_owned(),
        outcome,
        took,
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

    #[test]
    fn what_bats_writes_is_read() {
        let text = "1..4\nok 1 runc run [a # b] in 12ms\nnot ok 2 in b in 1500ms # timeout after 1s\n\
             # (in test file)\n#   `false' failed\nok 3 c in 3ms # skip test requires criu\nok 4 d\n";
        let seen = parse(text, false);
        let names: Vec<&str> = seen.iter().map(|seen| seen.name.as_str()).collect();
        assert_eq!(names, ["runc run [a # b]", "in b", "c", "d"]);
        assert_eq!(seen[0].outcome, Outcome::Passed);
        assert_eq!(seen[0].took, Some(Duration::from_millis(12)));
        assert_eq!(seen[1].outcome, Outcome::Failed);
        assert_eq!(
            seen[1].said,
            "timeout after 1s\n(in test file)\n  `false' failed\n"
        );
        let skipped = Outcome::Skipped("test requires criu".to_owned());
        assert_eq!(seen[2].outcome, skipped);
        assert_eq!(seen[3].took, None);
    }

    #[test]
    fn what_crun_writes_is_read() {
        let text = "1..2\nwrong owner\nnot ok 1 - mount-ro\nok 2 - sd-notify #SKIP\n";
        let seen = parse(text, true);
        assert_eq!(seen[0].name, "mount-ro");
        assert_eq!(seen[0].said, "1..2\nwrong owner\n");
        assert_eq!(seen[1].outcome, Outcome::Skipped(String::new()));
    }

    #[test]
    fn a_case_without_a_result_has_failed() {
        let seen = only("1..1\nok 1 other\n", false, "a", "killed\n");
        assert_eq!(seen.outcome, Outcome::Failed);
        assert_eq!(seen.said, "1..1\nok 1 other\nkilled\n");
        let seen = only("ok 1 a\n", false, "a", "a warning\n");
        assert_eq!(seen.outcome, Outcome::Passed);
        assert_eq!(seen.said, "a warning\n");
    }

    #[test]
    fn other_lines_are_no_results() {
        for line in ["okay 1 x", "ok x y", "not ok", "# ok 1 x", ""] {
            assert_eq!(parse(line, false), [], "{line}");
        }
    }
}
