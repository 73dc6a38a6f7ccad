//! Plain content on its way from one stored file into another.

use std::path::Path;

use crate::error::Result;
use crate::parallel::Stop;
use crate::repository::blocks::check;
use crate::repository::file_list::{Crc32c, FileEntry};
use crate::repository::layout::BackupFolder;
use crate::repository::store::SLICE_BYTES;
use crate::stored::coding::Coding;
use crate::stored::compression::Compressor;
use crate::stored::reader::StoredReader;
use crate::stored::writer::{StoredWriter, Written};

/// Bytes that are read and checked at a time; whole blocks.
pub(super) const PART_BYTES: usize = 256 << 10;

/// A stored file that is being written from plain content.
pub(super) struct ContentWriter {
    path: String,
    writer: StoredWriter,
    compressor: Compressor,
    slice: Vec<u8>,
    frame: Vec<u8>,
    size: u64,
    crc32c: u32,
    has_frame: bool,
}

/// What came of it.
pub(super) struct WrittenContent {
    /// The path in the backup's folder.
    pub(super) path: String,
    /// Bytes of plain content.
    pub(super) size: u64,
    /// Of the plain content.
    pub(super) crc32c: Crc32c,
    /// What lies on disk.
    pub(super) written: Written,
}

impl ContentWriter {
    pub(super) fn create(
        folder: &BackupFolder,
        path: String,
        coding: &Coding,
    ) -> Result<ContentWriter> {
        Ok(ContentWriter {
            writer: StoredWriter::create(&folder.stored(&path), coding)?,
            path,
            compressor: Compressor::new(coding.compression)?,
            slice: Vec::with_capacity(SLICE_BYTES as usize),
            frame: Vec::new(),
            size: 0,
            crc32c: 0,
            has_frame: false,
        })
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, mut content: &[u8]) -> Result<()> {
        self.size += content.len() as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, content);
        while !content.is_empty() {
            let room = SLICE_BYTES as usize - self.slice.len();
            let (now, later) = content.split_at(room.min(content.len()));
            self.slice.extend_from_slice(now);
            content = later;
            if self.slice.len() == SLICE_BYTES as usize {
                self.write_slice()?;
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<WrittenContent> {
        // What is empty is an empty frame.
        if !self.slice.is_empty() || !self.has_frame {
            self.write_slice()?;
        }
        Ok(WrittenContent {
            path: self.path,
            size: self.size,
            crc32c: Crc32c(self.crc32c),
            written: self.writer.finish()?,
        })
    }

    fn write_slice(&mut self) -> Result<()> {
        self.compressor.compress(&self.slice, &mut self.frame)?;
        self.writer.append(&self.frame)?;
        self.slice.clear();
        self.has_frame = true;
        Ok(())
    }
}

/// Copies the plain content of a stored file, and checks it.
pub(super) fn copy(
    file: &FileEntry,
    stored: &Path,
    coding: &Coding,
    writer: &mut ContentWriter,
    stop: &Stop<'_>,
) -> Result<()> {
    let mut reader = StoredReader::open(stored, coding)?;
    let mut part = vec![0; PART_BYTES];
    let (mut size, mut crc32c) = (0, 0);
    loop {
        stop.check()?;
        let filled = reader.fill(&mut part)?;
        if filled == 0 {
            return check(file, size, crc32c, stored);
        }
        size += filled as u64;
        crc32c = crc32c::crc32c_append(crc32c, &part[..filled]);
        writer.push(&part[..filled])?;
    }
}
