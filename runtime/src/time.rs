//! Points in time as logs and `state` print them. Called by the log and by `create`; reads the
//! clocks, nothing else.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// Now in microseconds of `CLOCK_MONOTONIC`, which all processes of this machine share.
pub(crate) fn monotonic_us() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither part of the time since a boot is negative.
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// Now in RFC 3339, UTC, whole seconds: `2026-11-21T09:00:00Z`.
pub(crate) fn rfc3339_now() -> String {
    format(SystemTime::now(), false)
}

/// Now in RFC 3339, UTC, nanoseconds without trailing zeros, as Go's `RFC3339Nano`.
pub(crate) fn rfc3339_nanos_now() -> String {
    format(SystemTime::now(), true)
}

/// `time` in RFC 3339, UTC, whole seconds.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    format(time, false)
}

/// `time` as `ps` shows when a process started `age_s` seconds ago, in the local time of day:
/// `09:30` within a day, `Nov21` within a year, else `2026`.
pub(crate) fn short(time: SystemTime, age_s: u64) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let since = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let local = since.saturating_add_signed(crate::sys::seconds_east_of_utc(since));
    let (year, month, day) = civil_from_days(local / DAY_S);
    let second = local % DAY_S;
    match age_s {
        0..DAY_S => format!("{:02}:{:02}", second / 3600, second / 60 % 60),
        _ if age_s < 365 * DAY_S => {
            let name = MONTHS.get(month as usize - 1).unwrap_or(&"");
            format!("{name}{day:02}")
        }
        _ => year.to_string(),
    }
}

fn format(time: SystemTime, nanos: bool) -> String {
    // A clock before 1970 is a machine without a clock: show the epoch.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / DAY_S, since.as_secs() % DAY_S);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos && since.subsec_nanos() != 0 {
        let fraction = format!("{:09}", since.subsec_nanos());
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// The Gregorian date `days` after 1970-01-01. Counting years from March puts the leap day last,
/// so that month lengths follow one formula; 400 years are always 146,097 days.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (1_795_253_423, "2026-11-21T09:30:23Z"),
        ] {
            assert_eq!(
                format(UNIX_EPOCH + Duration::from_secs(seconds), false),
                text
            );
        }
    }

    #[test]
    fn starts_are_short() {
        // Noon of a day, so that no zone makes it another.
        let time = UNIX_EPOCH + Duration::from_secs(1_795_253_423 / DAY_S * DAY_S + DAY_S / 2);
        assert_eq!(short(time, DAY_S), "Nov21");
        assert_eq!(short(time, 366 * DAY_S), "2026");
        let now = short(time, 0);
        assert_eq!((now.len(), &now[2..3]), (5, ":"));
    }

    #[test]
    fn nanoseconds_lose_their_trailing_zeros() {
        let time = UNIX_EPOCH + Duration::new(1, 120_000_000);
        assert_eq!(format(time, true), "1970-01-01T00:00:01.12Z");
        assert_eq!(format(UNIX_EPOCH, true), "1970-01-01T00:00:00Z");
    }
}
