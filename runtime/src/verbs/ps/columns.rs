//! The columns of ps: their headings, widths and values, as procps prints them. What a guest says
//! of its processes is not trusted: a line that is no `/proc/PID/stat` gives zeros.

use std::{collections::HashMap, fmt::Write as _, time::SystemTime};

use lazaret_protocol::agent::{ProcessEntry, ProcessList};

use crate::time;

/// Clock ticks in a second: `USER_HZ`, the same on every Linux on x86-64.
const TICKS_PER_S: u64 = 100;
/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;
/// Longest name of a user that a column shows; a longer one is shown as its number.
const USER_MAX: usize = 8;

/// One column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    /// What stands above it.
    pub(super) heading: String,
    /// Least width, and whether the values stand at the right.
    width: usize,
    right: bool,
    value: fn(&Process<'_>) -> String,
}

/// Names, heading, width, whether at the right, value.
type Row = (
    &'static [&'static str],
    &'static str,
    usize,
    bool,
    fn(&Process<'_>) -> String,
);

const COLUMNS: &[Row] = &[
    (&["pid", "tgid"], "PID", 7, true, |p| {
        p.entry.pid.to_string()
    }),
    (&["ppid"], "PPID", 7, true, |p| p.stat.field(4).to_string()),
    (&["pgid", "pgrp"], "PGID", 7, true, |p| {
        p.stat.field(5).to_string()
    }),
    (&["sid", "sess", "session"], "SID", 7, true, |p| {
        p.stat.field(6).to_string()
    }),
    (&["user", "euser", "uname"], "USER", 8, false, |p| {
        p.user.clone()
    }),
    (&["uid", "euid"], "UID", 5, true, |p| {
        p.entry.uid.to_string()
    }),
    (&["c"], "C", 2, true, |p| {
        (p.cpu_permille() / 10).min(99).to_string()
    }),
    (&["pcpu", "%cpu"], "%CPU", 4, true, |p| {
        tenths(p.cpu_permille())
    }),
    (&["pmem", "%mem"], "%MEM", 4, true, |p| {
        tenths(p.memory_permille())
    }),
    (&["stime"], "STIME", 5, true, |p| p.start()),
    (&["start", "start_time"], "START", 7, false, |p| p.start()),
    (&["lstart"], "STARTED", 20, true, |p| {
        time::rfc3339(p.started())
    }),
    (&["etime"], "ELAPSED", 11, true, |p| elapsed(p.age_s())),
    (&["etimes"], "ELAPSED", 7, true, |p| p.age_s().to_string()),
    (&["tty", "tt", "tname"], "TTY", 8, false, |p| p.terminal()),
    (&["time", "cputime"], "TIME", 8, true, |p| {
        long_time(p.cpu_s())
    }),
    (&["bsdtime"], "TIME", 6, true, |p| {
        format!("{}:{:02}", p.cpu_s() / 60, p.cpu_s() % 60)
    }),
    (&["stat"], "STAT", 4, false, |p| p.state()),
    (&["s", "state"], "S", 1, false, |p| p.stat.state.to_string()),
    (&["vsz", "vsize"], "VSZ", 6, true, |p| {
        (p.stat.number(23) / 1024).to_string()
    }),
    (&["rss", "rssize"], "RSS", 5, true, |p| {
        (p.stat.number(24).saturating_mul(PAGE_BYTES) / 1024).to_string()
    }),
    (&["nice", "ni"], "NI", 3, true, |p| {
        p.stat.field(19).to_string()
    }),
    (&["pri"], "PRI", 3, true, |p| {
        (39 - p.stat.field(18)).to_string()
    }),
    (&["nlwp", "thcount"], "NLWP", 4, true, |p| {
        p.stat.field(20).to_string()
    }),
    (&["psr"], "PSR", 3, true, |p| p.stat.field(39).to_string()),
    (&["comm", "ucmd", "ucomm"], "COMMAND", 15, false, |p| {
        p.stat.name.clone()
    }),
    (&["args", "cmd", "command"], "COMMAND", 27, false, |p| {
        p.command()
    }),
];

/// The column called `name`, under `heading` if that is given.
pub(super) fn find(name: &str, heading: Option<&str>) -> Option<Column> {
    let row = COLUMNS.iter().find(|row| row.0.contains(&name))?;
    let heading = heading.unwrap_or(row.1);
    Some(Column {
        heading: heading.to_owned(),
        width: row.2.max(heading.len()),
        right: row.3,
        value: row.4,
    })
}

