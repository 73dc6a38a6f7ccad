//! Two stored files of the same relation's segment, merged block by block.

use std::path::Path;

use crate::error::{Error, Result};
use crate::lifecycle::merge::content::{ContentWriter, PART_BYTES, check};
use crate::parallel::Stop;
use crate::pg::incremental::{self, HeaderReader};
use crate::pg::page::PAGE_SIZE;
use crate::repository::file_list::{FileEntry, FileKind};
use crate::stored::coding::Coding;
use crate::stored::reader::StoredReader;

/// After how many blocks it is looked whether to stop.
const STOP_BLOCKS: usize = 64;

/// The blocks that a stored file holds, in the order of their numbers.
pub(super) struct Blocks<'a> {
    file: &'a FileEntry,
    stored: &'a Path,
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
    pub(super) fn open(
        file: &'a FileEntry,
        stored: &'a Path,
        coding: &Coding,
        segment_blocks: u32,
    ) -> Result<Blocks<'a>> {
        let reader = Box::new(StoredReader::open(stored, coding)?);
        Blocks::new(file, stored, Content::Stored(reader), segment_blocks)
    }

    /// A file whose content was read from a bundle.
    pub(super) fn of_memory(
        file: &'a FileEntry,
        content: &'a [u8],
        bundle: &'a Path,
        segment_blocks: u32,
    ) -> Result<Blocks<'a>> {
        Blocks::new(file, bundle, Content::Memory(content), segment_blocks)
    }

    fn new(
        file: &'a FileEntry,
        stored: &'a Path,
        content: Content<'a>,
        segment_blocks: u32,
    ) -> Result<Blocks<'a>> {
        let damaged = |why: &str| {
            Error::damage(format!(
                "{} is damaged: {} {why}",
                stored.display(),
                file.path
            ))
        };
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
        let damaged =
            |error: Error| error.context(format_args!("{} is damaged", self.stored.display()));
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

    /// The number of the next block.
    fn number(&self) -> Option<u32> {
        match &self.numbers {
            Numbers::All { next, count } => (next < count).then_some(*next),
            Numbers::Listed { next, numbers } => numbers.get(*next).copied(),
        }
    }

    /// The numbers of its blocks below `length`; none for a whole file, which has them all.
    fn listed_below(&self, length: u32) -> &[u32] {
        match &self.numbers {
            Numbers::All { .. } => &[],
            Numbers::Listed { numbers, .. } => {
                &numbers[..numbers.partition_point(|number| *number < length)]
            }
        }
    }

    /// The next block.
    fn take(&mut self) -> Result<&[u8]> {
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
                self.stored.display(),
                self.file.path
            )));
        };
        source.taken = end;
        self.size += PAGE_SIZE as u64;
        self.crc32c = crc32c::crc32c_append(self.crc32c, block);
        Ok(block)
    }

    /// Passes over all blocks before this number, and tells whether it is the next.
    fn advance_to(&mut self, number: u32) -> Result<bool> {
        while self.number().is_some_and(|next| next < number) {
            self.take()?;
        }
        Ok(self.number() == Some(number))
    }

    /// Reads what is left, and checks all.
    fn finish(mut self) -> Result<()> {
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

/// What the merged backup holds of a file: the newer blocks, the older ones where there are no newer, and zeros for what
/// neither has though the file was that long.
pub(super) struct Merged<'a> {
    older: Blocks<'a>,
    newer: Option<Blocks<'a>>,
    /// The blocks that the file has.
    length: u32,
    /// Which of them are stored; `None` for all.
    numbers: Option<Vec<u32>>,
}

impl<'a> Merged<'a> {
    /// Of a file that had so many bytes in the newer backup, whole blocks.
    pub(super) fn new(older: Blocks<'a>, newer: Option<Blocks<'a>>, bytes: u64) -> Merged<'a> {
        let length = (bytes / PAGE_SIZE as u64) as u32;
        let numbers = match older.file.kind {
            FileKind::Whole => None,
            FileKind::Incremental { length: before, .. } => {
                let newer = newer
                    .as_ref()
                    .map_or(&[][..], |newer| newer.listed_below(length));
                let mut numbers: Vec<u32> = older
                    .listed_below(length)
                    .iter()
                    .chain(newer)
                    .copied()
                    // What lies beyond the older length was not there, whatever still older backups hold.
                    .chain(before..length)
                    .collect();
                numbers.sort_unstable();
                numbers.dedup();
                Some(numbers)
            }
        };
        Merged {
            older,
            newer,
            length,
            numbers,
        }
    }

    /// How much of the file that is.
    pub(super) fn kind(&self) -> FileKind {
        match &self.numbers {
            None => FileKind::Whole,
            Some(numbers) => FileKind::Incremental {
                blocks: numbers.len() as u32,
                length: self.length,
            },
        }
    }

    /// Writes it.
    pub(super) fn write(mut self, writer: &mut ContentWriter, stop: &Stop<'_>) -> Result<()> {
        match self.numbers.take() {
            None => self.write_blocks(0..self.length, writer, stop)?,
            Some(numbers) => {
                writer.push(&incremental::header(&numbers, self.length))?;
                self.write_blocks(numbers.into_iter(), writer, stop)?;
            }
        }
        self.older.finish()?;
        self.newer.map_or(Ok(()), Blocks::finish)
    }

    fn write_blocks(
        &mut self,
        numbers: impl Iterator<Item = u32>,
        writer: &mut ContentWriter,
        stop: &Stop<'_>,
    ) -> Result<()> {
        let zeros = [0; PAGE_SIZE];
        for (done, number) in numbers.enumerate() {
            if done.is_multiple_of(STOP_BLOCKS) {
                stop.check()?;
            }
            if let Some(newer) = &mut self.newer
                && newer.advance_to(number)?
            {
                writer.push(newer.take()?)?;
            } else if self.older.advance_to(number)? {
                writer.push(self.older.take()?)?;
            } else {
                writer.push(&zeros)?;
            }
        }
        Ok(())
    }
}
