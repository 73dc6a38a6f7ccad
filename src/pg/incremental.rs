//! Incremental files: the blocks of a relation's segment that changed since an
//! earlier backup (backup/basebackup_incremental.c, backup/basebackup.c, sendFile;
//! bin/pg_combinebackup/reconstruct.c).
//!
//! ```text
//!  0  u32  magic                      0xd3ae1f0d
//!  4  u32  num_blocks                 at most a segment's
//!  8  u32  truncation_block_length    blocks that the file had; at most a segment's
//! 12  u32  block_numbers[num_blocks]  in the segment, ascending
//!     zeros up to a multiple of 8192 bytes, only where there are blocks
//!     8192 bytes a block, in the order of block_numbers
//! ```
//!
//! Without blocks the file has 12 bytes. Here every block lies below the length,
//! where PostgreSQL lets a block beyond it make the file longer.

use crate::error::{Error, Result};
use crate::pg::little_endian::u32_at;
use crate::pg::page::PAGE_SIZE;

/// What the name of an incremental file begins with.
const PREFIX: &str = "INCREMENTAL.";

const MAGIC: u32 = 0xd3ae_1f0d;

/// Bytes before the block numbers.
const FIXED_BYTES: usize = 12;

/// The path of the incremental file of a relation's segment: `base/5/16384.1` has
/// `base/5/INCREMENTAL.16384.1`.
pub fn file_path(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{PREFIX}{name}"),
        None => format!("{PREFIX}{path}"),
    }
}

/// Bytes of an incremental file of so many blocks, header included.
pub fn file_size(blocks: u32) -> u64 {
    header_size(blocks) as u64 + u64::from(blocks) * PAGE_SIZE as u64
}

/// Bytes before the first block.
fn header_size(blocks: u32) -> usize {
    let numbers = FIXED_BYTES + 4 * blocks as usize;
    match blocks {
        0 => numbers,
        _ => numbers.next_multiple_of(PAGE_SIZE),
    }
}

/// What comes before the blocks, padding included. `blocks` are the numbers of the blocks
/// in the segment, ascending and below `length`, the number of blocks that the file had.
pub fn header(blocks: &[u32], length: u32) -> Vec<u8> {
    let count = blocks.len() as u32;
    let mut header = Vec::with_capacity(header_size(count));
    for number in [MAGIC, count, length].iter().chain(blocks) {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.resize(header_size(count), 0);
    header
}

/// What the header of an incremental file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The numbers of its blocks in the segment, ascending, all below the length.
    pub blocks: Vec<u32>,
    /// The number of blocks that the file itself had.
    pub length: u32,
}

/// Reads the header of an incremental file from its bytes as they come.
pub struct HeaderReader {
    file_size: u64,
    segment_blocks: u32,
    taken: Vec<u8>,
}

impl HeaderReader {
    /// For a file of so many bytes, of a cluster whose segments have so many blocks.
    pub fn new(file_size: u64, segment_blocks: u32) -> HeaderReader {
        HeaderReader {
            file_size,
            segment_blocks,
            taken: Vec::new(),
        }
    }

