//! Moments as PostgreSQL keeps and writes them (datatype/timestamp.h, utils/adt/datetime.c).
//!
//! The WAL has them as a signed number of microseconds since 2000-01-01 00:00 UTC. Settings have
//! them as text, of which this reads what ISO 8601 and the server's log have: a date, a time of
//! day behind a space or a `T`, and a zone: `Z`, `+01`, `+01:00`, `UTC` or `Europe/Berlin`.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::temporal::DateTimeParser;
use jiff::tz::TimeZone;

/// Seconds from 1970 to 2000.
const POSTGRES_EPOCH: i64 = 946_684_800;

const MICROSECONDS: i64 = 1_000_000;

/// Digits of a date, `YYYY-MM-DD`.
const DATE_LENGTH: usize = 10;

/// The moment that is this many microseconds from 2000 on; nothing for one no calendar has.
pub fn from_postgres(microseconds: i64) -> Option<Timestamp> {
    let since_1970 = microseconds.checked_add(POSTGRES_EPOCH * MICROSECONDS)?;
    Timestamp::from_microsecond(since_1970).ok()
}

/// A moment as every server reads it whatever its time zone is: `2026-11-22 13:10:36.25+00`.
pub fn text(moment: Timestamp) -> String {
    moment.strftime("%Y-%m-%d %H:%M:%S%.f+00").to_string()
}

/// Reads a moment; what has no zone of its own is in `local`. The error says what is wrong with it.
pub fn parse(text: &str, local: Option<&TimeZone>) -> Result<Timestamp, String> {
    let text = text.trim();
    let is_clock = |byte: u8| byte.is_ascii_digit() || byte == b':' || byte == b'.';
    let clock_length = text
        .bytes()
        .skip(DATE_LENGTH + 1)
        .take_while(|byte| is_clock(*byte))
        .count();
    let (civil, zone) = text
        .split_at_checked(DATE_LENGTH + 1 + clock_length)
        .unwrap_or((text, ""));
    let civil: DateTime = civil
        .parse()
        .map_err(|_| "expected a time such as 2026-11-22 13:10:36.25+01".to_owned())?;
    if civil.subsec_nanosecond() % 1000 != 0 {
        return Err("PostgreSQL keeps no more than microseconds of a time".to_owned());
    }
    time_zone(zone.trim(), local)?
        .to_ambiguous_timestamp(civil)
        .unambiguous()
        .map_err(|_| {
            format!("{civil} is there twice or never in its time zone: write the offset from UTC, such as {civil}+01")
        })
}

fn time_zone(name: &str, local: Option<&TimeZone>) -> Result<TimeZone, String> {
    match name {
        "" => local.cloned().ok_or_else(|| {
            "this machine's time zone cannot be learnt: write the offset from UTC, such as +01 or Z"
                .to_owned()
        }),
        "Z" | "z" | "UTC" | "GMT" => Ok(TimeZone::UTC),
        _ => DateTimeParser::new().parse_time_zone(name).map_err(|_| {
            format!("{name:?} is no time zone: write the offset from UTC, such as +01 or Z")
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// An hour ahead of UTC, in summer two.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
    }

    #[test]
    fn reads_what_a_server_writes() {
        for (given, expected) in [
            ("2026-11-22 13:10:36+00", "2026-11-22 13:10:36+00"),
            ("2026-11-22T13:10:36Z", "2026-11-22 13:10:36+00"),
            ("2026-11-22 13:10:36.25 UTC", "2026-11-22 13:10:36.25+00"),
            (
                "2026-11-22 13:10:36.123456-03:30",
                "2026-11-22 16:40:36.123456+00",
            ),
            ("2026-11-22 13:10:36 +0100", "2026-11-22 12:10:36+00"),
            ("2026-11-22 13:10", "2026-11-22 12:10:00+00"),
            ("2026-07-22 13:10:36", "2026-07-22 11:10:36+00"),
            ("2026-07-22", "2026-07-21 22:00:00+00"),
        ] {
            let read = parse(given, Some(&berlin())).unwrap();
            assert_eq!(text(read), expected, "{given}");
        }
    }

    #[test]
    fn refuses_what_could_be_another_moment() {
        for (given, why) in [
            ("", "expected a time"),
            ("now", "expected a time"),
            ("yesterday", "expected a time"),
            ("22.11.2026 13:10", "expected a time"),
            ("2026-02-29 13:10:36Z", "expected a time"),
            ("2026-11-22 13:10:36.1234567Z", "microseconds"),
            ("2026-11-22 13:10:36 CEST", "no time zone"),
            ("2026-11-22 13:10:36+1:00:00:00", "no time zone"),
            // The hour when summer time ends, and the one when it begins.
            ("2026-10-25 02:30:00", "twice or never"),
            ("2026-03-29 02:30:00", "twice or never"),
        ] {
            let error = parse(given, Some(&berlin())).unwrap_err();
            assert!(error.contains(why), "{given}: {error}");
        }
        let error = parse("2026-11-22 13:10", None).unwrap_err();
        assert!(error.contains("cannot be learnt"), "{error}");
    }

    #[test]
    fn counts_from_2000() {
        assert_eq!(text(from_postgres(0).unwrap()), "2000-01-01 00:00:00+00");
        assert_eq!(
            text(from_postgres(-1).unwrap()),
            "1999-12-31 23:59:59.999999+00"
        );
        assert_eq!(from_postgres(i64::MAX), None);
        assert_eq!(from_postgres(i64::MIN), None);
    }

    proptest! {
        #[test]
        fn there_and_back(microseconds in -60_000_000_000_000_000_i64..250_000_000_000_000_000) {
            let moment = from_postgres(microseconds).unwrap();
            prop_assert_eq!(parse(&text(moment), None), Ok(moment));
        }

        #[test]
        fn never_panics(given in "\\PC{0,40}") {
            let _ = parse(&given, None);
        }
    }
}
