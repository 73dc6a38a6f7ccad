//! WAL as recovery would read it: segments without a gap, each from where it is stored.

use std::ops::{ControlFlow, Range};

use jiff::Timestamp;

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::wal::{Record, RecordReader};
use crate::pg::wal_file::WalFileName;
use crate::repository::backup_info::BackupInfo;
use crate::repository::layout::{BackupFolder, DATA};
use crate::repository::wal_archive::{ClusterIdentity, Contiguous, WalArchive};
use crate::storage::Place;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::master_key::Keyring;
use crate::stored::reader::StoredReader;

/// Bytes read at a time.
const PART_BYTES: usize = 256 << 10;

/// Segments that follow each other.
pub struct WalPath<'a> {
    cluster: ClusterIdentity,
    keys: &'a Keyring,
    archive: Option<&'a WalArchive>,
    segments: Vec<Segment>,
}

/// A segment as far as it is a part of the path.
#[derive(Debug)]
struct Segment {
    start: Lsn,
    end: Lsn,
    place: Origin,
}

/// Where a segment is stored.
#[derive(Debug)]
enum Origin {
    /// In a backup.
    Backup(Place),
    /// In the archive.
    Archive(SegmentName),
    /// In the archive, unfinished: what it ends with is no WAL.
    Unfinished(SegmentName),
}

/// What WAL ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalEnd {
    /// The position behind the last record.
    pub lsn: Lsn,
    /// Where the last record begins.
    pub last_record: Option<Lsn>,
    /// The latest moment that the last records tell of, the others being older.
    pub time: Option<Timestamp>,
}

