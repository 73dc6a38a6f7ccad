//! WAL segments: their size, numbers and file names
//! (access/xlog_internal.h, XLogFileName).

use std::fmt;

use crate::pg::lsn::{Lsn, Timeline};

/// The size of every WAL segment of a cluster, chosen by `initdb
/// --wal-segsize`: a power of two from 1 MiB to 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// A size in bytes, if it is one PostgreSQL allows (IsValidWalSegSize).
    pub fn new(bytes: u64) -> Option<SegmentSize> {
        let bytes = u32::try_from(bytes).ok()?;
        let allowed = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        allowed.then_some(SegmentSize(bytes))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }

    /// How many segments share the first sixteen digits of their names.
    fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// A segment's place among all segments: its start divided by their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The position of the segment's first byte.
    pub fn start(self, size: SegmentSize) -> Lsn {
        Lsn(self.0.saturating_mul(size.bytes()))
    }

    /// The segment that follows.
    #[must_use]
    pub fn next(self) -> SegmentNumber {
        SegmentNumber(self.0.saturating_add(1))
    }
}

impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a segment's file name says: one timeline's version of one segment.
/// Orders as the names do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline that the segment was written, or copied, for.
    pub timeline: Timeline,
    /// Which segment it is.
    pub number: SegmentNumber,
}

impl SegmentName {
    /// The name of the file: 24 digits, eight each for the timeline, for the
    /// upper half of the positions inside, and for the segment within that.
    pub fn file_name(self, size: SegmentSize) -> String {
        let per_log = size.segments_per_log();
        format!(
            "{:08X}{:08X}{:08X}",
            self.timeline.0,
            self.number.0 / per_log,
            self.number.0 % per_log
        )
    }

    /// Reads a file name; nothing if no segment of this size has that name.
    pub fn parse(file_name: &str, size: SegmentSize) -> Option<SegmentName> {
        if !is_segment_file_name(file_name) {
            return None;
        }
        let field = |from: usize| u32::from_str_radix(&file_name[from..from + 8], 16).ok();
        let (timeline, log, segment) = (field(0)?, field(8)?, field(16)?);
        let per_log = size.segments_per_log();
        if timeline == 0 || u64::from(segment) >= per_log {
            return None;
        }
        Some(SegmentName {
            timeline: Timeline(timeline),
            number: SegmentNumber(u64::from(log) * per_log + u64::from(segment)),
        })
    }
}

/// Whether a name has the form of a segment's, whatever their size
/// (IsXLogFileName): 24 upper-case hexadecimal digits.
pub fn is_segment_file_name(file_name: &str) -> bool {
    file_name.len() == 24
        && file_name
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn mebibytes(size: u64) -> SegmentSize {
        SegmentSize::new(size << 20).unwrap()
    }

    #[test]
    fn only_powers_of_two_from_1_mib_to_1_gib() {
        for bytes in [0, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
        for exponent in 20..=30 {
            assert_eq!(
                SegmentSize::new(1 << exponent).unwrap().bytes(),
                1 << exponent
            );
        }
    }

    #[test]
    fn names_as_pg_walfile_name_gives_them() {
        let position = Lsn(0x16_B374_D848);
        let name = |size| {
            SegmentName {
                timeline: Timeline(10),
                number: position.segment(size),
            }
            .file_name(size)
        };
        assert_eq!(name(mebibytes(16)), "0000000A00000016000000B3");
        assert_eq!(name(mebibytes(1)), "0000000A0000001600000B37");
        assert_eq!(name(mebibytes(1024)), "0000000A0000001600000002");
    }

    #[test]
    fn refuses_names_that_no_segment_has() {
        for name in [
            "",
            "00000001000000000000000",
            "0000000100000000000000010",
            "00000001000000000000000a",
            "000000010000000000000100",
            "000000000000000000000001",
            "00000001000000000000000G",
            "+00000010000000000000001",
            "00000001.history",
            "000000010000000000é00001",
        ] {
            assert_eq!(SegmentName::parse(name, mebibytes(16)), None, "{name}");
        }
        assert!(SegmentName::parse("000000010000000000000100", mebibytes(1)).is_some());
    }

    proptest! {
        #[test]
        fn there_and_back(timeline in 1_u32.., position: u64, exponent in 20_u32..=30) {
            let size = SegmentSize::new(1 << exponent).unwrap();
            let name = SegmentName { timeline: Timeline(timeline), number: Lsn(position).segment(size) };
            prop_assert_eq!(SegmentName::parse(&name.file_name(size), size), Some(name));
            prop_assert!(name.number.start(size) <= Lsn(position));
            prop_assert_eq!(name.number.start(size).segment(size), name.number);
        }

        #[test]
        fn never_panics(name in ".{20,28}") {
            let _ = SegmentName::parse(&name, mebibytes(16));
        }
    }
}
