//! The options of ps: which columns to show. Which processes is settled: the container's.

use super::columns::{self, Column};

/// `-f`.
const FULL: &str = "user=UID,pid,ppid,c,stime,tty,time,args=CMD";
/// Neither `-f` nor a BSD option.
const SHORT: &str = "pid,tty,time,comm=CMD";
/// `x`.
const BSD: &str = "pid,tty,stat,bsdtime=TIME,args";
/// `u`.
const BSD_USER: &str = "user,pid,pcpu,pmem,vsz,rss,tty,stat,start,bsdtime=TIME,args";

/// Reads the options, `-ef` if there are none.
///
/// # Errors
/// When one is not known, or no column is the process id; the text says so.
pub(super) fn columns(options: &[String]) -> Result<Vec<Column>, String> {
    let mut format = SHORT;
    let mut chosen: Vec<String> = Vec::new();
    if options.is_empty() {
        format = FULL;
    }
    let mut words = options.iter();
    while let Some(word) = words.next() {
        let unknown = || format!("option {word:?} of ps is not supported");
        if let Some(list) = word.strip_prefix("--format=") {
            chosen.push(list.to_owned());
            continue;
        }
        let dashed = word.strip_prefix('-');
        let letters = match dashed {
            Some("-format") => "o",
            Some("-everyone") => "e",
            Some(rest) if rest.starts_with('-') || rest.is_empty() => return Err(unknown()),
            Some(letters) => letters,
            None => word,
        };
        for (at, letter) in letters.char_indices() {
            match (letter, dashed.is_some()) {
                // Which processes, and how wide.
                ('e' | 'A' | 'a', true) | ('a' | 'w' | 'e', false) | ('w', true) => {}
                ('f', _) => format = FULL,
                ('x', _) if format == SHORT => format = BSD,
                ('x', _) => {}
                ('u', false) => format = BSD_USER,
                ('o', _) => {
                    let rest = &letters[at + 1..];
                    let list = if rest.is_empty() {
                        let next = words
                            .next()
                            .ok_or("option -o of ps needs a list of columns")?;
                        next.clone()
                    } else {
                        rest.to_owned()
                    };
                    chosen.push(list);
                    break;
                }
                _ => return Err(unknown()),
            }
        }
    }
    let list = if chosen.is_empty() {
        format.to_owned()
    } else {
        chosen.join(",")
    };
    let columns = parse(&list)?;
    if columns.iter().any(|column| column.heading == "PID") {
        Ok(columns)
    } else {
        Err("couldn't find PID field in ps output".to_owned())
    }
}

/// Reads a list such as `pid,user=NAME,args`; a heading of one's own takes the rest of the list in
/// ps, but not here: engines ask for several.
fn parse(list: &str) -> Result<Vec<Column>, String> {
    let words = list.split([',', ' ']).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let (name, heading) = match word.split_once('=') {
                Some((name, heading)) => (name, Some(heading)),
                None => (word, None),
            };
            columns::find(name, heading)
                .ok_or_else(|| format!("column {name:?} of ps is not supported"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headings(words: &[&str]) -> Result<String, String> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        let columns = columns(&words)?;
        let headings: Vec<_> = columns
            .iter()
            .map(|column| column.heading.as_str())
            .collect();
        Ok(headings.join(" "))
    }

    #[test]
    fn options_choose_columns() {
        for (words, expected) in [
            (&[][..], "UID PID PPID C STIME TTY TIME CMD"),
            (&["-ef"], "UID PID PPID C STIME TTY TIME CMD"),
            (&["-e"], "PID TTY TIME CMD"),
            (&["-e", "-x"], "PID TTY STAT TIME COMMAND"),
            (&["ax"], "PID TTY STAT TIME COMMAND"),
            (
                &["aux"],
                "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
            ),
            (&["-o", "pid,comm"], "PID COMMAND"),
            (&["-eo", "user=NAME,pid"], "NAME PID"),
            (&["-opid", "-o", "args"], "PID COMMAND"),
            (&["--format=pid,rss"], "PID RSS"),
        ] {
            assert_eq!(headings(words).as_deref(), Ok(expected), "{words:?}");
        }
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (words, expected) in [
            (&["-l"][..], "option \"-l\" of ps is not supported"),
            (&["--forest"], "option \"--forest\" of ps is not supported"),
            (&["-"], "option \"-\" of ps is not supported"),
            (&["-o"], "option -o of ps needs a list of columns"),
            (
                &["-o", "pid,wchan"],
                "column \"wchan\" of ps is not supported",
            ),
            (&["-o", "args"], "couldn't find PID field in ps output"),
        ] {
            assert_eq!(headings(words), Err(expected.to_owned()), "{words:?}");
        }
    }
}
