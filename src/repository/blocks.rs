//! The blocks of a relation's segment as a backup stores them, read in the order of their numbers.

use crate::error::{Error, Result};
use crate::pg::incremental::HeaderReader;
use crate::pg::page::PAGE_SIZE;
use crate::repository::file_list::{Crc32c, FileEntry, FileKind};
use crate::storage::Place;
use crate::stored::coding::Coding;
use crate::stored::reader::StoredReader;

/// Bytes of plain content that are read at a time; whole blocks.
const PART_BYTES: usize = 256 << 10;

/// The blocks that a stored file holds, in the order of their numbers.
pub struct Blocks<'a> {
    file: FileEntry<'a>,
    stored: &'a Place,
    source: Source<'a>,
    /// Bytes of plain content that came so far, and their checksum.
    size: u64,
    crc32c: u32,
    numbers: Numbers,
}

/// Which blocks a file holds, and which comes next.
enum Numbers {
    All { next: u32, count: u32 },
    Listed { next: usize, numbers: Vec<u32> },
}

/// Plain content, some blocks at a time.
struct Source<'a> {
    content: Content<'a>,
    part: Vec<u8>,
    taken: usize,
}

enum Content<'a> {
    Stored(Box<StoredReader>),
    Memory(&'a [u8]),
}

impl Source<'_> {
    /// Makes sure that there are bytes to take, unless the content is at its end.
    fn fill(&mut self) -> Result<()> {
        if self.taken < self.part.len() {
            return Ok(());
        }
        self.taken = 0;
        self.part.resize(PART_BYTES, 0);
        let filled = match &mut self.content {
            Content::Stored(reader) => reader.fill(&mut self.part)?,
            Content::Memory(content) => {
                let (now, later) = content.split_at(content.len().min(PART_BYTES));
                self.part[..now.len()].copy_from_slice(now);
                *content = later;
                now.len()
            }
        };
        self.part.truncate(filled);
        Ok(())
    }
}

impl<'a> Blocks<'a> {
    /// Opens a file that is stored by itself.
    pub fn open(
        file: FileEntry<'a>,
        stored: &'a Place,
        coding: &Coding,
        segment_blocks: u32,
    ) -> Result<Blocks<'a>> {
        let reader = Box::new(StoredReader::open(stored, coding)?);
        Blocks::new(file, stored, Content::Stored(reader), segment_blocks)
    }

    /// A file whose content was read from a bundle.
    pub fn of_memory(
        file: FileEntry<'a>,
        content: &'a [u8],
        bundle: &'a Place,
        segment_blocks: u32,
    ) -> Result<Blocks<'a>> {
        Blocks::new(file, bundle, Content::Memory(content), segment_blocks)
    }

    fn new(
        file: FileEntry<'a>,
        stored: &'a Place,
        content: Content<'a>,
        segment_blocks: u32,
    ) -> Result<Blocks<'a>> {
        let damaged =
            |why: &str| Error::damage(format!("{stored} is damaged: {} {why}", file.path));
        let mut blocks = Blocks {
            file,
            stored,
            source: Source {
                content,
                part: Vec::new(),
                taken: 0,
            },
            size: 0,
            crc32c: 0,
            numbers: Numbers::All { next: 0, count: 0 },
        };
        blocks.numbers = match file.kind {
            FileKind::Whole if !file.size.is_multiple_of(PAGE_SIZE as u64) => {
                return Err(damaged("is no whole number of blocks"));
            }
            FileKind::Whole => Numbers::All {
                next: 0,
                count: (file.size / PAGE_SIZE as u64) as u32,
            },
            FileKind::Incremental { blocks: count, .. } => {
                let numbers = blocks.read_header(segment_blocks)?;
                if numbers.len() != count as usize {
                    return Err(damaged("holds other blocks than are listed"));
                }
                Numbers::Listed { next: 0, numbers }
            }
        };
        Ok(blocks)
    }

    fn read_header(&mut self, segment_blocks: u32) -> Result<Vec<u32>> {
        let damaged = |error: Error| error.context(format_args!("{} is damaged", self.stored));
        let mut reader = HeaderReader::new(self.file.size, segment_blocks);
        loop {
            self.source.fill()?;
            let part = &self.source.part[self.source.taken..];
            if part.is_empty() {
                return Err(damaged(Error::damage("its header is cut off")));
            }
            let complete = reader.push(part).map_err(damaged)?;
            let rest = complete.as_ref().map_or(0, |(_, rest)| rest.len());
            let taken = part.len() - rest;
            self.crc32c = crc32c::crc32c_append(self.crc32c, &part[..taken]);
            self.size += taken as u64;
            self.source.taken += taken;
            if let Some((header, _)) = complete {
                return Ok(header.blocks);
            }
        }
    }

    /// The file as it is listed.
    pub fn file(&self) -> FileEntry<'a> {
        self.file
    }

    /// The number of the next block.
    pub fn number(&self) -> Option<u32> {
        match &self.numbers {
            Numbers::All { next, count } => (next < count).then_some(*next),
            Numbers::Listed { next, numbers } => numbers.get(*next).copied(),
        }
    }

    /// The numbers of its blocks below `length`; none for a whole file, which has them all.
    pub fn listed_below(&self, length: u32) -> &[u32] {
        match &self.numbers {
            Numbers::All { .. } => &[],
            Numbers::Listed { numbers, .. } => {
                &numbers[..numbers.partition_point(|number| *number < length)]
            }
        }
    }

    /// The next block.
    pub fn take(&mut self) -> Result<&[u8]> {
        match &mut self.numbers {
            Numbers::All { next, .. } => *next += 1,
            Numbers::Listed { next, .. } => *next += 1,
        }
        self.source.fill()?;
        let source = &mut self.source;
        let end = source.taken + PAGE_SIZE;
        let Some(block) = source.part.get(source.taken..end) else {
            return Err(Error::damage(format!(
                "{} is damaged: {} is cut off",
                self.stored, self.file.path
            )));
        };
        source.taken = end;
        self.size += PAGE_SIZE as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, block);
        Ok(block)
    }

    /// Passes over all blocks before this number, and tells whether it is the next.
    pub fn advance_to(&mut self, number: u32) -> Result<bool> {
        while self.number().is_some_and(|next| next < number) {
            self.take()?;
        }
        Ok(self.number() == Some(number))
    }

    /// Reads what is left, and checks all.
    pub fn finish(mut self) -> Result<()> {
        loop {
            self.source.fill()?;
            let rest = &self.source.part[self.source.taken..];
            if rest.is_empty() {
                return check(self.file, self.size, self.crc32c, self.stored);
            }
            self.size += rest.len() as u64;
            self.crc32c = crc32c::crc32c_append(self.crc32c, rest);
            self.source.taken = self.source.part.len();
        }
    }
}

/// What came out must be what went in.
pub fn check(file: FileEntry<'_>, size: u64, crc32c: u32, stored: &Place) -> Result<()> {
    if (size, Crc32c(crc32c)) == (file.size, file.crc32c) {
        return Ok(());
    }
    Err(Error::damage(format!(
        "{stored} is damaged: {} does not fit its size or checksum",
        file.path
    )))
}
