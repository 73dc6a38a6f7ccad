//! The WAL of a base backup that the server makes by itself: behind all files, one segment after the other.
//!
//! It is read as it comes. Where the backup ends the server tells only behind it, but so does the WAL itself: by the record in which
//! recovery sees the end of a primary's backup (access/transam/xlog.c, do_pg_backup_stop; xlogrecovery.c,
//! xlogrecovery_redo). What lies behind that record is none of this backup's.

use std::io::Read;

use crate::backup::Request;
use crate::backup::copy::arrived_damaged;
use crate::backup::end::End;
use crate::backup::hazards::Hazards;
use crate::backup::wal::segment::SegmentCopy;
use crate::backup::wal::unusable;
use crate::error::Result;
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentNumber};
use crate::pg::version::Major;
use crate::pg::wal::{Record, RecordReader, behind_page_header};
use crate::pg::wal_file::WalFileName;
use crate::rate::RateLimit;
use crate::repository::layout::BackupFolder;
use crate::repository::store::{Store, Stored};
use crate::server::facts::Facts;
use crate::server::pg_wal::HISTORY_LIMIT;

/// The WAL that has come so far.
pub(in crate::backup) struct ArrivingWal<'a> {
    request: &'a Request<'a>,
    facts: &'a Facts,
    folder: &'a BackupFolder,
    rate: &'a RateLimit,
    timeline: Timeline,
    /// The segment that comes next.
    next: SegmentNumber,
    modified: i64,
    store: Store<'a>,
    plain: Vec<u8>,
    records: RecordReader,
    known: Known,
}

/// What its records say, up to the backup's end.
struct Known {
    start: Lsn,
    hazards: Hazards,
    images: ChangedBlocks,
    /// Behind the record of the backup's end, once that has come.
    end: Option<Lsn>,
}

/// All of it.
pub(in crate::backup) struct ArrivedWal {
    pub(in crate::backup) stored: Stored,
    pub(in crate::backup) hazards: Hazards,
    /// The blocks that it has images of: replay writes them anew, whatever they hold.
    pub(in crate::backup) images: ChangedBlocks,
}

impl<'a> ArrivingWal<'a> {
    /// That of a primary's backup which begins at `start`.
    pub(in crate::backup) fn new(
        request: &'a Request<'a>,
        facts: &'a Facts,
        folder: &'a BackupFolder,
        rate: &'a RateLimit,
        start: Lsn,
        timeline: Timeline,
    ) -> Result<ArrivingWal<'a>> {
        let size = facts.control.wal_segment_size;
        Ok(ArrivingWal {
            request,
            facts,
            folder,
            rate,
            timeline,
            next: start.segment(size),
            modified: jiff::Timestamp::now().as_second(),
            store: Store::new(folder, request.coding)?,
            plain: Vec::new(),
            records: RecordReader::new(
                facts.version.major,
                facts.control.system_identifier,
                size,
                start,
            ),
            known: Known {
                start,
                hazards: Hazards::default(),
                images: ChangedBlocks::new(),
                end: None,
            },
        })
    }

    /// Takes a file of `pg_wal`: a segment, or the history of the timeline. All else is passed over. `is_over` ends a wait.
    pub(in crate::backup) fn take(
        &mut self,
        name: &str,
        content: &mut dyn Read,
        is_over: &dyn Fn() -> bool,
    ) -> Result<()> {
        let Some(file) = WalFileName::parse(name) else {
            return Ok(());
        };
        if file.timeline_of_history() == Some(self.timeline) {
            let mut history = Vec::new();
            let mut content = content.take(HISTORY_LIMIT);
            content.read_to_end(&mut history).map_err(arrived_damaged)?;
            let path = format!("pg_wal/{name}");
            return self.store.file(&path, self.modified, &history);
        }
        match file.segment_name(self.facts.control.wal_segment_size) {
            Some(segment) => self.segment(segment, content, is_over),
            None => Ok(()),
        }
    }

    fn segment(
        &mut self,
        name: SegmentName,
        content: &mut dyn Read,
        is_over: &dyn Fn() -> bool,
    ) -> Result<()> {
        let size = self.facts.control.wal_segment_size;
        let expected = SegmentName {
            timeline: self.timeline,
            number: self.next,
        };
        if name != expected {
            let (name, expected) = (name.file_name(size), expected.file_name(size));
            return Err(unusable(format!("{name} comes where {expected} should")));
        }
        self.next = name.number.next();
        let (facts, folder, coding) = (self.facts, self.folder, self.request.coding);
        let mut copy = SegmentCopy::begin(name, facts, folder, coding, &self.store)?;
        while let Some((_, length)) = copy.missing() {
            self.plain.clear();
            let mut slice = (&mut *content).take(length);
            slice
                .read_to_end(&mut self.plain)
                .map_err(arrived_damaged)?;
            if (self.plain.len() as u64) < length {
                let name = name.file_name(size);
                return Err(unusable(format!("{name} is cut short")));
            }
            self.rate.take(length, is_over);
            self.read_records()?;
            if let Some(end) = self.known.end {
                copy.ends_at(end);
            }
            copy.push(&self.plain, &mut self.store)?;
        }
        copy.finish(self.modified, &mut self.store)
    }

    /// Reads the records in `self.plain`.
    fn read_records(&mut self) -> Result<()> {
        let ArrivingWal { records, known, .. } = self;
        if known.end.is_some() {
            return Ok(());
        }
        let major = self.facts.version.major;
        let pushed = records.push(&self.plain, &mut |record| match known.end {
            None => known.record(major, record),
            Some(_) => Ok(()),
        });
        match known.end {
            // What follows may be left over from the segment's earlier use.
            Some(_) => Ok(()),
            None => pushed.map_err(|fault| unusable(fault.message())),
        }
    }

    /// All of it, where it ends as the server says.
    pub(in crate::backup) fn finish(self, end: End) -> Result<ArrivedWal> {
        let size = self.facts.control.wal_segment_size;
        let told = |lsn| behind_page_header(lsn, size);
        if end.timeline != self.timeline || self.known.end.map(told) != Some(told(end.lsn)) {
            return Err(unusable(format!(
                "no record of a backup's end ends at {}, where this backup does",
                end.lsn
            )));
        }
        Ok(ArrivedWal {
            stored: self.store.stored,
            hazards: self.known.hazards,
            images: self.known.images,
        })
    }
}

impl Known {
    fn record(&mut self, major: Major, record: &Record<'_>) -> Result<()> {
        self.hazards.record(major, record)?;
        let images = record.blocks.iter().filter(|block| block.has_image);
        images.for_each(|block| self.images.mark(block.fork, block.block));
        if record.ended_backup() == Some(self.start) {
            self.end = Some(record.end);
        }
        Ok(())
    }
}
