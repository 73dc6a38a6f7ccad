//! Durations: `3600`, `30m`, `1H`, `1D`, `1W`.

use std::time::Duration;

/// What a duration may look like, for messages.
pub const ALLOWED: &str = "a number of seconds, or one with S, M, H, D or W";

/// Reads a duration in seconds, or with one of pgmoneta's units in any case:
/// seconds, minutes, hours, days, weeks.
pub fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let seconds = match unit.trim_start().to_ascii_uppercase().as_str() {
        "" | "S" => 1,
        "M" => 60,
        "H" => 60 * 60,
        "D" => 24 * 60 * 60,
        "W" => 7 * 24 * 60 * 60,
        _ => return None,
    };
    let total = number.parse::<u64>().ok()?.checked_mul(seconds)?;
    Some(Duration::from_secs(total))
}

/// A duration as [`parse`] reads it, in the largest unit that fits.
pub(super) fn show(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [(604_800, "W"), (86_400, "D"), (3_600, "H"), (60, "M")];
    match units
        .iter()
        .find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}S"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_are_pgmonetas() {
        let cases = [
            ("3600", Some(3600)),
            ("0", Some(0)),
            ("5s", Some(5)),
            ("30m", Some(1800)),
            ("1H", Some(3600)),
            ("1D", Some(86_400)),
            ("2 W", Some(1_209_600)),
            ("", None),
            ("H", None),
            ("1Y", None),
            ("1.5H", None),
            ("-1", None),
            ("18446744073709551615W", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected.map(Duration::from_secs), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_shown_can_be_read(seconds in 0..u64::MAX) {
            let duration = Duration::from_secs(seconds);
            prop_assert_eq!(parse(&show(duration)), Some(duration));
        }
    }
}
