//! Unfinished segments.
//!
//! One that the server still writes to is copied as far as it is flushed, with zeros behind; one that a timeline
//! was left in is archived by PostgreSQL itself at a promotion. The archive keeps the one with more WAL in it.

use crate::error::{Error, Result};
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::wal::RecordReader;
use crate::pg::wal_file::WalFileName;
use crate::repository::incoming::Finished;
use crate::repository::wal_archive::{ClusterIdentity, Stored, WalArchive};
use crate::stored::reader::StoredReader;

const PART_BYTES: usize = 256 << 10;

/// Stores an unfinished segment, whose last record ends at `end`, unless the archive has as much of it already.
pub(super) fn store(
    archive: &WalArchive,
    segment: SegmentName,
    end: Lsn,
    file: Finished,
) -> Result<Stored> {
    let size = archive.cluster().segment_size;
    let name = WalFileName::partial(segment, size);
    if archive
        .find(&WalFileName::segment(segment, size))?
        .is_some()
    {
        return Ok(Stored::Already);
    }
    if let Some(stored) = archive.find(&name)? {
        let before = end_of_records(archive.cluster(), segment, &mut archive.read(&stored)?)?;
        let common = end.min(before).0 - segment.number.start(size).0;
        if !begin_alike(&mut archive.read(&stored)?, &mut file.open()?, common)? {
            return Err(Error::failed(format!(
                "{name} is in the archive already, and its content up to {} differs",
                end.min(before)
            ))
            .hint("two servers archive into the same place: give one of them a name of its own in the configuration"));
        }
        if end <= before {
            return Ok(Stored::Already);
        }
    }
    archive.replace_partial(&name, file)?;
    Ok(Stored::New)
}

/// Where the last whole record of an unfinished segment ends. What is behind cannot be told from
/// damage; nor can PostgreSQL tell it.
pub(super) fn end_of_records(
    cluster: ClusterIdentity,
    segment: SegmentName,
    content: &mut StoredReader,
) -> Result<Lsn> {
    let start = segment.number.start(cluster.segment_size);
    let mut reader = RecordReader::new(
        cluster.major,
        cluster.system_identifier,
        cluster.segment_size,
        start,
    );
    let mut part = vec![0; PART_BYTES];
    loop {
        let filled = content.fill(&mut part)?;
        let ended = reader.push(&part[..filled], &mut |_| Ok(())).is_err();
        if filled == 0 || ended {
            return Ok(reader.position());
        }
    }
}

fn begin_alike(one: &mut StoredReader, other: &mut StoredReader, bytes: u64) -> Result<bool> {
    let (mut ours, mut theirs) = (vec![0; PART_BYTES], vec![0; PART_BYTES]);
    let mut left = bytes;
    while left > 0 {
        let wanted = usize::try_from(left).map_or(PART_BYTES, |left| left.min(PART_BYTES));
        let (read, expected) = (
            one.fill(&mut ours[..wanted])?,
            other.fill(&mut theirs[..wanted])?,
        );
        if read < wanted || ours[..read] != theirs[..expected] {
            return Ok(false);
        }
        left -= read as u64;
    }
    Ok(true)
}
