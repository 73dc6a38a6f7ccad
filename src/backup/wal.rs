//! The WAL a backup needs to become consistent.

mod archive;
pub(super) mod arriving;
pub(super) mod following;
mod segment;

use std::fmt::Display;
use std::sync::{Mutex, PoisonError};

use crate::backup::Request;
use crate::backup::copy::Copied;
use crate::backup::end::End;
use crate::backup::hazards::Hazards;
use crate::backup::reserved::removed;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::history::WalRange;
use crate::pg::label::BackupLabel;
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::wal::{RecordReader, behind_page_header};
use crate::rate::RateLimit;
use crate::repository::layout::BackupFolder;
use crate::repository::store::Store;
use crate::server::facts::Facts;
use crate::server::pg_wal::{self, HistoryFile};
use crate::server::reading::{FileReader, ROW_BYTES, ranges};

use archive::Archive;
use following::Followed;
use segment::SegmentCopy;

/// WAL from the backup's start to its end.
pub(super) struct NeededWal<'a> {
    facts: &'a Facts,
    start: Lsn,
    /// Bytes of WAL by timeline, the newest first.
    pub(super) ranges: Vec<WalRange>,
    /// Where the backup ends.
    pub(super) end: End,
    segments: Vec<Segment>,
    history: Option<HistoryFile>,
    /// Whether a standby gave it. It does not switch segments: what lies behind the end of the last one is
    /// unfinished, and not a part of this backup.
    from_standby: bool,
    modified: i64,
}

/// A segment, and where its WAL ends as far as this backup goes.
#[derive(Debug, Clone, Copy)]
struct Segment {
    name: SegmentName,
    end: Lsn,
    /// Whether recovery reads it: the next timeline's may take its place.
    is_read: bool,
}

/// Which WAL that is, now that the backup has stopped.
pub(super) fn needed<'a>(
    facts: &'a Facts,
    label: &BackupLabel,
    end: End,
    reader: &mut FileReader,
) -> Result<NeededWal<'a>> {
    let size = facts.control.wal_segment_size;
    let (history, history_file) = pg_wal::history(end.timeline, reader)?;
    let ranges = history.ranges(label.start_lsn, end.lsn, end.timeline)?;
    let mut segments = left_behind(&ranges, size, reader)?;
    let first = label.start_lsn.segment(size).0;
    let last = end.lsn.previous_segment(size).0.max(first);
    segments.extend((first..=last).map(SegmentNumber).map(|number| {
        let behind = number.next().start(size).min(end.lsn);
        let timeline = history.timeline_of(Lsn(behind.0.saturating_sub(1)));
        Segment {
            name: SegmentName { timeline, number },
            end: end.lsn,
            is_read: true,
        }
    }));
    Ok(NeededWal {
        facts,
        start: label.start_lsn,
        ranges,
        end,
        segments,
        history: history_file,
        from_standby: label.from_standby,
        modified: jiff::Timestamp::now().as_second(),
    })
}

/// Where a standby followed its primary to another timeline, recovery reads that one's segment, which begins with
/// a copy of the old one's. pg_verifybackup wants the old one's too, so it is taken where it is still there.
fn left_behind(
    ranges: &[WalRange],
    size: SegmentSize,
    reader: &mut FileReader,
) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for range in ranges.iter().skip(1) {
        let name = SegmentName {
            timeline: range.timeline,
            number: range.end.previous_segment(size),
        };
        let path = format!("pg_wal/{}", name.file_name(size));
        let is_switched_inside = range.end.offset_in_segment(size) > 0;
        if is_switched_inside && reader.read_small_file(&path, 1)?.is_some() {
            segments.push(Segment {
                name,
                end: range.end,
                is_read: false,
            });
        }
    }
    Ok(segments)
}

impl NeededWal<'_> {
    fn size(&self) -> SegmentSize {
        self.facts.control.wal_segment_size
    }

    /// Reads the records that begin in a segment, or behind the backup's start if that is in there.
    fn records_of(&self, segment: Segment) -> RecordReader {
        let Facts {
            version, control, ..
        } = self.facts;
        let from = self.start.max(segment.name.number.start(self.size()));
        RecordReader::new(version.major, control.system_identifier, self.size(), from)
    }

    /// The segment with a number that recovery reads.
    fn segment(&self, number: SegmentNumber) -> Result<&Segment> {
        let mut read = self.segments.iter().filter(|segment| segment.is_read);
        read.find(|segment| segment.name.number == number)
            .ok_or_else(|| unusable("it ends in the midst of a record"))
    }
}

fn unusable(fault: impl Display) -> Error {
    Error::server(format!("the server's WAL cannot be used: {fault}"))
        .hint("start the backup again; if it happens again, the server's pg_wal is damaged")
}

/// Stores the history file and the segments in `data/pg_wal` that were not when files were copied. Gives what this WAL says
/// of databases and tablespaces.
pub(super) fn copy(
    needed: &NeededWal<'_>,
    copied: &mut Copied,
    readers: &mut [FileReader],
    folder: &BackupFolder,
    request: &Request<'_>,
    rate: &RateLimit,
    interrupt: &Interrupt,
) -> Result<Hazards> {
    let Copied {
        stored, followed, ..
    } = copied;
    let mut hazards = std::mem::take(&mut followed.hazards);
    let first = followed.begun.as_ref().map(|(copy, _)| copy.name.number);
    let mut missing = needed.segments.clone();
    missing.retain(|segment| first.is_none_or(|first| first <= segment.name.number));
    let followed = Mutex::new(followed);
    let mut workers = readers
        .iter_mut()
        .map(|reader| {
            Ok(Worker {
                needed,
                followed: &followed,
                reader,
                folder,
                rate,
                store: Store::new(folder, request.coding)?,
                hazards: Hazards::default(),
                request,
            })
        })
        .collect::<Result<Vec<Worker<'_>>>>()?;
    parallel::run(
        &mut workers,
        &missing,
        interrupt,
        |worker, segment, stop| worker.copy_segment(*segment, stop),
        || Ok(()),
    )?;
    if let (Some(history), Some(worker)) = (&needed.history, workers.first_mut()) {
        let path = format!("pg_wal/{}", history.name);
        worker
            .store
            .file(&path, needed.modified, &history.content)?;
    }
    for worker in workers {
        stored.append(worker.store.stored);
        hazards.add(worker.hazards);
    }
    Ok(hazards)
}

