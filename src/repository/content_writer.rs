//! Plain content on its way into a stored file.

use std::io;

use crate::error::Result;
use crate::repository::file_list::Crc32c;
use crate::repository::layout::BackupFolder;
use crate::repository::store::SLICE_BYTES;
use crate::stored::coding::Coding;
use crate::stored::compression::Compressor;
use crate::stored::writer::{StoredWriter, Written};

/// A stored file that is being written from plain content.
pub struct ContentWriter {
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
pub struct WrittenContent {
    /// The path in the backup's folder.
    pub path: String,
    /// Bytes of plain content.
    pub size: u64,
    /// Of the plain content.
    pub crc32c: Crc32c,
    /// What lies on disk.
    pub written: Written,
}

impl ContentWriter {
    /// Creates the file, by its path in the backup's folder; it must not exist.
    pub fn create(folder: &BackupFolder, path: String, coding: &Coding) -> Result<ContentWriter> {
        Ok(ContentWriter {
            writer: StoredWriter::create(folder.stored(&path), coding)?,
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
    pub fn push(&mut self, mut content: &[u8]) -> Result<()> {
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

    /// Ends the file.
    pub fn finish(mut self) -> Result<WrittenContent> {
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

impl io::Write for ContentWriter {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        self.push(content).map_err(io::Error::other)?;
        Ok(content.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
