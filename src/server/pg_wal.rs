//! What lies in the server's `pg_wal`.

use std::collections::BTreeSet;

use postgres::Client;

use crate::error::Result;
use crate::pg::changed_blocks::SummaryName;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::server::conflict;
use crate::server::connect::server_error;

/// A WAL summary of the server, PostgreSQL 17 and later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The WAL it is of.
    pub name: SummaryName,
    /// Bytes of the file.
    pub size: u64,
}

impl Summary {
    /// Its path below the data directory.
    pub fn path(&self) -> String {
        format!("pg_wal/summaries/{}", self.name.file_name())
    }
}

const SUMMARIES: &str = "\
SELECT name, (pg_stat_file('pg_wal/summaries/' || name, true)).size
  FROM pg_ls_dir('pg_wal/summaries', true, false) AS name";

/// The finished WAL summaries; none where the server makes none.
pub fn summaries(client: &mut Client) -> Result<Vec<Summary>> {
    let rows = conflict::repeated(|| client.query(SUMMARIES, &[]))
        .map_err(|error| server_error("list the server's WAL summaries", &error))?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let name: String = row.try_get(0).ok()?;
            let size: i64 = row.try_get(1).ok()?;
            Some(Summary {
                name: SummaryName::parse(&name)?,
                size: u64::try_from(size).ok()?,
            })
        })
        .collect())
}

/// The files of the WAL itself, segments to be used again later included.
pub fn files(client: &mut Client) -> Result<Vec<WalFileName>> {
    let rows = conflict::repeated(|| client.query("SELECT pg_ls_dir('pg_wal')", &[]))
        .map_err(|error| server_error("list the server's WAL", &error))?;
    Ok(rows
        .iter()
        .filter_map(|row| WalFileName::parse(row.try_get(0).ok()?))
        .collect())
}

/// The WAL segments, those to be used again later included.
pub fn segments(client: &mut Client, size: SegmentSize) -> Result<BTreeSet<SegmentName>> {
    Ok(files(client)?
        .iter()
        .filter(|file| file.kind() == WalFileKind::Segment)
        .filter_map(|file| file.segment_name(size))
        .collect())
}
