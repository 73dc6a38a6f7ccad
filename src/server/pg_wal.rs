//! What lies in the server's `pg_wal`.

use std::collections::BTreeSet;

use postgres::Client;

use crate::error::Result;
use crate::pg::changed_blocks::SummaryName;
use crate::pg::history::{self, TimelineHistory};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::server::conflict;
use crate::server::connect::server_error;
use crate::server::parse_lsn;
use crate::server::reading::FileReader;

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
    let rows = conflict::repeated(|| client.query_typed(SUMMARIES, &[]))
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
    let rows = conflict::repeated(|| client.query_typed("SELECT pg_ls_dir('pg_wal')", &[]))
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

/// Up to where the WAL of a primary is on its disk.
pub fn flushed(client: &mut Client) -> Result<Lsn> {
    let failed = |error| server_error("ask how much WAL is flushed", &error);
    let row = client.query_typed_one("SELECT pg_current_wal_flush_lsn()::text", &[]);
    let lsn: String = row.and_then(|row| row.try_get(0)).map_err(failed)?;
    parse_lsn(&lsn)
}

/// The file that says how a timeline came to be.
pub struct HistoryFile {
    /// Its name.
    pub name: String,
    /// Byte for byte.
    pub content: Vec<u8>,
}

/// A timeline history is a line a switch; this is more than any has.
pub const HISTORY_LIMIT: u64 = 1 << 20;

/// How a timeline came to be. The first has no history file; neither has one that pg_resetwal or pg_upgrade began.
pub fn history(
    timeline: Timeline,
    reader: &mut FileReader,
) -> Result<(TimelineHistory, Option<HistoryFile>)> {
    let name = history::file_name(timeline);
    match reader.read_small_file(&format!("pg_wal/{name}"), HISTORY_LIMIT)? {
        None => Ok((TimelineHistory::without_ancestors(timeline), None)),
        Some(content) => {
            let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))?;
            Ok((history, Some(HistoryFile { name, content })))
        }
    }
}
