//! Values of options as Go's libraries read them for runc: durations and sizes. Called by the
//! command line's parser.

use std::time::Duration;

/// Reads a duration as Go's `time.ParseDuration` does: `100ms`, `1m30s`, `1.5h`. What is negative
/// comes out as zero.
///
/// # Errors
/// When it is not one; the text says so.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a duration like 100ms, 5s or 1m30s".to_owned();
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(wrong)?);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let letters = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.checked_add(part).ok_or_else(wrong)?;
        rest = next;
    }
    Ok(if negative { Duration::ZERO } else { total })
}

/// Reads a size in bytes as `docker/go-units` does: `50M`, `1.5 GiB`, `4096`; powers of 1024 all
/// of them. `-1` stays -1: no limit.
///
/// # Errors
/// When it is not one; the text says so.
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let wrong = || format!("invalid size: '{text}'");
    if text == "-1" {
        return Ok(-1);
    }
    let letters = text.find(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(letters.unwrap_or(text.len()));
    let number: f64 = number
        .strip_suffix(' ')
        .unwrap_or(number)
        .parse()
        .map_err(|_| wrong())?;
    let unit = unit.to_ascii_lowercase();
    let letter = unit
        .strip_suffix("ib")
        .or_else(|| unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let power = match letter {
        "" if !unit.ends_with("ib") => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let bytes = number * 1024_f64.powi(power);
    // Beyond 2^53 a float has no fractions, and below 2^63 it fits.
    if bytes.is_finite() && (0.0..9_223_372_036_854_775_808.0).contains(&bytes) {
        Ok(bytes as i64)
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [
            ("5s", 5000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("+2s", 2000),
            (".5s", 500),
            ("0", 0),
            ("-1s", 0),
            ("1500us", 1),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for wrong in [
            "",
            "5",
            "s",
            "5 s",
            "5x",
            "-",
            "1.2.3s",
            "1e400h",
            "9999999999999999h",
        ] {
            assert_eq!(
                duration(wrong).unwrap_err(),
                "must be a duration like 100ms, 5s or 1m30s",
                "{wrong}"
            );
        }
    }

    #[test]
    fn sizes_are_dockers() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("50M", 50 << 20),
            ("50m", 50 << 20),
            ("50MB", 50 << 20),
            ("50MiB", 50 << 20),
            ("1.5 GiB", 3 << 29),
            ("2k", 2048),
            ("3t", 3 << 40),
            ("1p", 1 << 50),
            ("7b", 7),
            ("-1", -1),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in [
            "", "M", "-2", "1x", "1mm", "1 2", "1ib", "9999999p", "inf", "nan",
        ] {
            assert_eq!(size(wrong), Err(format!("invalid size: '{wrong}'")));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = (duration(&text), size(&text));
        }
    }
}