struct Worker<'a> {
    needed: &'a NeededWal<'a>,
    followed: &'a Mutex<&'a mut Followed>,
    reader: &'a mut FileReader,
    folder: &'a BackupFolder,
    rate: &'a RateLimit,
    store: Store<'a>,
    hazards: Hazards,
    request: &'a Request<'a>,
}

impl Worker<'_> {
    fn copy_segment(&mut self, segment: Segment, stop: &Stop<'_>) -> Result<()> {
        let needed = self.needed;
        let (mut copy, mut records) = self.begin(segment)?;
        copy.ends_at(segment.end);
        let start = segment.name.number.start(needed.size());
        let mut archive = Archive::of(self.request);
        let mut plain = Vec::new();
        while let Some((offset, length)) = copy.missing() {
            self.read_slice(segment.name, offset, length, &mut plain, &mut archive, stop)?;
            if needed.from_standby {
                zero_from(&mut plain, segment.end.0.saturating_sub(start.0 + offset));
            }
            if let Some(records) = &mut records {
                self.read_records(records, segment, &plain)?;
            }
            copy.push(&plain, &mut self.store)?;
        }
        copy.finish(needed.modified, &mut self.store)?;
        records.map_or(Ok(()), |records| self.read_on(records, segment, stop))
    }

    /// The one that was begun when files were copied, or a new one; with the reader of its records.
    fn begin(&self, segment: Segment) -> Result<(SegmentCopy, Option<RecordReader>)> {
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = followed
            .begun
            .take_if(|(copy, _)| copy.name == segment.name);
        if let Some((copy, records)) = begun {
            return Ok((copy, Some(records)));
        }
        let Worker {
            needed,
            folder,
            request,
            ..
        } = *self;
        let copy = SegmentCopy::begin(
            segment.name,
            needed.facts,
            folder,
            request.coding,
            &self.store,
        )?;
        let records = segment.is_read.then(|| needed.records_of(segment));
        Ok((copy, records))
    }

    /// Reads the records that begin in a segment, in the next bytes of the WAL.
    fn read_records(
        &mut self,
        records: &mut RecordReader,
        segment: Segment,
        plain: &[u8],
    ) -> Result<()> {
        let NeededWal { facts, .. } = *self.needed;
        let (major, size) = (facts.version.major, facts.control.wal_segment_size);
        let left = segment.end.0.saturating_sub(records.awaited().0);
        let plain = &plain[..plain.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        let behind = segment.name.number.next().start(size);
        records
            .push(plain, &mut |record| match record.start < behind {
                true => self.hazards.record(major, record),
                false => Ok(()),
            })
            .map_err(|fault| unusable(fault.message()))
    }

    /// The last record that begins in a segment may end in one behind it.
    fn read_on(
        &mut self,
        mut records: RecordReader,
        segment: Segment,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let size = self.needed.size();
        let behind = segment.name.number.next().start(size);
        let (mut plain, mut archive) = (Vec::new(), Archive::of(self.request));
        while records.position() < behind && records.awaited() < segment.end {
            let awaited = records.awaited();
            let next = self.needed.segment(awaited.segment(size))?;
            self.read_slice(
                next.name,
                awaited.offset_in_segment(size),
                ROW_BYTES,
                &mut plain,
                &mut archive,
                stop,
            )?;
            self.read_records(&mut records, segment, &plain)?;
        }
        if records.awaited() == segment.end
            && behind_page_header(records.position(), size) != behind_page_header(segment.end, size)
        {
            let end = segment.end;
            return Err(unusable(format!(
                "no record ends at {end}, where the backup does"
            )));
        }
        Ok(())
    }

    /// Reads a part of a segment, from the server or, where that has removed it, from the archive.
    fn read_slice(
        &mut self,
        name: SegmentName,
        offset: u64,
        length: u64,
        plain: &mut Vec<u8>,
        archive: &mut Archive<'_>,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let size = self.needed.size();
        plain.clear();
        let path = format!("pg_wal/{}", name.file_name(size));
        let mut is_held = !archive.reads(name);
        if is_held {
            let wanted: Vec<_> = ranges(&path, offset, length).collect();
            self.reader.read(&wanted, |_, bytes| {
                stop.check()?;
                let Some(bytes) = bytes else {
                    is_held = false;
                    return Ok(());
                };
                plain.extend_from_slice(bytes);
                self.rate.take(bytes.len() as u64, || stop.is_set());
                Ok(())
            })?;
        }
        if is_held || archive.read(name, size, offset, length, plain)? {
            return Ok(());
        }
        Err(removed(&path))
    }
}

fn zero_from(plain: &mut [u8], position: u64) {
    if let Some(tail) = usize::try_from(position)
        .ok()
        .and_then(|position| plain.get_mut(position..))
    {
        tail.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_behind_the_position_is_zeroed() {
        let mut plain = [1; 4];
        zero_from(&mut plain, 9);
        assert_eq!(plain, [1; 4]);
        zero_from(&mut plain, 2);
        assert_eq!(plain, [1, 1, 0, 0]);
    }
}