impl<'a> WalPath<'a> {
    /// The WAL that a backup itself holds, as far as it is complete there.
    pub fn of_backup(
        folder: &BackupFolder,
        info: &BackupInfo,
        keys: &'a Keyring,
    ) -> Result<WalPath<'a>> {
        let cluster = ClusterIdentity::of_backup(info)
            .ok_or_else(|| Error::damage(format!("backup {} is of no known kind", info.backup)))?;
        let size = cluster.segment_size;
        let mut segments: Vec<Segment> = own_segments(folder, cluster)?
            .into_iter()
            .map(|(name, path)| {
                let next = name.number.next().start(size);
                Segment {
                    start: name.number.start(size),
                    // A standby cannot have its server leave the segment. What is behind is cut off.
                    end: if info.from_standby {
                        next.min(info.end_lsn)
                    } else {
                        next
                    },
                    place: Origin::Backup(path),
                }
            })
            .collect();
        // Where a timeline was left inside of a segment, the last name's is the one that goes on.
        segments.reverse();
        segments.dedup_by_key(|segment| segment.start);
        segments.reverse();
        Ok(WalPath {
            cluster,
            keys,
            archive: None,
            segments,
        })
    }

    /// WAL that an archive holds without a gap. An unfinished segment counts up to where its
    /// timeline was left, if it was.
    pub fn of_archive(
        archive: &'a WalArchive,
        contiguous: &Contiguous,
        left: Option<Lsn>,
        keys: &'a Keyring,
    ) -> WalPath<'a> {
        let cluster = archive.cluster();
        let size = cluster.segment_size;
        let whole = contiguous.segments.iter().map(|name| Segment {
            start: name.number.start(size),
            end: contiguous.end.min(name.number.next().start(size)),
            place: Origin::Archive(*name),
        });
        let unfinished = contiguous.partial.map(|name| {
            let next = name.number.next().start(size);
            Segment {
                start: name.number.start(size),
                end: left.map_or(next, |left| left.min(next)),
                place: Origin::Unfinished(name),
            }
        });
        WalPath {
            cluster,
            keys,
            archive: Some(archive),
            segments: whole.chain(unfinished).collect(),
        }
    }

    /// Goes on with another path, whose segments are preferred where both have them.
    #[must_use]
    pub fn then(mut self, other: WalPath<'a>) -> WalPath<'a> {
        if let Some(first) = other.segments.first() {
            let start = first.start;
            self.segments.retain(|segment| segment.start < start);
            self.archive = other.archive;
            self.segments.extend(other.segments);
        }
        self
    }

    /// The position up to which there is WAL, going by the names of the segments.
    pub fn end(&self) -> Lsn {
        self.segments
            .last()
            .map_or_else(Lsn::default, |segment| segment.end)
    }

    /// Hands over the records that begin at `from` or above until `visit` has had enough. Gives
    /// the position behind the last one that was read.
    pub fn read(
        &self,
        from: Lsn,
        interrupt: &Interrupt,
        visit: &mut dyn FnMut(&Record<'_>) -> ControlFlow<()>,
    ) -> Result<Lsn> {
        let covering = self.segments.iter().position(|segment| segment.end > from);
        let Some(first) = covering else {
            return Ok(from);
        };
        let from = from.max(self.segments[first].start);
        let ClusterIdentity {
            major,
            system_identifier,
            segment_size,
        } = self.cluster;
        let mut reader = RecordReader::new(major, system_identifier, segment_size, from);
        let mut part = vec![0; PART_BYTES];
        let mut enough = false;
        for segment in &self.segments[first..] {
            let mut content = self.open(segment)?;
            let mut left = segment.end.0 - segment.start.0;
            while left > 0 {
                interrupt.check()?;
                let wanted = part.len().min(left as usize);
                let filled = content.fill(&mut part[..wanted])?;
                if filled == 0 {
                    return Err(Error::damage(format!(
                        "a segment that begins at {} is cut off",
                        segment.start
                    ))
                    .hint(DAMAGED));
                }
                left -= filled as u64;
                let read = reader.push(&part[..filled], &mut |record| {
                    enough = enough || visit(record).is_break();
                    Ok(())
                });
                match (read, &segment.place) {
                    (Ok(()), _) => {}
                    (Err(_), Origin::Unfinished(_)) => enough = true,
                    (Err(error), _) => return Err(error.hint(DAMAGED)),
                }
                if enough {
                    return Ok(reader.position());
                }
            }
        }
        Ok(reader.position())
    }

    /// What the WAL in a range ends with: the last moment that `time_of` tells of its records, and
    /// where they end. Reads backwards, segment by segment, no more than it takes.
    pub fn read_end(
        &self,
        range: Range<Lsn>,
        interrupt: &Interrupt,
        time_of: &dyn Fn(&Record<'_>) -> Option<Timestamp>,
    ) -> Result<WalEnd> {
        let mut end = WalEnd {
            lsn: range.start,
            last_record: None,
            time: None,
        };
        let mut known_from = range.end;
        for segment in self.segments.iter().rev() {
            if segment.end <= range.start || (end.last_record.is_some() && end.time.is_some()) {
                break;
            }
            let from = segment.start.max(range.start);
            if from >= known_from {
                continue;
            }
            // A record may begin in this segment and end in the one behind.
            self.read(from, interrupt, &mut |record| {
                if record.start >= known_from {
                    return ControlFlow::Break(());
                }
                end.lsn = end.lsn.max(record.end);
                end.last_record = end.last_record.max(Some(record.start));
                end.time = end.time.max(time_of(record));
                ControlFlow::Continue(())
            })?;
            known_from = from;
        }
        Ok(end)
    }

    /// The segments of it that come from an archive, each with its first position, in order.
    pub fn archived(&self) -> impl Iterator<Item = (SegmentName, Lsn)> {
        self.segments
            .iter()
            .filter_map(|segment| match segment.place {
                Origin::Backup(_) => None,
                Origin::Archive(name) | Origin::Unfinished(name) => Some((name, segment.start)),
            })
    }

    /// Opens a segment that comes from an archive, whole or unfinished.
    pub fn open_segment(&self, name: SegmentName) -> Result<StoredReader> {
        let size = self.cluster.segment_size;
        let whole = WalFileName::segment(name, size);
        self.open_archived(&[whole, WalFileName::partial(name, size)])
    }

    fn open(&self, segment: &Segment) -> Result<StoredReader> {
        let size = self.cluster.segment_size;
        match &segment.place {
            Origin::Backup(path) => StoredReader::open(path, &Coding::of_file(path, self.keys)?),
            Origin::Archive(name) => self.open_archived(&[WalFileName::segment(*name, size)]),
            // It may have become a whole one meanwhile.
            Origin::Unfinished(name) => self.open_archived(&[
                WalFileName::partial(*name, size),
                WalFileName::segment(*name, size),
            ]),
        }
    }

    fn open_archived(&self, names: &[WalFileName]) -> Result<StoredReader> {
        if let Some(archive) = self.archive {
            for name in names {
                if let Some(stored) = archive.find(name)? {
                    return archive.read(&stored);
                }
            }
        }
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Err(Error::failed(format!(
            "{} has gone from the archive meanwhile",
            names.join(" or ")
        ))
        .hint("run the same command again"))
    }
}

const DAMAGED: &str = "recovery could not read it either: restore to a position before it, or archive that segment again if its server still has it";

/// The segments in a backup's own pg_wal, ordered by position, then by timeline.
fn own_segments(
    folder: &BackupFolder,
    cluster: ClusterIdentity,
) -> Result<Vec<(SegmentName, Place)>> {
    let wal = folder.stored(DATA).join("pg_wal");
    let segment = |file_name: String| {
        let (name, _) = Suffix::split(&file_name);
        let name = SegmentName::parse(name, cluster.segment_size)?;
        Some((name, wal.join(&file_name)))
    };
    let mut segments: Vec<_> = wal.names()?.into_iter().filter_map(segment).collect();
    segments.sort_by_key(|(name, _)| (name.number, name.timeline));
    Ok(segments)
}
