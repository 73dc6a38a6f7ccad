//! Where recovery stops (access/transam/xlogrecovery.c, recoveryStopsBefore and
//! recoveryStopsAfter).
//!
//! The server looks at each record in order and stops at the first that fits; it knows neither
//! what is behind nor whether the cluster is consistent there. A target that no record fits ends
//! in "recovery ended before configured recovery target was reached".

use std::fmt;

use jiff::Timestamp;

use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::recovery::events::{RestorePoint, TransactionEnd};
use crate::pg::timestamp;
use crate::pg::version::Major;
use crate::pg::wal::Record;

/// `recovery_target_name`, or one of those that can be inclusive or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryTarget {
    /// The first restore point of this name.
    Name(String),
    /// A point in WAL.
    Point {
        /// Which.
        point: Point,
        /// Whether what is there is replayed too.
        inclusive: bool,
    },
}

/// What tells a point in WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// A transaction's end. The upper half of the number, its epoch, does not matter.
    Xid(u64),
    /// The first record that begins there or above.
    Lsn(Lsn),
    /// The first transaction that ended later; exclusively, then or later.
    Time(Timestamp),
}

/// Where recovery stops, seen from the record that makes it stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Without replaying it.
    Before,
    /// Once it is replayed.
    After,
}

impl RecoveryTarget {
    /// Whether recovery stops at a record.
    pub fn stops_at(&self, record: &Record<'_>, major: Major) -> Option<Stop> {
        let (point, inclusive) = match self {
            RecoveryTarget::Name(name) => {
                let found = RestorePoint::of(record)?;
                return (found.name == name.as_bytes()).then_some(Stop::After);
            }
            RecoveryTarget::Point { point, inclusive } => (point, *inclusive),
        };
        let (is_there, stop) = match point {
            Point::Lsn(lsn) => (record.start >= *lsn, after_if(inclusive)),
            Point::Xid(xid) => (
                TransactionEnd::of(record, major)?.xid == *xid as u32,
                after_if(inclusive),
            ),
            Point::Time(time) => {
                let ended = TransactionEnd::of(record, major)?.time;
                (is_past(ended, *time, inclusive), Stop::Before)
            }
        };
        is_there.then_some(stop)
    }

    /// Whether what is there is replayed too, where there is a choice.
    pub fn is_inclusive(&self) -> Option<bool> {
        match self {
            RecoveryTarget::Name(_) => None,
            RecoveryTarget::Point { inclusive, .. } => Some(*inclusive),
        }
    }

    /// The setting that asks for it, and its value.
    pub fn setting(&self) -> (&'static str, String) {
        match self {
            RecoveryTarget::Name(name) => ("recovery_target_name", name.clone()),
            RecoveryTarget::Point { point, .. } => match point {
                Point::Xid(xid) => ("recovery_target_xid", xid.to_string()),
                Point::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
                Point::Time(time) => ("recovery_target_time", timestamp::text(*time)),
            },
        }
    }
}

/// `recovery_target_timeline`: which way to go where timelines part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetTimeline {
    /// To the newest timeline that descends from the backup's.
    #[default]
    Latest,
    /// Along the timeline that the backup ended on.
    Current,
    /// To this one, of whose history the backup's must be a part.
    Number(Timeline),
}

/// `recovery_target_action`: what the server does when it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TargetAction {
    /// It stays read-only, so that somebody can look whether it is the right place.
    #[default]
    Pause,
    /// It becomes a primary.
    Promote,
    /// It shuts down.
    Shutdown,
}

impl TargetAction {
    /// Every action.
    pub const ALL: [TargetAction; 3] = [
        TargetAction::Pause,
        TargetAction::Promote,
        TargetAction::Shutdown,
    ];

    /// Its name as a setting.
    pub fn name(self) -> &'static str {
        match self {
            TargetAction::Pause => "pause",
            TargetAction::Promote => "promote",
            TargetAction::Shutdown => "shutdown",
        }
    }
}

/// Whether a transaction's end makes recovery stop that goes to a time. Several may have ended at the same
/// time: inclusive means all of them.
pub fn is_past(ended: Timestamp, time: Timestamp, inclusive: bool) -> bool {
    ended > time || !inclusive && ended == time
}

fn after_if(inclusive: bool) -> Stop {
    if inclusive { Stop::After } else { Stop::Before }
}

impl fmt::Display for RecoveryTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecoveryTarget::Name(name) => write!(f, "the restore point {name:?}"),
            RecoveryTarget::Point { point, .. } => match point {
                Point::Xid(xid) => write!(f, "the end of transaction {xid}"),
                Point::Lsn(lsn) => write!(f, "the position {lsn}"),
                Point::Time(time) => write!(f, "the time {}", timestamp::text(*time)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::recovery::events::tests::record;
    use crate::pg::wal::ResourceManager;

    fn point(point: Point, inclusive: bool) -> RecoveryTarget {
        RecoveryTarget::Point { point, inclusive }
    }

    #[test]
    fn stops_as_the_server_does() {
        let second: i64 = 1_000_000;
        let commit_time = second.to_le_bytes();
        let commit = record(ResourceManager::TRANSACTION, 0, 0x1000, &commit_time);
        let at = |seconds| Point::Time(timestamp::from_postgres(seconds * second).unwrap());
        for (target, expected) in [
            (point(Point::Xid(700), true), Some(Stop::After)),
            (point(Point::Xid(700), false), Some(Stop::Before)),
            (point(Point::Xid(700 + (3 << 32)), true), Some(Stop::After)),
            (point(Point::Xid(701), true), None),
            (point(at(0), true), Some(Stop::Before)),
            (point(at(1), true), None),
            (point(at(1), false), Some(Stop::Before)),
            (point(at(2), false), None),
            (point(Point::Lsn(Lsn(0xFFF)), true), Some(Stop::After)),
            (point(Point::Lsn(Lsn(0x1000)), true), Some(Stop::After)),
            (point(Point::Lsn(Lsn(0x1000)), false), Some(Stop::Before)),
            (point(Point::Lsn(Lsn(0x1001)), true), None),
            (RecoveryTarget::Name("x".to_owned()), None),
        ] {
            let stop = target.stops_at(&commit, Major::V17);
            assert_eq!(stop, expected, "{target:?}");
        }
        let mut data = [0; 72];
        data[8] = b'x';
        let restore_point = record(ResourceManager::XLOG, 0x70, 0x1000, &data);
        for (name, expected) in [("x", Some(Stop::After)), ("xy", None), ("", None)] {
            let target = RecoveryTarget::Name(name.to_owned());
            assert_eq!(
                target.stops_at(&restore_point, Major::V17),
                expected,
                "{name}"
            );
        }
        // Only transactions have a time.
        assert_eq!(
            point(at(-1), true).stops_at(&restore_point, Major::V17),
            None
        );
    }
}