    /// Takes the next bytes of the file. Once the header is complete it is returned, with those bytes
    /// that come after it; then there is nothing more to push. `None` asks for more bytes.
    pub fn push<'a>(&mut self, mut bytes: &'a [u8]) -> Result<Option<(Header, &'a [u8])>> {
        if !self.take(FIXED_BYTES, &mut bytes) {
            return Ok(None);
        }
        let count = self.count()?;
        if !self.take(header_size(count), &mut bytes) {
            return Ok(None);
        }
        Ok(Some((self.header(count)?, bytes)))
    }

    /// Moves bytes over until there are `wanted`; whether there are.
    fn take(&mut self, wanted: usize, bytes: &mut &[u8]) -> bool {
        let missing = wanted.saturating_sub(self.taken.len());
        let (taken, rest) = bytes.split_at(missing.min(bytes.len()));
        self.taken.extend_from_slice(taken);
        *bytes = rest;
        self.taken.len() >= wanted
    }

    /// The number of blocks, once the file can be believed to have so many.
    fn count(&self) -> Result<u32> {
        if u32_at(&self.taken, 0) != MAGIC {
            return Err(Error::damage("it is no incremental file"));
        }
        let count = u32_at(&self.taken, 4);
        if count > self.segment_blocks {
            return Err(Error::damage(format!(
                "it claims to have {count} blocks, and a segment has {}",
                self.segment_blocks
            )));
        }
        if file_size(count) != self.file_size {
            return Err(Error::damage(format!(
                "it claims to have {count} blocks, which make {} bytes, and has {} bytes",
                file_size(count),
                self.file_size
            )));
        }
        Ok(count)
    }

    fn header(&self, count: u32) -> Result<Header> {
        let length = u32_at(&self.taken, 8);
        if length > self.segment_blocks {
            return Err(Error::damage(format!(
                "it claims to be of a file of {length} blocks, and a segment has {}",
                self.segment_blocks
            )));
        }
        let end = FIXED_BYTES + 4 * count as usize;
        let (numbers, _) = self.taken[FIXED_BYTES..end].as_chunks::<4>();
        let blocks: Vec<u32> = numbers
            .iter()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .collect();
        if !blocks.is_sorted_by(|one, next| one < next) {
            return Err(Error::damage("its block numbers do not ascend"));
        }
        if let Some(last) = blocks.last().filter(|last| **last >= length) {
            return Err(Error::damage(format!(
                "it holds block {last} of a file of {length} blocks"
            )));
        }
        if self.taken[end..].iter().any(|byte| *byte != 0) {
            return Err(Error::damage("its header is not padded with zeros"));
        }
        Ok(Header { blocks, length })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SEGMENT_BLOCKS: u32 = 131_072;

    /// Reads a header given in parts of up to `part` bytes; the rest of the file, where it is complete.
    fn read(bytes: &[u8], size: u64, part: usize) -> Result<Option<(Header, Vec<u8>)>> {
        let mut reader = HeaderReader::new(size, SEGMENT_BLOCKS);
        let mut parts = bytes.chunks(part);
        while let Some(part) = parts.next() {
            if let Some((header, rest)) = reader.push(part)? {
                let rest = [rest, &parts.collect::<Vec<_>>().concat()].concat();
                return Ok(Some((header, rest)));
            }
        }
        Ok(None)
    }

    fn complete(bytes: &[u8]) -> Result<Header> {
        read(bytes, bytes.len() as u64, bytes.len()).map(|read| read.unwrap().0)
    }

    fn fault(bytes: &[u8]) -> String {
        complete(bytes).unwrap_err().message().to_owned()
    }

    #[test]
    fn a_file_lies_beside_the_one_it_is_of() {
        assert_eq!(file_path("base/5/16384.1"), "base/5/INCREMENTAL.16384.1");
        assert_eq!(file_path("16384"), "INCREMENTAL.16384");
    }

    #[test]
    fn a_file_without_blocks_has_twelve_bytes() {
        assert_eq!(
            header(&[], 7),
            [0x0d, 0x1f, 0xae, 0xd3, 0, 0, 0, 0, 7, 0, 0, 0]
        );
        assert_eq!(file_size(0), 12);
    }

    #[test]
    fn the_header_fills_whole_blocks() {
        // As many numbers as fit beside the fixed bytes, and one more.
        assert_eq!(file_size(1), 2 * 8192);
        assert_eq!(file_size(2045), 2046 * 8192);
        assert_eq!(file_size(2046), 2048 * 8192);
        assert_eq!(header(&[3, 9], 10).len(), 8192);
    }

    #[test]
    fn what_no_backup_writes_is_refused() {
        let whole = |blocks: &[u32], length| {
            let mut file = header(blocks, length);
            file.resize(file_size(blocks.len() as u32) as usize, 0x55);
            file
        };
        assert!(complete(&whole(&[0, 9], 10)).is_ok());
        assert!(fault(&whole(&[9, 0], 10)).contains("ascend"));
        assert!(fault(&whole(&[9, 9], 10)).contains("ascend"));
        assert!(fault(&whole(&[0, 10], 10)).contains("block 10"));
        assert!(fault(&whole(&[], SEGMENT_BLOCKS + 1)).contains("131073"));
        assert!(complete(&whole(&[], SEGMENT_BLOCKS)).is_ok());
        let mut file = whole(&[0, 9], 10);
        file[4] = 3;
        assert!(fault(&file).contains("3 blocks"));
        file[4] = 2;
        file[0] = 0;
        assert!(fault(&file).contains("no incremental file"));
        let mut file = whole(&[0, 9], 10);
        file[8191] = 1;
        assert!(fault(&file).contains("zeros"));
        let mut file = whole(&[0, 9], 10);
        file.push(0);
        assert!(fault(&file).contains("24577 bytes"));
    }

    proptest! {
        #[test]
        fn a_header_comes_back(
            blocks in prop::collection::btree_set(0..SEGMENT_BLOCKS, 0..5000),
            above in 0_u32..100,
            part in prop::sample::select(vec![1, 5, 12, 13, 8192, 100_000]),
            rest in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let blocks: Vec<u32> = BTreeSet::into_iter(blocks).collect();
            let longest = blocks.last().map_or(0, |last| last + 1);
            let length = (longest + above).min(SEGMENT_BLOCKS);
            let bytes = [header(&blocks, length), rest.clone()].concat();
            let size = file_size(blocks.len() as u32);
            let read = read(&bytes, size, part).unwrap();
            prop_assert_eq!(read, Some((Header { blocks, length }, rest)));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(
            count in 0_u32..20,
            mut bytes in prop::collection::vec(any::<u8>(), 0..9000),
            is_magic: bool,
        ) {
            if is_magic && bytes.len() >= 8 {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[4..8].copy_from_slice(&count.to_le_bytes());
            }
            let _ = read(&bytes, file_size(count), 1000);
        }

        #[test]
        fn a_cut_header_is_not_complete(
            blocks in prop::collection::btree_set(0..1000_u32, 0..10),
            cut in 1_usize..9000,
        ) {
            let blocks: Vec<u32> = BTreeSet::into_iter(blocks).collect();
            let bytes = header(&blocks, 1000);
            let left = bytes.len().saturating_sub(cut);
            let size = file_size(blocks.len() as u32);
            prop_assert_eq!(read(&bytes[..left], size, 500).unwrap(), None);
        }
    }
}
