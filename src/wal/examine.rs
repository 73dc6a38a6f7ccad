//! Reading a segment before it counts: page by page, record by record, and what the records changed.
//!
//! A record that crosses into a segment is understood with the segment before. So the block map of a segment is of the
//! records that end in it: it begins where the last record that ended before began to be followed, and
//! the maps of one segment after the other adjoin. Where the segment before is not in the archive, the map begins with the first
//! record that begins in the segment.

use crate::error::{Error, Result};
use crate::pg::changed_blocks::SummaryName;
use crate::pg::history::{TimelineHistory, WalRange};
use crate::pg::lsn::Lsn;
use crate::pg::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::pg::wal::{
    Creations, Record, RecordReader, SegmentCheck, Summarizer, behind_page_header,
};
use crate::pg::wal_file::WalFileName;
use crate::repository::block_maps::BlockMap;
use crate::repository::wal_archive::{ClusterIdentity, WalArchive};
use crate::stored::reader::StoredReader;

/// Bytes read at a time.
const PART_BYTES: usize = 256 << 10;

/// Reads segments. Those that follow each other are read as one.
pub(super) struct Examiner<'a> {
    archive: &'a WalArchive,
    /// Where the last one ended.
    position: Option<Position>,
    part: Vec<u8>,
}

/// A reader between two segments.
pub(super) struct Position {
    pub(super) reader: RecordReader,
    next: SegmentName,
    /// Where the records begin that are in no map yet; unknown where the WAL before is not here.
    open: Option<Lsn>,
}

impl<'a> Examiner<'a> {
    pub(super) fn new(archive: &'a WalArchive) -> Examiner<'a> {
        Examiner {
            archive,
            position: None,
            part: vec![0; PART_BYTES],
        }
    }

    /// One that has read already what is in front of a segment.
    pub(super) fn in_front_of(
        segment: SegmentName,
        archive: &'a WalArchive,
    ) -> Result<Examiner<'a>> {
        let mut examiner = Examiner::new(archive);
        examiner.position = Some(arrive(archive, segment, &mut examiner.part)?);
        Ok(examiner)
    }

    /// Checks a whole segment, and gives the block maps of the records that end in it: one, or two where a
    /// timeline begins inside. WAL that was written with wal_level = minimal has none.
    pub(super) fn examine(
        &mut self,
        segment: SegmentName,
        content: &mut StoredReader,
    ) -> Result<Vec<BlockMap>> {
        let history = self.archive.history(segment.timeline)?;
        let Position {
            mut reader, open, ..
        } = match self.position.take() {
            Some(position) if position.next == segment => position,
            _ => arrive(self.archive, segment, &mut self.part)?,
        };
        let cluster = self.archive.cluster();
        let mut maps = Maps::new(cluster, &history, open);
        let mut check = whole_segment_check(cluster, segment);
        loop {
            let filled = content.fill(&mut self.part)?;
            if filled == 0 {
                break;
            }
            check.push(&self.part[..filled]);
            reader.push(&self.part[..filled], &mut |record| maps.record(record))?;
        }
        check
            .finish()
            .map_err(|fault| Error::damage(fault.to_string()))?;
        let end = reader.position();
        let (maps, is_open) = maps.finish(end);
        let number = segment.number.next();
        self.position = Some(Position {
            reader,
            next: SegmentName { number, ..segment },
            open: is_open.then_some(end),
        });
        Ok(maps)
    }
}

/// Reads what is in front of a segment, as far back as the record begins that crosses into it.
pub(super) fn arrive(
    archive: &WalArchive,
    segment: SegmentName,
    part: &mut [u8],
) -> Result<Position> {
    let ClusterIdentity {
        major,
        system_identifier,
        segment_size: size,
    } = archive.cluster();
    let history = archive.history(segment.timeline)?;
    let mut before = Vec::new();
    let mut first = segment.number;
    while let Some(previous) = previous(first, &history, size)
        && let Some(stored) = archive.find(&WalFileName::segment(previous, size))?
    {
        before.push(stored);
        first = previous.number;
        let start = first.start(size);
        let mut reader = RecordReader::new(major, system_identifier, size, start);
        let sound = before
            .iter()
            .rev()
            .try_for_each(|stored| feed(&mut reader, &mut archive.read(stored)?, part));
        if let Err(error) = sound {
            let name = segment.file_name(size);
            log::warn!("what is in front of WAL segment {name} is of no use: {error}");
            break;
        }
        // Where no record begins in a segment, the one before it is needed too.
        if reader.position() > start {
            let open = Some(reader.position());
            return Ok(Position {
                reader,
                next: segment,
                open,
            });
        }
    }
    let start = segment.number.start(size);
    Ok(Position {
        reader: RecordReader::new(major, system_identifier, size, start),
        next: segment,
        open: None,
    })
}

