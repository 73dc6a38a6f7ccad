//! The names of the files in `pg_wal` that PostgreSQL archives
//! (access/xlog_internal.h):
//!
//! ```text
//! 000000010000000000000005                    a segment
//! 000000010000000000000005.partial            the last one of a timeline that was left inside it
//! 00000002.history                            how a timeline came to be
//! 000000010000000000000005.00000028.backup    where a backup began and ended
//! ```

use std::fmt;

use crate::pg::history::timeline_in_file_name;
use crate::pg::lsn::Timeline;
use crate::pg::segment::{SegmentName, SegmentSize, is_segment_file_name};

/// What a file of the WAL is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileKind {
    /// A whole segment (IsXLogFileName).
    Segment,
    /// A segment that is not complete (IsPartialXLogFileName).
    Partial,
    /// A timeline's history (IsTLHistoryFileName).
    History,
    /// What `pg_backup_stop` notes of a backup (IsBackupHistoryFileName).
    BackupHistory,
}

/// The name of a file of the WAL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalFileName {
    name: String,
    kind: WalFileKind,
}

const SEGMENT_DIGITS: usize = 24;

impl WalFileName {
    /// Reads a name; nothing if no file of the WAL has it.
    pub fn parse(name: &str) -> Option<WalFileName> {
        let kind = if timeline_in_file_name(name).is_some() {
            WalFileKind::History
        } else {
            let (segment, rest) = name.split_at_checked(SEGMENT_DIGITS)?;
            if !is_segment_file_name(segment) || segment.starts_with("00000000") {
                return None;
            }
            match rest {
                "" => WalFileKind::Segment,
                ".partial" => WalFileKind::Partial,
                _ if is_backup_suffix(rest) => WalFileKind::BackupHistory,
                _ => return None,
            }
        };
        Some(WalFileName {
            name: name.to_owned(),
            kind,
        })
    }

    /// The name of a whole segment.
    pub fn segment(segment: SegmentName, size: SegmentSize) -> WalFileName {
        WalFileName {
            name: segment.file_name(size),
            kind: WalFileKind::Segment,
        }
    }

    /// The name of a segment that is not complete.
    pub fn partial(segment: SegmentName, size: SegmentSize) -> WalFileName {
        WalFileName {
            name: format!("{}.partial", segment.file_name(size)),
            kind: WalFileKind::Partial,
        }
    }

    /// The name of a timeline's history.
    pub fn history(timeline: Timeline) -> WalFileName {
        WalFileName {
            name: crate::pg::history::file_name(timeline),
            kind: WalFileKind::History,
        }
    }

    /// What it is.
    pub fn kind(&self) -> WalFileKind {
        self.kind
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The timeline whose history it is.
    pub fn timeline_of_history(&self) -> Option<Timeline> {
        timeline_in_file_name(&self.name)
    }

    /// The segment it is, whole or not, or that a backup began in; nothing for a history and
    /// for a name that no segment of this size has.
    pub fn segment_name(&self, size: SegmentSize) -> Option<SegmentName> {
        SegmentName::parse(self.name.get(..SEGMENT_DIGITS)?, size)
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `.00000028.backup`: where in the segment the backup began.
fn is_backup_suffix(rest: &str) -> bool {
    let digits = rest
        .strip_prefix('.')
        .and_then(|rest| rest.strip_suffix(".backup"));
    digits.is_some_and(|digits| {
        digits.len() == 8
            && digits
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pg::segment::SegmentNumber;

    #[test]
    fn tells_what_a_file_is() {
        for (name, kind) in [
            ("000000010000000000000005", WalFileKind::Segment),
            ("000000010000000000000005.partial", WalFileKind::Partial),
            ("00000002.history", WalFileKind::History),
            (
                "000000010000000000000005.00000028.backup",
                WalFileKind::BackupHistory,
            ),
        ] {
            let parsed = WalFileName::parse(name).unwrap();
            assert_eq!((parsed.as_str(), parsed.kind()), (name, kind));
        }
    }

    #[test]
    fn refuses_what_is_no_wal() {
        for name in [
            "",
            "archive_status",
            "RECOVERYXLOG",
            "RECOVERYHISTORY",
            "00000000.history",
            "000000000000000000000005",
            "00000001000000000000000a",
            "000000010000000000000005.zstd",
            "000000010000000000000005.partial.tmp",
            "000000010000000000000005.0000028.backup",
            "000000010000000000000005.0000002x.backup",
            "../00000001000000000000005",
            "00000001000000000000000é",
        ] {
            assert_eq!(WalFileName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn knows_its_segment() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let segment = SegmentName {
            timeline: Timeline(1),
            number: SegmentNumber(5),
        };
        for name in [
            WalFileName::segment(segment, size),
            WalFileName::partial(segment, size),
        ] {
            assert_eq!(name.segment_name(size), Some(segment));
            assert_eq!(WalFileName::parse(name.as_str()), Some(name));
        }
        let history = WalFileName::history(Timeline(2));
        assert_eq!(history.segment_name(size), None);
        assert_eq!(history.timeline_of_history(), Some(Timeline(2)));
        assert_eq!(WalFileName::parse(history.as_str()), Some(history));
    }

    proptest! {
        #[test]
        fn never_panics(name in "\\PC{0,45}") {
            let _ = WalFileName::parse(&name);
        }
    }
}
