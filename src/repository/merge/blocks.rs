//! Two stored files of the same relation's segment, merged block by block.

use crate::error::Result;
use crate::parallel::Stop;
use crate::pg::incremental;
use crate::pg::page::PAGE_SIZE;
use crate::repository::blocks::Blocks;
use crate::repository::content_writer::ContentWriter;
use crate::repository::file_list::FileKind;

/// After how many blocks it is looked whether to stop.
const STOP_BLOCKS: usize = 64;

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
        let numbers = match older.file().kind {
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