/// The table, a heading first. `memory_mib` is the guest's memory.
pub(super) fn table(columns: &[Column], list: &ProcessList, memory_mib: u64) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users = users(&passwd);
    let mut text = line(columns, |column| column.heading.clone());
    for entry in &list.processes {
        let user = users.get(&entry.uid).filter(|name| name.len() <= USER_MAX);
        let process = Process {
            entry,
            stat: Stat::parse(&entry.stat),
            user: user.map_or_else(|| entry.uid.to_string(), |name| (*name).to_owned()),
            uptime_ms: list.uptime_ms,
            memory_mib,
        };
        text.push_str(&line(columns, |column| (column.value)(&process)));
    }
    text
}

fn line(columns: &[Column], cell: impl Fn(&Column) -> String) -> String {
    let mut line = String::new();
    for (index, column) in columns.iter().enumerate() {
        if index > 0 {
            line.push(' ');
        }
        let (cell, width) = (printable(&cell(column)), column.width);
        // Writing to a string does not fail.
        let _ = if column.right {
            write!(line, "{cell:>width$}")
        } else if index + 1 == columns.len() {
            write!(line, "{cell}")
        } else {
            write!(line, "{cell:width$}")
        };
    }
    line.push('\n');
    line
}

/// Without what a terminal would obey: the names are the container's.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

/// Names of this host's users by their numbers, as ps would show them.
fn users(passwd: &str) -> HashMap<u32, &str> {
    let entries = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        Some((fields.nth(1)?.parse().ok()?, name))
    });
    // The first entry counts.
    entries.collect::<Vec<_>>().into_iter().rev().collect()
}

/// A line of `/proc/PID/stat`, its fields numbered as in `proc_pid_stat(5)`.
#[derive(Debug)]
struct Stat {
    name: String,
    state: char,
    /// From field 4 on.
    fields: Vec<i64>,
}

impl Stat {
    fn parse(stat: &str) -> Self {
        let (before, after) = stat.rsplit_once(')').unwrap_or(("", ""));
        let name = before.split_once('(').map_or("", |(_, name)| name);
        let mut words = after.split_ascii_whitespace();
        let state = words.next().and_then(|word| word.chars().next());
        let number = |word: &str| {
            let unsigned = || word.parse::<u64>().map_or(0, |_| i64::MAX);
            word.parse().unwrap_or_else(|_| unsigned())
        };
        Self {
            name: name.to_owned(),
            state: state.unwrap_or('?'),
            fields: words.map(number).collect(),
        }
    }

    fn field(&self, number: usize) -> i64 {
        self.fields.get(number - 4).copied().unwrap_or(0)
    }

    fn number(&self, number: usize) -> u64 {
        u64::try_from(self.field(number)).unwrap_or(0)
    }
}

/// A process, with what its columns need to know beside.
pub(super) struct Process<'a> {
    entry: &'a ProcessEntry,
    stat: Stat,
    user: String,
    uptime_ms: u64,
    memory_mib: u64,
}

impl Process<'_> {
    fn cpu_ticks(&self) -> u64 {
        self.stat.number(14).saturating_add(self.stat.number(15))
    }

    fn cpu_s(&self) -> u64 {
        self.cpu_ticks() / TICKS_PER_S
    }

    fn age_ms(&self) -> u64 {
        let start_ms = self.stat.number(22).saturating_mul(1000 / TICKS_PER_S);
        self.uptime_ms.saturating_sub(start_ms)
    }

    fn age_s(&self) -> u64 {
        self.age_ms() / 1000
    }

    fn cpu_permille(&self) -> u64 {
        let cpu_ms = self.cpu_ticks().saturating_mul(1000 / TICKS_PER_S);
        cpu_ms.saturating_mul(1000) / self.age_ms().max(1)
    }

    fn memory_permille(&self) -> u64 {
        let bytes = self.stat.number(24).saturating_mul(PAGE_BYTES);
        bytes.saturating_mul(1000) / (self.memory_mib << 20).max(1)
    }

    fn started(&self) -> SystemTime {
        let age = std::time::Duration::from_millis(self.age_ms());
        let now = SystemTime::now();
        now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The time if it started within a day, else the date.
    fn start(&self) -> String {
        time::short(self.started(), self.age_s())
    }

    fn terminal(&self) -> String {
        let device = self.stat.number(7);
        let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
        match major {
            // Unix98 pseudoterminals (`Documentation/admin-guide/devices.txt`).
            136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
            4 if minor < 64 => format!("tty{minor}"),
            5 if minor == 1 => "console".to_owned(),
            229 => format!("hvc{minor}"),
            _ => "?".to_owned(),
        }
    }

    fn state(&self) -> String {
        let stat = &self.stat;
        let mut text = String::from(stat.state);
        match stat.field(19) {
            ..0 => text.push('<'),
            1.. => text.push('N'),
            0 => {}
        }
        if stat.field(6) == i64::from(self.entry.pid) {
            text.push('s');
        }
        if stat.field(20) > 1 {
            text.push('l');
        }
        if stat.field(8) == stat.field(5) && stat.field(8) != 0 {
            text.push('+');
        }
        text
    }

    fn command(&self) -> String {
        if self.entry.command.is_empty() {
            format!("[{}]", self.stat.name)
        } else {
            self.entry.command.clone()
        }
    }
}

