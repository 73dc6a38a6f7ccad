//! What changed, from the WAL itself: from the archive, or from the server.
//!
//! The WAL is dealt out in chunks that workers read side by side. A chunk's reader takes the records that
//! begin in it; the last of them may end in the next chunk, so it reads on until that one is whole. What the chunks
//! tell is [joined](Joined) in their order.

use std::collections::BTreeSet;

use postgres::Client;

use crate::backup::changes::Search;
use crate::backup::changes::joined::{Joined, Told};
use crate::error::{Error, Result};
use crate::parallel::{self, Stop};
use crate::pg::changed_blocks::ChangedBlocks;
use crate::pg::history::{TimelineHistory, WalRange};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::wal::{MinimalWal, RecordReader, Summarizer};
use crate::pg::wal_file::WalFileName;
use crate::repository::store::SLICE_BYTES;
use crate::repository::wal_archive::{StoredWal, WalArchive};
use crate::server::pg_wal;
use crate::server::reading::{FileReader, Range, ranges};

/// Bytes of WAL in a chunk, as far as segments are not larger.
const CHUNK_BYTES: u64 = 64 << 20;

/// The records that begin in a part of the range.
struct Chunk {
    /// From 0.
    number: usize,
    start: Lsn,
    end: Lsn,
}

/// Where the WAL of a range lies.
struct Segments<'a> {
    size: SegmentSize,
    first: SegmentNumber,
    places: Vec<Place<'a>>,
}

/// Where a segment lies.
enum Place<'a> {
    Archive(&'a WalArchive, StoredWal),
    Server(SegmentName),
}

impl Search<'_> {
    /// Reads the WAL of a range, which ends where a record does.
    pub(super) fn read_wal(
        &self,
        range: WalRange,
        history: &TimelineHistory,
        client: &mut Client,
        readers: &mut [FileReader],
    ) -> Result<ChangedBlocks> {
        let archive = WalArchive::open(self.folder, self.keys.clone())?;
        let segments = self.find_segments(range, history, archive.as_ref(), client)?;
        self.progress
            .step("read WAL", Some(range.end.0 - range.start.0));
        let joined = Joined::new(range, segments.size);
        let mut workers: Vec<Worker<'_>> = readers
            .iter_mut()
            .map(|reader| Worker {
                search: self,
                reader,
                segments: &segments,
                range,
                joined: &joined,
                part: Vec::new(),
            })
            .collect();
        parallel::run(
            &mut workers,
            &chunks(range, segments.size),
            self.interrupt,
            |worker, chunk, stop| worker.read(chunk, stop),
            || Ok(()),
        )?;
        drop(workers);
        joined.finish()
    }

    /// The segment in which a timeline was left may have been given to the next timeline, whose own begins
    /// with a copy of it.
    fn find_segments<'a>(
        &self,
        range: WalRange,
        history: &TimelineHistory,
        archive: Option<&'a WalArchive>,
        client: &mut Client,
    ) -> Result<Segments<'a>> {
        let size = self.facts.control.wal_segment_size;
        let on_server = pg_wal::segments(client, size)?;
        let later: Vec<Timeline> = history
            .path()
            .iter()
            .map(|part| part.timeline)
            .filter(|timeline| *timeline > range.timeline)
            .collect();
        let first = range.start.segment(size);
        let last = range.end.previous_segment(size);
        let mut places = Vec::new();
        for number in (first.0..=last.0).map(SegmentNumber) {
            let name = SegmentName {
                timeline: range.timeline,
                number,
            };
            let mut place = find(name, archive, &on_server, size)?;
            let continued = later.iter().filter(|_| number == last);
            for &timeline in continued {
                if place.is_none() {
                    place = find(SegmentName { timeline, number }, archive, &on_server, size)?;
                }
            }
            places.push(place.ok_or_else(|| gone(range, &name.file_name(size)))?);
        }
        Ok(Segments {
            size,
            first,
            places,
        })
    }
}

fn find<'a>(
    name: SegmentName,
    archive: Option<&'a WalArchive>,
    on_server: &BTreeSet<SegmentName>,
    size: SegmentSize,
) -> Result<Option<Place<'a>>> {
    if let Some(archive) = archive
        && let Some(stored) = archive.find(&WalFileName::segment(name, size))?
    {
        return Ok(Some(Place::Archive(archive, stored)));
    }
    Ok(on_server.contains(&name).then_some(Place::Server(name)))
}

fn gone(range: WalRange, missing: &str) -> Error {
    Error::failed(format!(
        "no WAL summary and no block map tells of {} to {} on timeline {}, and the WAL itself is neither archived \
         nor on the server any more: {missing} is missing",
        range.start, range.end, range.timeline
    ))
    .hint(
        "make a full backup, or say --or-full; for the next time set summarize_wal = on (PostgreSQL 17 and later), \
         archive the WAL with pgkeep wal copy, or raise wal_keep_size on the server",
    )
}

fn chunks(range: WalRange, size: SegmentSize) -> Vec<Chunk> {
    let step = CHUNK_BYTES.max(size.bytes());
    let mut chunks = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let end = Lsn((start.0 / step + 1) * step).min(range.end);
        let number = chunks.len();
        chunks.push(Chunk { number, start, end });
        start = end;
    }
    chunks
}

