//! Where to begin and where to end, as it is said on the command line.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::config;
use crate::pg::lsn::Lsn;
use crate::pg::recovery::events::{RestorePoint, TransactionEnd};
use crate::pg::recovery::target::{Point, RecoveryTarget};
use crate::pg::timestamp;
use crate::pg::version::Major;
use crate::pg::wal::Record;
use crate::restore::position::{Position, Replay};

/// A point in WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// Transactions that ended then or later, or up to then.
    Time(Timestamp),
    /// Records that begin there or above, or up to there.
    Lsn(Lsn),
    /// The end of a transaction, by the lower half of its number.
    Xid(u32),
    /// A restore point.
    Name(String),
}

impl Bound {
    /// Reads a part of POSITION, `time=`, `lsn=`, `xid=` or `name=`, or its value alone; or how long ago. Times without a
    /// zone are in `local`. The error says what cannot be meant.
    pub fn parse(text: &str, now: Timestamp, local: Option<&TimeZone>) -> Result<Bound, String> {
        let text = text.trim();
        if text.contains('=') {
            return Bound::of_position(text, local);
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Bound::of_position(&format!("xid={text}"), local);
        }
        if let Ok(lsn) = Lsn::from_str(text) {
            return Ok(Bound::Lsn(lsn));
        }
        if let Some(ago) = config::parse_duration(text) {
            return now
                .checked_sub(ago)
                .map(Bound::Time)
                .map_err(|_| format!("{text} ago is before all time"));
        }
        match timestamp::parse(text, local) {
            Ok(time) => Ok(Bound::Time(time)),
            // What begins with a digit is meant to be a time.
            Err(why) if text.bytes().next().is_none_or(|byte| byte.is_ascii_digit()) => Err(why),
            Err(_) => Ok(Bound::Name(text.to_owned())),
        }
    }

    fn of_position(text: &str, local: Option<&TimeZone>) -> Result<Bound, String> {
        match Position::parse(text, local)? {
            Position::Primary(Replay::UpTo {
                target: RecoveryTarget::Name(name),
                ..
            }) => Ok(Bound::Name(name)),
            Position::Primary(Replay::UpTo {
                target: RecoveryTarget::Point { point, .. },
                ..
            }) => Ok(match point {
                Point::Xid(xid) => Bound::Xid(xid as u32),
                Point::Lsn(lsn) => Bound::Lsn(lsn),
                Point::Time(time) => Bound::Time(time),
            }),
            _ => Err(format!(
                "{text:?} is none of a time, an LSN, a transaction's number, a restore point or a duration such as 2H"
            )),
        }
    }

    /// Whether a record is the first that is there or behind.
    pub(super) fn is_reached(&self, record: &Record<'_>, major: Major) -> bool {
        match self {
            Bound::Lsn(lsn) => record.start >= *lsn,
            Bound::Time(time) => {
                TransactionEnd::of(record, major).is_some_and(|end| end.time >= *time)
                    || RestorePoint::of(record).is_some_and(|point| point.time >= *time)
            }
            Bound::Xid(_) | Bound::Name(_) => self.names(record, major),
        }
    }

    /// Whether a record is behind it.
    pub(super) fn is_passed(&self, record: &Record<'_>, major: Major) -> bool {
        match self {
            Bound::Lsn(lsn) => record.start > *lsn,
            Bound::Time(time) => {
                TransactionEnd::of(record, major).is_some_and(|end| end.time > *time)
            }
            Bound::Xid(_) | Bound::Name(_) => false,
        }
    }

    /// Whether it is named by this very record.
    pub(super) fn names(&self, record: &Record<'_>, major: Major) -> bool {
        match self {
            Bound::Lsn(_) | Bound::Time(_) => false,
            Bound::Xid(xid) => TransactionEnd::of(record, major).is_some_and(|end| end.xid == *xid),
            Bound::Name(name) => {
                RestorePoint::of(record).is_some_and(|point| point.name == name.as_bytes())
            }
        }
    }

    /// In words.
    pub(super) fn describe(&self) -> String {
        match self {
            Bound::Time(time) => format!("the time {}", timestamp::text(*time)),
            Bound::Lsn(lsn) => format!("the position {lsn}"),
            Bound::Xid(xid) => format!("the end of transaction {xid}"),
            Bound::Name(name) => format!("the restore point {name:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_bound_is_said_as_it_comes_to_mind() {
        let now: Timestamp = "2026-11-22T13:00:00Z".parse().unwrap();
        let parse = |text: &str| Bound::parse(text, now, Some(&TimeZone::UTC));
        let at = |text: &str| Ok(Bound::Time(text.parse().unwrap()));
        assert_eq!(parse("2026-11-22 02:58"), at("2026-11-22T02:58:00Z"));
        assert_eq!(
            parse("time=2026-11-22 02:58+01"),
            at("2026-11-22T01:58:00Z")
        );
        assert_eq!(parse("2H"), at("2026-11-22T11:00:00Z"));
        assert_eq!(parse("16/B374D848"), Ok(Bound::Lsn(Lsn(0x16_B374_D848))));
        assert_eq!(parse("lsn=0/1000"), Ok(Bound::Lsn(Lsn(0x1000))));
        assert_eq!(parse("4711"), Ok(Bound::Xid(4711)));
        assert_eq!(parse("xid=4711"), Ok(Bound::Xid(4711)));
        let upgrade = Bound::Name("before_upgrade".to_owned());
        assert_eq!(parse("before_upgrade"), Ok(upgrade.clone()));
        assert_eq!(parse("name=before_upgrade"), Ok(upgrade));
        assert_eq!(parse("name=2H"), Ok(Bound::Name("2H".to_owned())));
        for wrong in [
            "2026-13-22",
            "02.58 o'clock",
            "",
            "1",
            "current",
            "what=ever",
            "replica,timeline=1",
        ] {
            // A bare word may be a restore point's name.
            assert!(parse(wrong).is_err() || wrong == "current", "{wrong}");
        }
    }
}