/// The segment in front of another one on the way that a history took.
fn previous(
    number: SegmentNumber,
    history: &TimelineHistory,
    size: SegmentSize,
) -> Option<SegmentName> {
    let last_byte = Lsn(number.start(size).0.checked_sub(1)?);
    Some(SegmentName {
        timeline: history.timeline_of(last_byte),
        number: last_byte.segment(size),
    })
}

fn feed(reader: &mut RecordReader, content: &mut StoredReader, part: &mut [u8]) -> Result<()> {
    loop {
        let filled = content.fill(part)?;
        if filled == 0 {
            return Ok(());
        }
        reader.push(&part[..filled], &mut |_| Ok(()))?;
    }
}

/// Expects a whole segment of the archive's cluster.
pub(super) fn whole_segment_check(cluster: ClusterIdentity, segment: SegmentName) -> SegmentCheck {
    SegmentCheck::new(
        cluster.major,
        cluster.system_identifier,
        segment,
        cluster.segment_size,
        Lsn(u64::MAX),
    )
}

/// The block maps of one segment while its records pass by.
struct Maps {
    cluster: ClusterIdentity,
    /// The timelines that the records are on, the oldest first.
    path: Vec<WalRange>,
    current: Option<Open>,
    finished: Vec<BlockMap>,
}

/// A map that is being made.
struct Open {
    range: WalRange,
    start: Lsn,
    summarizer: Summarizer,
    creations: Creations,
}

impl Maps {
    fn new(cluster: ClusterIdentity, history: &TimelineHistory, open: Option<Lsn>) -> Maps {
        let mut maps = Maps {
            cluster,
            path: history.path(),
            current: None,
            finished: Vec::new(),
        };
        maps.current = open.and_then(|start| maps.open(start));
        maps
    }

    fn open(&self, start: Lsn) -> Option<Open> {
        let range = self.path.iter().find(|range| start < range.end)?;
        Some(Open {
            range: *range,
            start,
            summarizer: Summarizer::new(self.cluster.major),
            creations: Creations::default(),
        })
    }

    fn record(&mut self, record: &Record<'_>) -> Result<()> {
        let mut current = match self.current.take() {
            Some(current) => Some(current),
            None => self.open(record.start),
        };
        // Behind the end of a timeline begins the next one's map.
        while let Some(open) = current.take_if(|open| record.start >= open.range.end) {
            let end = open.range.end;
            self.close(open, end);
            current = self.open(end);
        }
        if let Some(open) = &mut current {
            open.summarizer.record(record)?;
            open.creations.record(record)?;
        }
        self.current = current;
        Ok(())
    }

    /// The maps, and whether the next segment's can go on from them.
    fn finish(mut self, end: Lsn) -> (Vec<BlockMap>, bool) {
        let current = self.current.take();
        let is_open = current.is_some();
        if let Some(open) = current {
            let end = end.min(open.range.end);
            self.close(open, end);
        }
        (self.finished, is_open)
    }

    /// Both ends of a map may be where a page begins; that no record begins in the page's header is
    /// known of both, so the map claims the header in front of it and the one behind it.
    fn close(&mut self, open: Open, end: Lsn) {
        if end <= open.start {
            return;
        }
        let name = SummaryName {
            timeline: open.range.timeline,
            start: open.start,
            end: behind_page_header(end, self.cluster.segment_size),
        };
        match open.summarizer.finish() {
            Ok(changed) => self.finished.push(BlockMap {
                name,
                system_identifier: self.cluster.system_identifier,
                changed,
                creations: open.creations,
            }),
            Err(minimal) => log::warn!(
                "there is no block map of the WAL from {} to {}: {minimal}",
                name.start,
                name.end
            ),
        }
    }
}