struct Worker<'a> {
    search: &'a Search<'a>,
    reader: &'a mut FileReader,
    segments: &'a Segments<'a>,
    range: WalRange,
    joined: &'a Joined,
    part: Vec<u8>,
}

impl Worker<'_> {
    fn read(&mut self, chunk: &Chunk, stop: &Stop<'_>) -> Result<()> {
        self.joined.wait_for_turn(chunk.number, stop)?;
        let Segments { size, first, .. } = *self.segments;
        let facts = self.search.facts;
        let major = facts.version.major;
        let mut records =
            RecordReader::new(major, facts.control.system_identifier, size, chunk.start);
        let mut summarizer = Summarizer::new(major);
        let mut start = None;
        let mut beyond = None;
        let first_of_chunk = chunk.start.segment(size);
        let places = &self.segments.places[(first_of_chunk.0 - first.0) as usize..];
        for (place, number) in places.iter().zip(first_of_chunk.0..) {
            // Beyond the range's end, the server may not have written yet.
            let begin = SegmentNumber(number).start(size);
            let end = SegmentNumber(number).next().start(size).min(self.range.end);
            self.read_segment(place, end.0 - begin.0, stop, &mut |bytes| {
                records.push(bytes, &mut |record| {
                    if record.start >= chunk.end {
                        beyond.get_or_insert(record.start);
                        return Ok(());
                    }
                    start.get_or_insert(record.start);
                    summarizer.record(record)
                })?;
                Ok(records.position() < chunk.end)
            })?;
            if records.position() >= chunk.end {
                break;
            }
        }
        let changed = summarizer.finish().map_err(minimal)?;
        let told = start.map(|start| Told {
            start,
            end: beyond.unwrap_or(records.position()),
            changed,
        });
        self.joined.take(chunk.number, told)
    }

    /// Reads the first bytes of a segment, as long as `consume` wants more.
    fn read_segment(
        &mut self,
        place: &Place<'_>,
        length: u64,
        stop: &Stop<'_>,
        consume: &mut dyn FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let name = match place {
            Place::Archive(archive, stored) => {
                return self.read_archived(archive, stored, length, 0, stop, consume);
            }
            Place::Server(name) => *name,
        };
        let Some(passed) = self.read_from_server(name, length, stop, consume)? else {
            return Ok(());
        };
        // Whoever archives it has done so meanwhile, and the server has no more use for it.
        let size = self.segments.size;
        let archive = WalArchive::open(self.search.folder, self.search.keys.clone())?;
        let stored = match &archive {
            Some(archive) => archive.find(&WalFileName::segment(name, size))?,
            None => None,
        };
        match (&archive, stored) {
            (Some(archive), Some(stored)) => {
                self.read_archived(archive, &stored, length, passed, stop, consume)
            }
            _ => Err(gone(self.range, &name.file_name(size))),
        }
    }

    /// The first bytes may be `passed` already.
    fn read_archived(
        &mut self,
        archive: &WalArchive,
        stored: &StoredWal,
        length: u64,
        passed: u64,
        stop: &Stop<'_>,
        consume: &mut dyn FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut content = archive.read(stored)?;
        for offset in (0..length).step_by(SLICE_BYTES as usize) {
            stop.check()?;
            self.part
                .resize(SLICE_BYTES.min(length - offset) as usize, 0);
            let filled = content.fill(&mut self.part)?;
            if filled < self.part.len() {
                let cut = format!("{} is cut off", stored.path);
                return Err(Error::damage(cut)
                    .hint("move it away: where the server still has that WAL, it is read there"));
            }
            let passed = passed.saturating_sub(offset).min(filled as u64) as usize;
            let part = &self.part[passed..];
            self.search.progress.advance(part.len() as u64);
            if !part.is_empty() && !consume(part)? {
                break;
            }
        }
        Ok(())
    }

    /// If the server has removed the segment, gives how much of it had been read by then.
    fn read_from_server(
        &mut self,
        name: SegmentName,
        length: u64,
        stop: &Stop<'_>,
        consume: &mut dyn FnMut(&[u8]) -> Result<bool>,
    ) -> Result<Option<u64>> {
        let path = format!("pg_wal/{}", name.file_name(self.segments.size));
        let (mut wants_more, mut is_there, mut read) = (true, true, 0);
        for offset in (0..length).step_by(SLICE_BYTES as usize) {
            let slice = SLICE_BYTES.min(length - offset);
            let wanted: Vec<Range<'_>> = ranges(&path, offset, slice).collect();
            self.reader.read(&wanted, |_, bytes| {
                stop.check()?;
                match bytes {
                    Some(bytes) if is_there => {
                        read += bytes.len() as u64;
                        self.search.progress.advance(bytes.len() as u64);
                        wants_more = consume(bytes)?;
                    }
                    _ => is_there = false,
                }
                Ok(())
            })?;
            if !is_there {
                return Ok(Some(read));
            }
            if !wants_more {
                break;
            }
        }
        Ok(None)
    }
}

fn minimal(minimal: MinimalWal) -> Error {
    Error::failed(format!(
        "the server ran with wal_level = minimal at {}, when the WAL does not tell all that changes",
        minimal.at
    ))
    .hint("make a full backup, or say --or-full")
}
