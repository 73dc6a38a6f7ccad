//! Where a backup ends: what recovery must reach before the cluster is consistent.
//!
//! A primary writes a record for that. Of a standby, the server says that its minimum recovery point is the
//! end (access/transam/xlog.c, do_pg_backup_stop). That one moves when pages are written, and with some
//! commits, but some records change files and leave it where it is: the one that drops a
//! database removes all its files (commands/dbcommands.c, dbase_redo), the one that gives a catalog a new file
//! rewrites `pg_filenode.map` (utils/cache/relmapper.c, relmap_redo), and the ones that truncate `pg_xact`
//! and the like remove segments (access/transam/clog.c, clog_redo). Recovery that ended before such a record
//! would find files missing. A standby that applies commits late (`recovery_min_apply_delay`) stands
//! for hours between a database's files and the commit that drops it.
//!
//! So the backup of a standby ends behind all that it had begun to apply when its last file had been read.

use postgres::Client;

use crate::error::{Error, Result};
use crate::pg::control::{CONTROL_FILE, set_min_recovery_point};
use crate::pg::history::TimelineHistory;
use crate::pg::label::BackupLabel;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::SegmentName;
use crate::pg::wal::{RecordReader, behind_page_header};
use crate::server::facts::Facts;
use crate::server::pg_wal;
use crate::server::reading::{FileReader, ROW_BYTES, Range};
use crate::server::session::Stopped;

/// The position that recovery must reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Behind the last record that is needed.
    pub(super) lsn: Lsn,
    /// The timeline of that record.
    pub(super) timeline: Timeline,
}

impl End {
    /// Makes a standby's control file say so: recovery takes it from there (access/transam/xlogrecovery.c, InitWalRecovery). A
    /// primary's WAL says it itself.
    pub(super) fn demand(self, label: &BackupLabel, control: &mut [u8]) -> Result<()> {
        if !label.from_standby {
            return Ok(());
        }
        set_min_recovery_point(control, self.lsn, self.timeline)
            .map_err(|fault| Error::damage(format!("{CONTROL_FILE} of the server: {fault}")))
    }
}

/// How far the search for a record goes back at first.
const FIRST_STEP: u64 = ROW_BYTES;
/// By how much more it goes back each time that was too little.
const STEP_FACTOR: u64 = 16;

/// Where the backup ends that has just been stopped.
pub(super) fn find(
    facts: &Facts,
    stopped: &Stopped,
    client: &mut Client,
    reader: &mut FileReader,
) -> Result<End> {
    if !stopped.label.from_standby {
        return Ok(End {
            lsn: stopped.lsn,
            timeline: stopped.label.start_timeline,
        });
    }
    let history = replayed_history(facts, stopped, client, reader)?;
    let lsn = match stopped.applied {
        Some(applied) if applied >= stopped.lsn => {
            let wal = AppliedWal {
                facts,
                history: &history,
                start: stopped.label.start_lsn,
                applied,
            };
            wal.begun(reader)?
        }
        _ => stopped.lsn,
    };
    Ok(End {
        lsn,
        timeline: history.timeline_of(Lsn(lsn.0.saturating_sub(1))),
    })
}

/// How the timeline came to be that a standby replays. It does not say which: it is the newest one that
/// has any segment, if that one descends from the one of its minimum recovery point.
fn replayed_history(
    facts: &Facts,
    stopped: &Stopped,
    client: &mut Client,
    reader: &mut FileReader,
) -> Result<TimelineHistory> {
    let (_, control) = reader.read_control_file()?;
    let known = control
        .min_recovery_point_timeline
        .max(stopped.label.start_timeline);
    let segments = pg_wal::segments(client, facts.control.wal_segment_size)?;
    let newest = segments.iter().map(|segment| segment.timeline).max();
    if let Some(newest) = newest.filter(|newest| *newest > known) {
        let (history, _) = pg_wal::history(newest, reader)?;
        if history.contains(known) {
            return Ok(history);
        }
    }
    Ok(pg_wal::history(known, reader)?.0)
}

/// The WAL around the position up to which a standby has applied it.
struct AppliedWal<'a> {
    facts: &'a Facts,
    history: &'a TimelineHistory,
    /// Where a record begins at the latest.
    start: Lsn,
    applied: Lsn,
}

impl AppliedWal<'_> {
    /// Where the record ends that may be being applied: the one behind the last that was, where there is one.
    fn begun(&self, reader: &mut FileReader) -> Result<Lsn> {
        let mut step = FIRST_STEP;
        loop {
            let from = Lsn(self.applied.0.saturating_sub(step)).max(self.start);
            if let Some(end) = self.read_from(from, reader)? {
                return Ok(end);
            }
            if from == self.start {
                return Err(Error::server(format!(
                    "no record of the standby's WAL ends at {}, up to where it has applied it",
                    self.applied
                ))
                .hint(
                    "start the backup again; if it happens again, the standby's pg_wal is damaged",
                ));
            }
            step = step.saturating_mul(STEP_FACTOR);
        }
    }

    /// The same by the records from a position on; nothing where none of them is the last one that was applied.
    ///
    /// What follows that may not have been written yet. Only a record that carries the position of
    /// the one before is not left over from a segment's earlier use, so that one is read too.
    fn read_from(&self, from: Lsn, reader: &mut FileReader) -> Result<Option<Lsn>> {
        let size = self.facts.control.wal_segment_size;
        let mut records = RecordReader::new(
            self.facts.version.major,
            self.facts.control.system_identifier,
            size,
            from,
        )
        .without_earlier_pages();
        let content = behind_page_header(self.applied, size);
        let mut end = (from == self.applied).then_some(self.applied);
        let mut next = None;
        loop {
            let Some(bytes) = self.read_row(records.awaited(), reader)? else {
                return Ok(end);
            };
            let pushed = records.push(&bytes, &mut |record| {
                if behind_page_header(record.end, size) == content {
                    end = Some(self.applied);
                } else if record.start >= content {
                    next.get_or_insert(record.end);
                }
                Ok(())
            });
            if next.is_some() || pushed.is_err() {
                return Ok(end.map(|end| next.unwrap_or(end)));
            }
        }
    }

    /// A row of bytes, or as many as the segment has; nothing where there is no such segment.
    fn read_row(&self, position: Lsn, reader: &mut FileReader) -> Result<Option<Vec<u8>>> {
        let size = self.facts.control.wal_segment_size;
        let number = position.segment(size);
        let behind = number.next().start(size);
        let name = SegmentName {
            timeline: self.history.timeline_of(Lsn(behind.0 - 1)),
            number,
        };
        let path = format!("pg_wal/{}", name.file_name(size));
        let mut row = None;
        let range = Range {
            path: &path,
            offset: position.offset_in_segment(size),
            length: ROW_BYTES.min(behind.0 - position.0),
        };
        reader.read(&[range], |_, bytes| {
            row = bytes.filter(|bytes| !bytes.is_empty()).map(<[u8]>::to_vec);
            Ok(())
        })?;
        Ok(row)
    }
}
