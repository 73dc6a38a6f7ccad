//! `archive.info`: which cluster's WAL an archive holds.
//!
//! The first who stores WAL writes it, and it never changes: segments of two clusters, or of two
//! sizes, could have the same names. That it is there also tells an archive that is empty from a
//! disk that is not mounted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg::segment::SegmentSize;
use crate::pg::version::Major;
use crate::repository::backup_info::BackupInfo;
use crate::storage::Place;

/// The name of the file.
pub(super) const FILE: &str = "archive.info";

/// The format of an archive that this pgkeep reads and writes.
const FORMAT: u32 = 1;

/// What all WAL of one cluster has in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClusterIdentity {
    /// The cluster's identity.
    pub system_identifier: u64,
    /// The release that writes the WAL.
    pub major: Major,
    /// The size of its segments.
    pub segment_size: SegmentSize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Content {
    format: u32,
    system_identifier: u64,
    major_version: u32,
    wal_segment_size: u64,
}

impl ClusterIdentity {
    /// The cluster that a backup is of.
    pub fn of_backup(info: &BackupInfo) -> Option<ClusterIdentity> {
        Some(ClusterIdentity {
            system_identifier: info.system_identifier,
            major: Major::from_number(info.major_version)?,
            segment_size: SegmentSize::new(info.wal_segment_size)?,
        })
    }

    /// The file's text.
    pub(super) fn format(self) -> Result<String> {
        serde_yaml::to_string(&Content {
            format: FORMAT,
            system_identifier: self.system_identifier,
            major_version: self.major.number(),
            wal_segment_size: self.segment_size.bytes(),
        })
        .map_err(|error| Error::failed(format!("cannot make {FILE}: {error}")))
    }

    /// Reads the file; nothing where there is none.
    pub(super) fn read(place: &Place) -> Result<Option<ClusterIdentity>> {
        let Some(text) = place.read()? else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&text);
        ClusterIdentity::parse(&text).map(Some).map_err(|why| {
            Error::damage(format!("{place} is damaged: {why}")).hint(
                "it says which cluster's WAL lies beside it: remove it, and what is stored next writes it again",
            )
        })
    }

    fn parse(text: &str) -> std::result::Result<ClusterIdentity, String> {
        let content: Content = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        if content.format != FORMAT {
            return Err(format!(
                "it has format {}, and this pgkeep knows format {FORMAT}",
                content.format
            ));
        }
        Ok(ClusterIdentity {
            system_identifier: content.system_identifier,
            major: Major::from_number(content.major_version)
                .ok_or("its major version is unknown")?,
            segment_size: SegmentSize::new(content.wal_segment_size)
                .ok_or("its segment size is impossible")?,
        })
    }
}

impl fmt::Display for ClusterIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cluster {} (PostgreSQL {}, WAL segments of {} MiB)",
            self.system_identifier,
            self.major,
            self.segment_size.bytes() >> 20
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let identity = ClusterIdentity {
            system_identifier: u64::MAX,
            major: Major::V14,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        };
        let text = identity.format().unwrap();
        assert_eq!(ClusterIdentity::parse(&text), Ok(identity));
        assert!(ClusterIdentity::parse(&text.replace("Format: 1", "Format: 2")).is_err());
        assert!(ClusterIdentity::parse(&text[..text.len() / 2]).is_err());
        assert!(ClusterIdentity::parse("").is_err());
    }
}
