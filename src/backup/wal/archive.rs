//! This server's own archive, which may hold what the server has removed.

use crate::backup::Request;
use crate::error::Result;
use crate::pg::segment::{SegmentName, SegmentSize};
use crate::pg::wal_file::WalFileName;
use crate::repository::wal_archive::WalArchive;
use crate::stored::reader::StoredReader;

/// Segments of it, one at a time.
pub(super) struct Archive<'a> {
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
    pub(super) fn of(request: &'a Request<'a>) -> Archive<'a> {
        Archive {
            request,
            reading: None,
        }
    }

    /// Whether a segment is being read from here.
    pub(super) fn reads(&self, name: SegmentName) -> bool {
        matches!(&self.reading, Some(reading) if reading.name == name)
    }

    /// Reads a part of a segment; false where the archive does not hold that.
    pub(super) fn read(
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
        content.skip(offset)?;
        Ok(Some(ArchivedSegment {
            name,
            content,
            offset,
        }))
    }
}
