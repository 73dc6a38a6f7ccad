//! Putting a file together from the blocks that several backups hold.
//!
//! The newest come first, and each block is written once, to its place: what has been written is not
//! taken from an older backup any more.

use std::sync::LazyLock;

use crate::error::Result;
use crate::pg::incremental::HeaderReader;
use crate::pg::page::PAGE_SIZE;
use crate::repository::chain::{Base, Layer};
use crate::repository::file_list::Crc32c;
use crate::restore::target_file::TargetFile;
use crate::storage::Place;

type Block = [u8; PAGE_SIZE];

/// What is kept from one rebuilt file to the next. One a worker.
#[derive(Default)]
pub(super) struct Rebuilder {
    /// Of each block of the file that has been written, its checksum: 1 MiB for a segment.
    checksums: Vec<Option<u32>>,
}

impl Rebuilder {
    /// Begins a file of so many bytes, whole blocks; all of them are zeros until others are taken.
    pub(super) fn begin<'a, 't>(
        &'a mut self,
        target: &'a mut TargetFile<'t>,
        size: u64,
    ) -> Result<Rebuild<'a, 't>> {
        target.set_length(size)?;
        self.checksums.clear();
        self.checksums.resize(size as usize / PAGE_SIZE, None);
        Ok(Rebuild {
            checksums: &mut self.checksums,
            target,
        })
    }
}

/// A file that is being put together.
pub(super) struct Rebuild<'a, 't> {
    checksums: &'a mut [Option<u32>],
    target: &'a mut TargetFile<'t>,
}

impl<'a, 't> Rebuild<'a, 't> {
    /// Takes an incremental file, the newest first; its content follows. A segment has so many blocks.
    pub(super) fn layer<'r>(
        &'r mut self,
        layer: &Layer,
        segment_blocks: u32,
        stored: &'r Place,
    ) -> Source<'r, 'a, 't> {
        let header = HeaderReader::new(layer.size(), segment_blocks);
        self.source(Numbers::Header(header, stored), layer.limit)
    }

    /// Takes the whole file, last; its content follows.
    pub(super) fn base<'r>(&'r mut self, base: &Base) -> Source<'r, 'a, 't> {
        self.source(Numbers::All, base.limit)
    }

    fn source<'r>(&'r mut self, numbers: Numbers<'r>, limit: u32) -> Source<'r, 'a, 't> {
        Source {
            rebuild: self,
            numbers,
            limit,
            blocks: 0,
            size: 0,
            crc32c: 0,
        }
    }

    /// The checksum of the whole file, and how many bytes no backup had, which are zeros.
    pub(super) fn finish(self) -> Result<(Crc32c, u64)> {
        let zero_block = crc32c::crc32c(&[0; PAGE_SIZE]);
        let (mut crc32c, mut zeros) = (0, 0);
        for (number, checksum) in self.checksums.iter().enumerate() {
            if checksum.is_none() {
                self.target.zero_page((number * PAGE_SIZE) as u64)?;
                zeros += PAGE_SIZE as u64;
            }
            crc32c = JOINED.with(crc32c, checksum.unwrap_or(zero_block));
        }
        Ok((Crc32c(crc32c), zeros))
    }
}

/// A stored file that blocks are taken from, as its plain content comes.
pub(super) struct Source<'r, 'a, 't> {
    rebuild: &'r mut Rebuild<'a, 't>,
    numbers: Numbers<'r>,
    /// Blocks count below this number.
    limit: u32,
    /// How many have come.
    blocks: usize,
    size: u64,
    crc32c: u32,
}

/// Which blocks a stored file holds.
enum Numbers<'r> {
    /// All, from the first one on.
    All,
    /// Those of the header of this stored file, which is not complete yet.
    Header(HeaderReader, &'r Place),
    /// Those that its header named.
    Listed(Vec<u32>),
}

