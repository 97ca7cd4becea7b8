//! Properties that annotations give a sandbox's systemd unit: `org.systemd.property.NAME`, with a value
//! as GLib writes it. Engines set how long stopping may take or which signal it begins with. Sends
//! nothing: [`crate::host_cgroup`] does.
//!
//! Sources: runc's docs/systemd.md; "GVariant Text Format" of GLib's reference.

use oci_spec::runtime::Spec;
use serde::Serialize;

use super::PlanError;

/// What such an annotation begins with.
const PREFIX: &str = "org.systemd.property.";

/// Shortest name of a property, as runc has it.
const NAME_MIN: usize = 3;

/// How many microseconds a second has.
const SECOND_US: u64 = 1_000_000;

/// A property and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnitProperty {
    /// Its name.
    pub(crate) name: String,
    /// What it is to be.
    pub(crate) value: UnitValue,
}

/// A value of one of the types that systemd's properties have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum UnitValue {
    /// D-Bus's `b`.
    Flag(bool),
    /// `s`.
    Text(String),
    /// `as`.
    Texts(Vec<String>),
    /// `i`, which is what a number is that does not say.
    I32(i32),
    /// `u`.
    U32(u32),
    /// `x`.
    I64(i64),
    /// `t`.
    U64(u64),
}

/// The properties that the annotations give.
///
/// # Errors
/// [`PlanError`], which names the annotation.
pub(super) fn unit_properties(spec: &Spec) -> Result<Vec<UnitProperty>, PlanError> {
    let annotations = spec.annotations().iter().flatten();
    let named =
        annotations.filter_map(|(key, value)| Some((key, key.strip_prefix(PREFIX)?, value)));
    let mut found = Vec::new();
    for (key, name, text) in named {
        let invalid = |problem: &str| PlanError::invalid(format!("annotations[{key}]"), problem);
        if name.len() < NAME_MIN || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(invalid("is not the name of a property"));
        }
        let value = parse(text).ok_or_else(|| {
            invalid("must be a boolean, a number, a text in quotes, or a list of such texts")
        })?;
        found.push(match in_seconds(name) {
            None => UnitProperty {
                name: name.to_owned(),
                value,
            },
            Some(stem) => UnitProperty {
                name: format!("{stem}USec"),
                value: microseconds(&value).ok_or_else(|| invalid("is no number of seconds"))?,
            },
        });
    }
    // Annotations have no order.
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// What is before `Sec`, if the property is one whose name systemd itself ends with `USec`.
fn in_seconds(name: &str) -> Option<&str> {
    let stem = name.strip_suffix("Sec")?;
    stem.ends_with(|last: char| last.is_ascii_lowercase())
        .then_some(stem)
}

fn microseconds(value: &UnitValue) -> Option<UnitValue> {
    let seconds = match *value {
        UnitValue::I32(number) => u64::try_from(number).ok()?,
        UnitValue::U32(number) => number.into(),
        UnitValue::I64(number) => u64::try_from(number).ok()?,
        UnitValue::U64(number) => number,
        _ => return None,
    };
    Some(UnitValue::U64(seconds.checked_mul(SECOND_US)?))
}

fn parse(text: &str) -> Option<UnitValue> {
    let text = text.trim();
    if let Some(list) = text.strip_prefix("@as") {
        return texts(list.trim_start());
    }
    match text.split_once(char::is_whitespace) {
        Some(("boolean", value)) => return flag(value.trim_start()),
        Some(("string", value)) => return quoted(value.trim_start()),
        Some(("int32", value)) => return number(value).map(UnitValue::I32),
        Some(("uint32", value)) => return number(value).map(UnitValue::U32),
        Some(("int64", value)) => return number(value).map(UnitValue::I64),
        Some(("uint64", value)) => return number(value).map(UnitValue::U64),
        _ => {}
    }
    // A list that is empty does not say of what.
    let list = || texts(text).filter(|list| *list != UnitValue::Texts(Vec::new()));
    flag(text)
        .or_else(|| quoted(text))
        .or_else(list)
        .or_else(|| number(text).map(UnitValue::I32))
}

fn flag(text: &str) -> Option<UnitValue> {
    text.parse().ok().map(UnitValue::Flag)
}

fn number<T: TryFrom<i128>>(text: &str) -> Option<T> {
    let text = text.trim_start();
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // Another sign is none of a number's.
    let digits = Some(digits).filter(|digits| !digits.starts_with(['+', '-']))?;
    let value = i128::from_str_radix(digits, radix).ok()?;
    T::try_from(if is_negative { -value } else { value }).ok()
}

fn quoted(text: &str) -> Option<UnitValue> {
    let (value, rest) = quotation(text)?;
    rest.is_empty().then_some(UnitValue::Text(value))
}

/// `['one', 'two']`.
fn texts(text: &str) -> Option<UnitValue> {
    let mut rest = text.strip_prefix('[')?.trim_start();
    let mut found = Vec::new();
    if let Some(end) = rest.strip_prefix(']') {
        return end.is_empty().then_some(UnitValue::Texts(found));
    }
    loop {
        let (value, after) = quotation(rest)?;
        found.push(value);
        let after = after.trim_start();
        if let Some(end) = after.strip_prefix(']') {
            return end.is_empty().then_some(UnitValue::Texts(found));
        }
        rest = after.strip_prefix(',')?.trim_start();
    }
}

/// Reads a text in quotes; returns what follows, too.
fn quotation(text: &str) -> Option<(String, &str)> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next().filter(|(_, c)| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                same @ ('\\' | '\'' | '"') => same,
                _ => return None,
            }),
            _ if character == quote => return Some((value, &text[at + quote.len_utf8()..])),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_have_the_types_that_they_say() {
        for (text, value) in [
            ("true", UnitValue::Flag(true)),
            ("boolean false", UnitValue::Flag(false)),
            (
                "'inactive-or-failed'",
                UnitValue::Text("inactive-or-failed".into()),
            ),
            (
                r#""it's \"here\"""#,
                UnitValue::Text("it's \"here\"".into()),
            ),
            ("37", UnitValue::I32(37)),
            ("-0x10", UnitValue::I32(-16)),
            ("uint64 5000000", UnitValue::U64(5_000_000)),
            ("uint32 010", UnitValue::U32(8)),
            ("int64 -1", UnitValue::I64(-1)),
            (
                "['a.service', 'b']",
                UnitValue::Texts(vec!["a.service".into(), "b".into()]),
            ),
            ("@as []", UnitValue::Texts(Vec::new())),
        ] {
            assert_eq!(parse(text), Some(value), "{text}");
        }
        for text in [
            "",
            "word",
            "'open",
            "'a' b",
            "[]",
            "[1]",
            "['a',]",
            "uint32 -1",
            "4294967296",
            "--1",
            "1.5",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(in_seconds("TimeoutStopSec"), Some("TimeoutStop"));
        assert_eq!(in_seconds("TimeoutStopUSec"), None);
        assert_eq!(
            microseconds(&UnitValue::I32(2)),
            Some(UnitValue::U64(2_000_000))
        );
        assert_eq!(microseconds(&UnitValue::I32(-2)), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse(&text);
        }

        #[test]
        fn a_text_comes_out_as_it_went_in(text: String) {
            let escaped = text.replace('\\', "\\\\").replace('\'', "\\'");
            prop_assert_eq!(parse(&format!("'{escaped}'")), Some(UnitValue::Text(text)));
        }
    }
}
