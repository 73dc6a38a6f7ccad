//! A segment of WAL on its way into the backup.

use crate::backup::wal::unusable;
use crate::error::Result;
use crate::pg::lsn::Lsn;
use crate::pg::segment::SegmentName;
use crate::pg::wal::SegmentCheck;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::repository::layout::BackupFolder;
use crate::repository::store::{SLICE_BYTES, Store};
use crate::server::facts::Facts;
use crate::storage::Place;
use crate::stored::coding::Coding;
use crate::stored::writer::StoredWriter;

/// A segment of which the first bytes are stored, in `data/pg_wal`.
pub(super) struct SegmentCopy {
    pub(super) name: SegmentName,
    /// Its path below the data directory.
    pub(super) path: String,
    size: u64,
    /// How many bytes of it have come in.
    taken: u64,
    /// Those of them that are not compressed yet.
    slice: Vec<u8>,
    frame: Vec<u8>,
    crc32c: u32,
    check: SegmentCheck,
    stored: String,
    file: Place,
    writer: StoredWriter,
}

impl SegmentCopy {
    /// Begins one.
    pub(super) fn begin(
        name: SegmentName,
        facts: &Facts,
        folder: &BackupFolder,
        coding: &Coding,
        store: &Store<'_>,
    ) -> Result<SegmentCopy> {
        let size = facts.control.wal_segment_size;
        let path = format!("pg_wal/{}", name.file_name(size));
        let stored = store.path_of(&path);
        let file = folder.stored(&stored);
        Ok(SegmentCopy {
            name,
            path,
            size: size.bytes(),
            taken: 0,
            slice: Vec::with_capacity(SLICE_BYTES.min(size.bytes()) as usize),
            frame: Vec::new(),
            crc32c: 0,
            check: SegmentCheck::new(
                facts.version.major,
                facts.control.system_identifier,
                name,
                size,
                name.number.next().start(size),
            ),
            stored,
            writer: StoredWriter::create(&file, coding)?,
            file,
        })
    }

    /// The backup ends here: behind it may lie what the segment was used for earlier.
    pub(super) fn ends_at(&mut self, end: Lsn) {
        self.check.ends_at(end);
    }

    /// Where the next bytes lie in the segment, and how many go into one slice; nothing where it is whole.
    pub(super) fn missing(&self) -> Option<(u64, u64)> {
        let of_slice = SLICE_BYTES - self.slice.len() as u64;
        let length = of_slice.min(self.size - self.taken);
        (length > 0).then_some((self.taken, length))
    }

    /// Takes the next bytes, no more than are [missing](SegmentCopy::missing).
    pub(super) fn push(&mut self, bytes: &[u8], store: &mut Store<'_>) -> Result<()> {
        self.check.push(bytes);
        self.crc32c = crc32c::crc32c_append(self.crc32c, bytes);
        self.slice.extend_from_slice(bytes);
        self.taken += bytes.len() as u64;
        if self.slice.len() as u64 == SLICE_BYTES || self.taken == self.size {
            store.compressor.compress(&self.slice, &mut self.frame)?;
            self.writer.append(&self.frame)?;
            self.slice.clear();
        }
        Ok(())
    }

    /// Ends one that is whole; `modified` is its time in the backup.
    pub(super) fn finish(self, modified: i64, store: &mut Store<'_>) -> Result<()> {
        self.check.finish().map_err(unusable)?;
        store.stored.add(&self.stored, self.writer.finish()?);
        store.stored.files.push(FileEntry {
            path: &self.path,
            size: self.size,
            modified,
            crc32c: Crc32c(self.crc32c),
            bundle: None,
            kind: FileKind::Whole,
        });
        Ok(())
    }

    /// Removes what is stored of it.
    pub(super) fn discard(self) -> Result<()> {
        self.file.remove()
    }
}