impl Source<'_, '_, '_> {
    /// Takes the next bytes: whole blocks, but for the last; returns how many bytes of the file were written.
    pub(super) fn take(&mut self, part: &[u8]) -> Result<u64> {
        self.size += part.len() as u64;
        self.rebuild.target.note_fetched(part.len());
        let mut rest = part;
        if let Numbers::Header(header, stored) = &mut self.numbers {
            let complete = header
                .push(part)
                .map_err(|error| error.context(format_args!("{} is damaged", stored)))?;
            rest = complete.as_ref().map_or(&[], |(_, rest)| rest);
            let header = &part[..part.len() - rest.len()];
            self.crc32c = crc32c::crc32c_append(self.crc32c, header);
            if let Some((header, _)) = complete {
                self.numbers = Numbers::Listed(header.blocks);
            }
        }
        let (blocks, odd) = rest.as_chunks();
        let written = self.take_blocks(blocks)?;
        self.crc32c = crc32c::crc32c_append(self.crc32c, odd);
        Ok(written)
    }

    /// Writes those blocks that no newer backup had, neighbours at once.
    fn take_blocks(&mut self, blocks: &[Block]) -> Result<u64> {
        let mut written = 0;
        let mut run = Run::default();
        for (place, block) in blocks.iter().enumerate() {
            let checksum = crc32c::crc32c(block);
            self.crc32c = JOINED.with(self.crc32c, checksum);
            let number = self.next_number();
            let missing = number
                .and_then(|number| self.rebuild.checksums.get_mut(number as usize))
                .filter(|known| known.is_none());
            if let (Some(number), Some(missing)) = (number, missing) {
                *missing = Some(checksum);
                if !run.is_followed_by(place, number) {
                    written += self.rebuild.write(blocks, &run)?;
                    run = Run {
                        place,
                        number,
                        length: 0,
                    };
                }
                run.length += 1;
            }
        }
        written += self.rebuild.write(blocks, &run)?;
        Ok(written)
    }

    /// The number of the next block, where it is one that counts.
    fn next_number(&mut self) -> Option<u32> {
        let number = match &self.numbers {
            Numbers::All => u32::try_from(self.blocks).ok(),
            Numbers::Header(..) => None,
            Numbers::Listed(numbers) => numbers.get(self.blocks).copied(),
        };
        self.blocks += 1;
        number.filter(|number| *number < self.limit)
    }

    /// How many bytes came, and their checksum.
    pub(super) fn finish(self) -> (u64, Crc32c) {
        (self.size, Crc32c(self.crc32c))
    }
}

/// Blocks that are neighbours in what was read and in the file.
#[derive(Default)]
struct Run {
    /// Of the first one, in what was read.
    place: usize,
    /// Of the first one, in the file.
    number: u32,
    length: usize,
}

impl Run {
    fn is_followed_by(&self, place: usize, number: u32) -> bool {
        self.place + self.length == place && self.number as usize + self.length == number as usize
    }
}

impl Rebuild<'_, '_> {
    /// Writes a run of these blocks; returns its bytes.
    fn write(&mut self, blocks: &[Block], run: &Run) -> Result<u64> {
        let bytes = blocks[run.place..][..run.length].as_flattened();
        self.target
            .write_at(bytes, u64::from(run.number) * PAGE_SIZE as u64)?;
        Ok(bytes.len() as u64)
    }
}

/// Joins the CRC-32C of blocks to that of all of them one after the other.
///
/// A CRC is linear: each of its bytes has its share in what the CRC becomes when a block of zeros
/// follows, so four tables of 4 KiB in all do what `crc32c_combine` takes microseconds for.
struct Joined {
    shares: [[u32; 256]; 4],
}

static JOINED: LazyLock<Joined> = LazyLock::new(Joined::new);

impl Joined {
    fn new() -> Joined {
        let bits: Vec<u32> = (0..32)
            .map(|bit| crc32c::crc32c_combine(1 << bit, 0, PAGE_SIZE))
            .collect();
        let share = |place: usize, byte: usize| {
            let set = (0..8).filter(|bit| byte >> bit & 1 == 1);
            set.fold(0, |sum, bit| sum ^ bits[8 * place + bit])
        };
        Joined {
            shares: std::array::from_fn(|place| std::array::from_fn(|byte| share(place, byte))),
        }
    }

    /// The checksum of what has the checksum `before`, and a block behind it.
    fn with(&self, before: u32, block: u32) -> u32 {
        let bytes = before.to_le_bytes();
        let shares = self.shares.iter().zip(bytes);
        shares.fold(block, |sum, (share, byte)| sum ^ share[usize::from(byte)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_checksums_of_blocks_make_that_of_the_whole(seeds in prop::collection::vec(any::<u8>(), 0..6)) {
            let blocks: Vec<Block> = seeds
                .iter()
                .map(|seed| std::array::from_fn(|index| (index as u8).wrapping_mul(*seed)))
                .collect();
            let sum = blocks
                .iter()
                .fold(0, |before, block| JOINED.with(before, crc32c::crc32c(block)));
            prop_assert_eq!(sum, crc32c::crc32c(blocks.as_flattened()));
        }
    }
}
