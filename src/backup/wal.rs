//! The WAL a backup needs to become consistent.

use std::fmt::Display;

use crate::backup::Request;
use crate::backup::end::End;
use crate::backup::hazards::Hazards;
use crate::backup::reserved::removed;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::parallel::{self, Stop};
use crate::pg::history::{self, TimelineHistory, WalRange};
use crate::pg::label::BackupLabel;
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::version::Major;
use crate::pg::wal::{RecordReader, SegmentCheck, behind_page_header};
use crate::pg::wal_file::WalFileName;
use crate::rate::RateLimit;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::layout::BackupFolder;
use crate::repository::store::{SLICE_BYTES, Store, Stored};
use crate::repository::wal_archive::WalArchive;
use crate::server::facts::Facts;
use crate::server::reading::{FileReader, ROW_BYTES, ranges};
use crate::stored::coding::Coding;
use crate::stored::reader::StoredReader;
use crate::stored::writer::StoredWriter;

/// WAL from the backup's start to its end.
pub(super) struct NeededWal {
    major: Major,
    system_identifier: u64,
    size: SegmentSize,
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

pub(super) struct HistoryFile {
    name: String,
    content: Vec<u8>,
}

/// A timeline history is a line a switch; this is more than any has.
const HISTORY_LIMIT: u64 = 1 << 20;

/// Which WAL that is, now that the backup has stopped.
pub(super) fn needed(
    facts: &Facts,
    label: &BackupLabel,
    end: End,
    reader: &mut FileReader,
) -> Result<NeededWal> {
    let size = facts.control.wal_segment_size;
    let (history, history_file) = read_history(end.timeline, reader)?;
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
        major: facts.version.major,
        system_identifier: facts.control.system_identifier,
        size,
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

/// The first timeline has no history file; neither has one that pg_resetwal or pg_upgrade began.
pub(super) fn read_history(
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

impl NeededWal {
    /// Reads the records that begin in a segment, or behind the backup's start if that is in there.
    fn records_of(&self, segment: Segment) -> RecordReader {
        let from = self.start.max(segment.name.number.start(self.size));
        RecordReader::new(self.major, self.system_identifier, self.size, from)
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

/// Stores the segments and the history file in `data/pg_wal`. Gives what this WAL says of databases and tablespaces.
pub(super) fn copy(
    needed: &NeededWal,
    stored: &mut Stored,
    readers: &mut [FileReader],
    folder: &BackupFolder,
    request: &Request<'_>,
    rate: &RateLimit,
    interrupt: &Interrupt,
) -> Result<Hazards> {
    let mut workers = readers
        .iter_mut()
        .map(|reader| {
            Ok(Worker {
                needed,
                reader,
                folder,
                coding: request.coding,
                rate,
                store: Store::new(folder, request.coding)?,
                hazards: Hazards::default(),
                request,
            })
        })
        .collect::<Result<Vec<Worker<'_>>>>()?;
    parallel::run(
        &mut workers,
        &needed.segments,
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
    let mut hazards = Hazards::default();
    for worker in workers {
        stored.append(worker.store.stored);
        hazards.add(worker.hazards);
    }
    Ok(hazards)
}

struct Worker<'a> {
    needed: &'a NeededWal,
    reader: &'a mut FileReader,
    folder: &'a BackupFolder,
    coding: &'a Coding,
    rate: &'a RateLimit,
    store: Store<'a>,
    hazards: Hazards,
    request: &'a Request<'a>,
}

/// This server's own archive, which may hold what the server has removed.
struct Archive<'a> {
    request: &'a Request<'a>,
    reading: Option<ArchivedSegment>,
}

/// A segment that is read from the archive, up to an offset so far.
struct ArchivedSegment {
    name: SegmentName,
    content: StoredReader,
    offset: u64,
}

impl<'a> Archive<'a> {
    fn of(request: &'a Request<'a>) -> Archive<'a> {
        Archive {
            request,
            reading: None,
        }
    }

    /// Whether a segment is being read from here.
    fn reads(&self, name: SegmentName) -> bool {
        matches!(&self.reading, Some(reading) if reading.name == name)
    }

    /// Reads a part of a segment; false where the archive does not hold that.
    fn read(
        &mut self,
        name: SegmentName,
        size: SegmentSize,
        offset: u64,
        length: u64,
        plain: &mut Vec<u8>,
    ) -> Result<bool> {
        let is_behind =
            |reading: &ArchivedSegment| reading.name == name && reading.offset == offset;
        if !self.reading.as_ref().is_some_and(is_behind) {
            self.reading = self.open(name, size, offset)?;
        }
        let Some(reading) = &mut self.reading else {
            return Ok(false);
        };
        plain.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
        let filled = reading.content.fill(plain)?;
        plain.truncate(filled);
        reading.offset += filled as u64;
        Ok(true)
    }

    fn open(
        &self,
        name: SegmentName,
        size: SegmentSize,
        offset: u64,
    ) -> Result<Option<ArchivedSegment>> {
        let Request { folder, keys, .. } = *self.request;
        let Some(archive) = WalArchive::open(folder, keys.clone())? else {
            return Ok(None);
        };
        let Some(stored) = archive.find(&WalFileName::segment(name, size))? else {
            return Ok(None);
        };
        let mut content = archive.read(&stored)?;
        let mut passed = Vec::new();
        for start in (0..offset).step_by(SLICE_BYTES as usize) {
            passed.resize(SLICE_BYTES.min(offset - start) as usize, 0);
            content.fill(&mut passed)?;
        }
        Ok(Some(ArchivedSegment {
            name,
            content,
            offset,
        }))
    }
}

impl Worker<'_> {
    fn copy_segment(&mut self, segment: Segment, stop: &Stop<'_>) -> Result<()> {
        let needed = self.needed;
        let path = format!("pg_wal/{}", segment.name.file_name(needed.size));
        let stored = self.store.path_of(&path);
        let mut writer = StoredWriter::create(&self.folder.stored(&stored), self.coding)?;
        let mut check = SegmentCheck::new(
            needed.major,
            needed.system_identifier,
            segment.name,
            needed.size,
            segment.end,
        );
        let start = segment.name.number.start(needed.size);
        let bytes = needed.size.bytes();
        let mut records = segment.is_read.then(|| needed.records_of(segment));
        let mut archive = Archive::of(self.request);
        let (mut crc32c, mut plain, mut frame) = (0, Vec::new(), Vec::new());
        for offset in (0..bytes).step_by(SLICE_BYTES as usize) {
            self.read_slice(
                segment.name,
                offset,
                SLICE_BYTES.min(bytes - offset),
                &mut plain,
                &mut archive,
                stop,
            )?;
            if needed.from_standby {
                zero_from(&mut plain, segment.end.0.saturating_sub(start.0 + offset));
            }
            check.push(&plain);
            if let Some(records) = &mut records {
                self.read_records(records, segment, &plain)?;
            }
            crc32c = crc32c::crc32c_append(crc32c, &plain);
            self.store.compressor.compress(&plain, &mut frame)?;
            writer.append(&frame)?;
        }
        check.finish().map_err(unusable)?;
        if let Some(records) = records {
            self.read_on(records, segment, stop)?;
        }
        self.store.stored.add(&stored, writer.finish()?);
        self.store.stored.files.push(FileEntry {
            path: &path,
            size: bytes,
            modified: needed.modified,
            crc32c: Crc32c(crc32c),
            bundle: None,
            kind: FileKind::Whole,
        });
        Ok(())
    }

    /// Reads the records that begin in a segment, in the next bytes of the WAL.
    fn read_records(
        &mut self,
        records: &mut RecordReader,
        segment: Segment,
        plain: &[u8],
    ) -> Result<()> {
        let NeededWal { major, size, .. } = *self.needed;
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
        let NeededWal { size, .. } = *self.needed;
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
        let size = self.needed.size;
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
