//! How far a server's WAL reaches.

use postgres::{Client, Row};

use crate::error::{Error, Result};
use crate::pg::lsn::{Lsn, Timeline};
use crate::server::conflict;
use crate::server::connect::server_error;

/// Up to where the WAL in a server's `pg_wal` is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalEnd {
    /// A primary has flushed what it wrote on its timeline.
    Flushed {
        /// The timeline that it writes on.
        timeline: Timeline,
        /// The position behind the last byte.
        end: Lsn,
    },
    /// A standby has replayed as much, and it may have received more.
    Replayed {
        /// The position behind the last record.
        end: Lsn,
        /// What it has received and flushed, and on which timeline, if it streams now and the role
        /// may see it (`pg_read_all_stats`).
        received: Option<(Timeline, Lsn)>,
    },
}

/// Each branch of a CASE is evaluated only where it applies: most functions fail on the other kind of server.
const END: &str = "\
SELECT in_recovery,
       CASE WHEN in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text,
       CASE WHEN in_recovery THEN NULL ELSE pg_walfile_name(pg_current_wal_flush_lsn()) END
  FROM (SELECT pg_is_in_recovery() AS in_recovery) AS server";

const RECEIVED: &str = "\
SELECT received_tli, flushed_lsn::text FROM pg_stat_wal_receiver \
 WHERE received_tli IS NOT NULL AND flushed_lsn IS NOT NULL";

/// Asks the server.
pub fn wal_end(client: &mut Client) -> Result<WalEnd> {
    let failed = |error| server_error("ask how far the WAL reaches", &error);
    let row = conflict::repeated(|| client.query_typed_one(END, &[])).map_err(failed)?;
    let in_recovery: bool = row.try_get(0).map_err(failed)?;
    // A standby that has replayed nothing yet has no position.
    let end = position(&row, 1)?.unwrap_or_default();
    if !in_recovery {
        let name: String = row.try_get(2).map_err(failed)?;
        return Ok(WalEnd::Flushed {
            timeline: timeline_of(&name)?,
            end,
        });
    }
    let received =
        match conflict::repeated(|| client.query_typed_opt(RECEIVED, &[])).map_err(failed)? {
            None => None,
            Some(row) => {
                let timeline: i32 = row.try_get(0).map_err(failed)?;
                let timeline = u32::try_from(timeline).map(Timeline).ok();
                timeline.zip(position(&row, 1)?)
            }
        };
    Ok(WalEnd::Replayed { end, received })
}

fn position(row: &Row, column: usize) -> Result<Option<Lsn>> {
    let text: Option<String> = row
        .try_get(column)
        .map_err(|error| server_error("ask how far the WAL reaches", &error))?;
    text.map(|text| text.parse()).transpose()
}

/// A segment's name begins with its timeline, whatever the size of segments.
fn timeline_of(name: &str) -> Result<Timeline> {
    name.get(..8)
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .map(Timeline)
        .ok_or_else(|| Error::server(format!("the server names a WAL segment {name:?}")))
}
