//! Gaps of an archive in words for the operator.

use std::fmt;

use crate::pg::segment::SegmentSize;
use crate::repository::wal_archive::Gap;

/// A gap in the names of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedGap {
    /// The first segment that is missing.
    pub first: String,
    /// The last one.
    pub last: String,
    /// How many are missing.
    pub segments: u64,
}

impl NamedGap {
    pub(super) fn all(gaps: &[Gap], size: SegmentSize) -> Vec<NamedGap> {
        gaps.iter()
            .map(|gap| NamedGap {
                first: gap.first.file_name(size),
                last: gap.last.file_name(size),
                segments: gap.segments(),
            })
            .collect()
    }
}

impl fmt::Display for NamedGap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.segments {
            1 => f.write_str(&self.first),
            count => write!(f, "{} to {} ({count} segments)", self.first, self.last),
        }
    }
}
