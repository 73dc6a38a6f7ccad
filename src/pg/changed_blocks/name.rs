//! The names of WAL summary files (backup/walsummary.c, IsWalSummaryFilename).

use crate::pg::lsn::{Lsn, Timeline};

const SUFFIX: &str = ".summary";

/// Which stretch of WAL a summary is of. Orders as the names do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SummaryName {
    /// The timeline that the stretch is on.
    pub timeline: Timeline,
    /// Where the first record begins.
    pub start: Lsn,
    /// Where the last record ends.
    pub end: Lsn,
}

impl SummaryName {
    /// The name of the file: eight hexadecimal digits for the timeline, sixteen
    /// each for the start and the end, and `.summary`.
    pub fn file_name(self) -> String {
        format!(
            "{:08X}{:016X}{:016X}{SUFFIX}",
            self.timeline.0, self.start.0, self.end.0
        )
    }

    /// Reads a file name; nothing if it is no summary's.
    pub fn parse(file_name: &str) -> Option<SummaryName> {
        let digits = file_name.strip_suffix(SUFFIX)?;
        let is_digit = |digit| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
        if digits.len() != 40 || !digits.bytes().all(is_digit) {
            return None;
        }
        let field = |from, to| u64::from_str_radix(&digits[from..to], 16).ok();
        let name = SummaryName {
            timeline: Timeline(u32::try_from(field(0, 8)?).ok()?),
            start: Lsn(field(8, 24)?),
            end: Lsn(field(24, 40)?),
        };
        (name.timeline.0 > 0 && name.start < name.end).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_as_postgresql_does() {
        let name = SummaryName {
            timeline: Timeline(1),
            start: Lsn(0x010A_0028),
            end: Lsn(0x2_0500_0100),
        };
        let file_name = "0000000100000000010A00280000000205000100.summary";
        assert_eq!(name.file_name(), file_name);
        assert_eq!(SummaryName::parse(file_name), Some(name));
    }

    #[test]
    fn refuses_what_is_no_summary() {
        for name in [
            "",
            ".summary",
            "temp.summary",
            "0000000100000000010A00280000000205000100",
            "0000000100000000010A00280000000205000100.summary.zstd",
            "0000000100000000010a00280000000205000100.summary",
            "000000010000000001+A00280000000205000100.summary",
            "0000000000000000010A00280000000205000100.summary",
            "0000000100000000010A002800000000010A0028.summary",
            "0000000100000002010A00280000000005000100.summary",
            "000000010000000001é00280000000205000100.summary",
        ] {
            assert_eq!(SummaryName::parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn there_and_back(timeline in 1_u32.., start: u64, length in 1_u64..) {
            let end = Lsn(start.saturating_add(length));
            let name = SummaryName { timeline: Timeline(timeline), start: Lsn(start), end };
            let parsed = SummaryName::parse(&name.file_name());
            prop_assert_eq!(parsed, (name.start < end).then_some(name));
        }

        #[test]
        fn never_panics(name in ".{30,50}") {
            let _ = SummaryName::parse(&name);
        }
    }
}