fn tenths(permille: u64) -> String {
    format!("{}.{}", permille / 10, permille % 10)
}

/// `[dd-]hh:mm:ss`.
fn long_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        days => format!("{days}-{clock}"),
    }
}

/// `[[dd-]hh:]mm:ss`.
fn elapsed(seconds: u64) -> String {
    if seconds < 3600 {
        format!("{:02}:{:02}", seconds / 60, seconds % 60)
    } else {
        long_time(seconds)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(stat: &str, command: &str) -> ProcessList {
        ProcessList {
            uptime_ms: 100_000,
            processes: vec![ProcessEntry {
                pid: 31,
                uid: 0,
                stat: stat.to_owned(),
                command: command.to_owned(),
            }],
        }
    }

    fn columns(names: &[&str]) -> Vec<Column> {
        names.iter().map(|name| find(name, None).unwrap()).collect()
    }

    /// Half a minute old, a third of which it computed; on pts/3; leader of its session.
    const STAT: &str = "31 (a) b (c) S 1 31 31 34819 31 4194560 1 0 0 0 700 300 0 0 20 0 2 0 7000 \
                        2097152 256 18446744073709551615 1 1 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0";

    #[test]
    fn the_full_format_is_that_of_ps() {
        let columns = columns(&["user", "pid", "ppid", "c", "tty", "time", "args"]);
        assert_eq!(
            table(&columns, &list(STAT, "sleep 5"), 64),
            "USER         PID    PPID  C TTY          TIME COMMAND\n\
             root          31       1 33 pts/3    00:00:10 sleep 5\n"
        );
    }

    #[test]
    fn a_process_has_its_figures() {
        let list = list(STAT, "");
        for (name, value) in [
            ("stat", "Ssl+"),
            ("s", "S"),
            ("%cpu", "33.3"),
            ("%mem", " 1.5"),
            ("vsz", "  2048"),
            ("rss", " 1024"),
            ("bsdtime", "  0:10"),
            ("etime", "      00:30"),
            ("comm", "a) b (c"),
            ("args", "[a) b (c]"),
            ("ni", "  0"),
            ("pri", " 19"),
            ("nlwp", "   2"),
        ] {
            let text = table(&columns(&[name]), &list, 64);
            assert_eq!(text.lines().nth(1), Some(value), "{name}");
        }
    }

    #[test]
    fn nothing_of_a_name_reaches_the_terminal_as_a_command() {
        let text = table(&columns(&["pid", "args"]), &list(STAT, "x\u{1b}[2J\ny"), 64);
        assert_eq!(text.lines().nth(1), Some("     31 x?[2J?y"));
    }

    #[test]
    fn times_are_those_of_ps() {
        assert_eq!(long_time(3_723), "01:02:03");
        assert_eq!(long_time(90_061), "1-01:01:01");
        assert_eq!(elapsed(61), "01:01");
        assert_eq!(elapsed(3_600), "01:00:00");
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_is_no_panic(stat in "(?s).{0,120}", numbers in "[-0-9 ()]{0,300}") {
            let all: Vec<&str> = COLUMNS.iter().map(|row| row.0[0]).collect();
            for stat in [stat, format!("1 (x) S {numbers}")] {
                let _ = table(&columns(&all), &list(&stat, ""), 0);
            }
        }
    }
}
