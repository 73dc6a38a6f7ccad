//! A file of the archive for a server that recovers.
//!
//! PostgreSQL takes an exit status from 1 to 125 for "there is no such file", which ends a
//! recovery, and anything above for "cannot tell", which stops it (access/transam/xlogarchive.c,
//! RestoreArchivedFile). So that a file is not held is an answer here and not an error, and only an archive
//! that is there gives it.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::pg::history::TimelineHistory;
use crate::pg::lsn::Timeline;
use crate::pg::segment::SegmentName;
use crate::pg::wal::{RecordReader, SegmentCheck};
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::repository::wal_archive::{StoredWal, WalArchive};
use crate::stored::coding::Suffix;
use crate::wal::beside::Beside;
use crate::wal::examine::{arrive, whole_segment_check};

/// What a server asks for.
pub struct Request<'a> {
    /// The file, by its name in `pg_wal`.
    pub name: &'a WalFileName,
    /// The path that it shall have.
    pub target: &'a Path,
    /// Whether an unfinished segment will do where the whole one is not held.
    pub accepts_partial: bool,
}

/// What it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The file is at its path, checked and synced.
    Delivered,
    /// The archive does not hold that file.
    NotHeld {
        /// Whether later ones of its timeline are held.
        is_gap: bool,
    },
}

/// Answers a request.
pub fn run(archive: &WalArchive, request: &Request<'_>) -> Result<Answer> {
    if let Some(stored) = archive.find(request.name)? {
        deliver(archive, &stored, request.target)?;
        return Ok(Answer::Delivered);
    }
    let size = archive.cluster().segment_size;
    let segment = match request.name.kind() {
        WalFileKind::Segment => request.name.segment_name(size),
        _ => None,
    };
    let Some(segment) = segment else {
        return Ok(Answer::NotHeld { is_gap: false });
    };
    if request.accepts_partial
        && let Some(stored) = archive.find(&WalFileName::partial(segment, size))?
    {
        deliver(archive, &stored, request.target)?;
        return Ok(Answer::Delivered);
    }
    let newest = archive
        .inventory()?
        .segments_of(segment.timeline)
        .next_back();
    let is_gap = newest > Some(segment);
    Ok(Answer::NotHeld { is_gap })
}

/// Bytes that are read, checked and written at a time.
const PART_BYTES: usize = 256 << 10;

fn deliver(archive: &WalArchive, stored: &StoredWal, target: &Path) -> Result<()> {
    let mut part = vec![0; PART_BYTES];
    let mut content = archive.read(stored)?;
    let mut check = Check::of(archive, stored, &mut part)?;
    let mut beside = Beside::create(target)?;
    loop {
        let filled = content
            .fill(&mut part)
            .map_err(|error| match error.kind() {
                Kind::Damage => damaged(stored, &error),
                _ => error,
            })?;
        if filled == 0 {
            break;
        }
        check
            .push(&part[..filled])
            .map_err(|error| damaged(stored, &error))?;
        beside.write(&part[..filled])?;
    }
    check.finish().map_err(|error| damaged(stored, &error))?;
    beside.publish()
}

/// What recovery would take for the end of all WAL must not pass: to PostgreSQL a damaged record is one.
enum Check {
    Segment {
        pages: SegmentCheck,
        /// Of a segment that is stored as it is.
        records: Option<Box<RecordReader>>,
    },
    History {
        timeline: Timeline,
        content: Vec<u8>,
    },
    /// Where an unfinished segment ends, nothing but its records tells; and it is all that there is.
    Nothing,
}

impl Check {
    fn of(archive: &WalArchive, stored: &StoredWal, part: &mut [u8]) -> Result<Check> {
        let cluster = archive.cluster();
        if let Some(timeline) = stored.name.timeline_of_history() {
            let content = Vec::new();
            return Ok(Check::History { timeline, content });
        }
        match stored.name.segment_name(cluster.segment_size) {
            Some(segment) if stored.name.kind() == WalFileKind::Segment => Ok(Check::Segment {
                pages: whole_segment_check(cluster, segment),
                records: record_reader(archive, stored, segment, part)?.map(Box::new),
            }),
            _ => Ok(Check::Nothing),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Check::Segment { pages, records } => {
                pages.push(bytes);
                match records {
                    Some(records) => records.push(bytes, &mut |_| Ok(())),
                    None => Ok(()),
                }
            }
            Check::History { content, .. } => {
                content.extend_from_slice(bytes);
                Ok(())
            }
            Check::Nothing => Ok(()),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Check::Segment { pages, .. } => pages
                .finish()
                .map_err(|fault| Error::damage(fault.to_string())),
            Check::History { timeline, content } => {
                TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content)).map(drop)
            }
            Check::Nothing => Ok(()),
        }
    }
}

/// What is compressed or encrypted is checked by that, to its last byte, and was read record by record on its way in. What is
/// stored as it is has its records' checksums alone.
fn record_reader(
    archive: &WalArchive,
    stored: &StoredWal,
    segment: SegmentName,
    part: &mut [u8],
) -> Result<Option<RecordReader>> {
    if Suffix::split(&stored.path.name()).1.is_plain() {
        Ok(Some(arrive(archive, segment, part)?.reader))
    } else {
        Ok(None)
    }
}

fn damaged(stored: &StoredWal, error: &Error) -> Error {
    Error::damage(format!("{} is damaged: {}", stored.path, error.message()))
    .hint("nothing was handed out. If the server still has that file, remove the damaged one and archive it again; else recovery can come no further than this")
}
