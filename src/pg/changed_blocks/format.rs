//! WAL summary files (common/blkreftable.c, WriteBlockRefTable).
//!
//! ```text
//! u32  magic  0x652B137B
//! for each fork, in ascending order of its first four fields:
//!   u32  tablespace
//!   u32  database
//!   u32  relfilenumber
//!   i32  fork
//!   u32  limit                   0xFFFFFFFF for none
//!   u32  chunks                  of 65536 blocks each
//!   u16  usage[chunks]
//!   for each chunk, u16 words, as many as its usage:
//!     a usage below 4096         offsets in the chunk, in any order
//!     a usage of 4096            a bit a block, the lowest bit first
//! 24 zero bytes, where another fork could be
//! u32  CRC-32C of all bytes before it
//! ```

use roaring::RoaringBitmap;

use super::{ChangedBlocks, ForkChanges, RelationFork};
use crate::error::{Error, Result};
use crate::pg::little_endian::{u16_at, u32_at};
use crate::pg::relation::Fork;

const MAGIC: u32 = 0x652B_137B;
const NO_LIMIT: u32 = u32::MAX;

/// Bytes in front of a fork's chunks.
const FORK_HEADER: usize = 24;
const CHECKSUM: usize = 4;

const BLOCKS_PER_CHUNK: u32 = 1 << 16;
/// Words in a chunk's bitmap; with fewer blocks than this it is a list.
const BITMAP_WORDS: usize = 4096;
const WORD: usize = 2;

impl ChangedBlocks {
    /// Reads the content of a summary file, its checksum first.
    pub fn parse(bytes: &[u8]) -> Result<ChangedBlocks> {
        if bytes.len() < WORD * 2 || u32_at(bytes, 0) != MAGIC {
            return Err(damaged("it does not begin as one"));
        }
        if bytes.len() < 4 + FORK_HEADER + CHECKSUM {
            return Err(damaged("it is cut off"));
        }
        let (covered, checksum) = bytes.split_at(bytes.len() - CHECKSUM);
        let (expected, found) = (crc32c::crc32c(covered), u32_at(checksum, 0));
        if expected != found {
            return Err(damaged(format!(
                "its checksum is {found:08X} where {expected:08X} fits its content"
            )));
        }
        let (forks, end) = covered[4..].split_at(covered.len() - 4 - FORK_HEADER);
        if end != [0; FORK_HEADER] {
            return Err(damaged("it does not end as one"));
        }
        let mut forks = Input(forks);
        let mut changed = ChangedBlocks::new();
        while !forks.0.is_empty() {
            let (fork, changes) = forks
                .fork()
                .ok_or_else(|| damaged("an entry in it is impossible"))?;
            let last = changed.forks.last_key_value();
            if last.is_some_and(|(last, _)| *last >= fork) {
                return Err(damaged("its entries are out of order"));
            }
            changed.forks.insert(fork, changes);
        }
        Ok(changed)
    }

    /// The content of a summary file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        for (fork, changes) in &self.forks {
            write_fork(&mut bytes, fork, changes);
        }
        bytes.extend_from_slice(&[0; FORK_HEADER]);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// What is left to read. Nothing comes of what PostgreSQL never writes.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(taken)
    }

    fn fork(&mut self) -> Option<(RelationFork, ForkChanges)> {
        let header = self.take(FORK_HEADER)?;
        // PostgreSQL would take it for the end.
        if header == [0; FORK_HEADER] {
            return None;
        }
        let fork = RelationFork {
            tablespace: u32_at(header, 0),
            database: u32_at(header, 4),
            relfilenumber: u32_at(header, 8),
            fork: u8::try_from(u32_at(header, 12))
                .ok()
                .and_then(Fork::from_number)?,
        };
        let limit = Some(u32_at(header, 16)).filter(|limit| *limit != NO_LIMIT);
        let chunks = u32_at(header, 20);
        if chunks > u32::MAX / BLOCKS_PER_CHUNK + 1 {
            return None;
        }
        let usages = self.take(chunks as usize * WORD)?;
        let mut blocks = RoaringBitmap::new();
        for (chunk, usage) in (0..chunks).zip(words(usages)) {
            let usage = usize::from(usage);
            let first = chunk * BLOCKS_PER_CHUNK;
            let content = self.take(usage * WORD)?;
            match usage {
                BITMAP_WORDS => blocks |= RoaringBitmap::from_lsb0_bytes(first, content),
                0..BITMAP_WORDS => {
                    blocks.extend(words(content).map(|offset| first + u32::from(offset)));
                }
                _ => return None,
            }
        }
        Some((fork, ForkChanges { limit, blocks }))
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(WORD).map(|word| u16_at(word, 0))
}

fn write_fork(bytes: &mut Vec<u8>, fork: &RelationFork, changes: &ForkChanges) {
    let ForkChanges { limit, blocks } = changes;
    let chunks = blocks.max().map_or(0, |block| block / BLOCKS_PER_CHUNK + 1);
    for field in [
        fork.tablespace,
        fork.database,
        fork.relfilenumber,
        u32::from(fork.fork.number()),
        limit.unwrap_or(NO_LIMIT),
        chunks,
    ] {
        bytes.extend_from_slice(&field.to_le_bytes());
    }
    let chunk_blocks = |chunk| {
        let first = chunk * BLOCKS_PER_CHUNK;
        first..=first + (BLOCKS_PER_CHUNK - 1)
    };
    let usage = |chunk| (blocks.range_cardinality(chunk_blocks(chunk)) as usize).min(BITMAP_WORDS);
    for chunk in 0..chunks {
        bytes.extend_from_slice(&(usage(chunk) as u16).to_le_bytes());
    }
    for chunk in 0..chunks {
        let offsets = blocks
            .range(chunk_blocks(chunk))
            .map(|block| (block % BLOCKS_PER_CHUNK) as usize);
        if usage(chunk) == BITMAP_WORDS {
            let start = bytes.len();
            bytes.resize(start + BITMAP_WORDS * WORD, 0);
            offsets.for_each(|offset| bytes[start + offset / 8] |= 1 << (offset % 8));
        } else {
            offsets.for_each(|offset| bytes.extend_from_slice(&(offset as u16).to_le_bytes()));
        }
    }
}

fn damaged(why: impl std::fmt::Display) -> Error {
    Error::damage(format!("the WAL summary is damaged: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::tests::fork;
    use super::*;

    fn changes() -> impl Strategy<Value = ForkChanges> {
        // Scattered blocks, runs that make bitmaps, and the last of all blocks.
        let run = (any::<u32>(), prop_oneof![Just(1_u32), 1..10_000_u32]);
        let near = (0..140_000_u32, prop_oneof![Just(1_u32), 4000..4200_u32]);
        let last = Just((u32::MAX - 5000, 5000));
        let runs = prop::collection::vec(prop_oneof![near, run, last], 0..4);
        (any::<Option<u32>>(), runs).prop_map(|(limit, runs)| {
            let mut blocks = RoaringBitmap::new();
            for (first, length) in runs {
                blocks.insert_range(first..=first.saturating_add(length - 1));
            }
            let limit = limit.filter(|limit| *limit != NO_LIMIT);
            ForkChanges { limit, blocks }
        })
    }

    fn changed() -> impl Strategy<Value = ChangedBlocks> {
        let fork = (0..3_u32, 0..3_u32, 0..9_u32, 0..4_u8).prop_map(
            |(tablespace, database, relfilenumber, fork)| RelationFork {
                tablespace: tablespace + 1663,
                database,
                relfilenumber,
                fork: Fork::from_number(fork).unwrap(),
            },
        );
        prop::collection::btree_map(fork, changes(), 0..4).prop_map(|forks| ChangedBlocks { forks })
    }

    #[test]
    fn writes_the_documented_bytes() {
        let mut changed = ChangedBlocks::new();
        assert_eq!(changed.to_bytes().len(), 32);
        changed.mark(fork(16_384), 7);
        changed.mark(fork(16_384), 0x2_0003);
        let mut expected = Vec::new();
        expected.extend(0x652B_137B_u32.to_le_bytes());
        for field in [1663, 5, 16_384, 0, u32::MAX, 3] {
            expected.extend(u32::to_le_bytes(field));
        }
        for word in [1, 0, 1, 7, 3] {
            expected.extend(u16::to_le_bytes(word));
        }
        expected.extend([0; 24]);
        expected.extend(crc32c::crc32c(&expected).to_le_bytes());
        assert_eq!(changed.to_bytes(), expected);

        for block in 0..4096 {
            changed.mark(fork(16_384), block * 16);
        }
        let bytes = changed.to_bytes();
        assert_eq!(bytes[28..34], [0, 16, 0, 0, 1, 0]);
        assert_eq!(bytes[34..36], [0b1000_0001, 0]);
        assert_eq!(bytes[36..38], [1, 0]);
        assert_eq!(bytes.len(), 34 + 8192 + 2 + 24 + 4);
    }

    /// A file whose checksum is right, whatever else is wrong.
    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM);
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn refuses_what_postgresql_never_writes() {
        let mut changed = ChangedBlocks::new();
        changed.mark(fork(1), 7);
        changed.mark(fork(2), 7);
        let sound = changed.to_bytes();
        let refusal = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = sound.clone();
            change(&mut bytes);
            ChangedBlocks::parse(&with_checksum(bytes))
                .unwrap_err()
                .message()
                .to_owned()
        };
        for (change, why) in [
            (
                &(|bytes: &mut Vec<u8>| bytes[0] ^= 1) as &dyn Fn(&mut Vec<u8>),
                "begin",
            ),
            (&|bytes| bytes.truncate(31), "cut off"),
            (&|bytes| bytes[4 + 12] = 4, "impossible"),
            (&|bytes| bytes[4 + 13] = 1, "impossible"),
            (&|bytes| bytes[4 + 22] = 1, "impossible"),
            (&|bytes| bytes[4 + 20..4 + 24].fill(0xFF), "impossible"),
            (
                &|bytes| bytes[28..30].copy_from_slice(&[1, 0x10]),
                "impossible",
            ),
            (
                &|bytes| {
                    let length = bytes.len();
                    bytes[length - 8] = 1;
                },
                "end",
            ),
            (&|bytes| bytes[4..28].fill(0), "impossible"),
            (&|bytes| bytes[12] = 2, "out of order"),
            (&|bytes| bytes[12] = 3, "out of order"),
            (&|bytes| bytes.extend([0; 1]), "end"),
            (
                &|bytes| {
                    bytes.splice(4..4, [0; 24]);
                },
                "impossible",
            ),
        ] {
            let message = refusal(change);
            assert!(message.contains(why), "{why}: {message}");
        }
    }

    #[test]
    fn finds_every_flipped_bit_and_every_cut() {
        let mut changed = ChangedBlocks::new();
        changed.mark(fork(1), 7);
        changed.set_limit(fork(2), 70_000);
        let sound = changed.to_bytes();
        assert_eq!(ChangedBlocks::parse(&sound).unwrap(), changed);
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(ChangedBlocks::parse(&bytes).is_err(), "{bit}");
        }
        for length in 0..sound.len() {
            assert!(ChangedBlocks::parse(&sound[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #![proptest_config(crate::chance::cases(86))]

        #[test]
        fn there_and_back(changed in changed()) {
            prop_assert_eq!(ChangedBlocks::parse(&changed.to_bytes()).unwrap(), changed);
        }

        #[test]
        fn never_panics(mut bytes: Vec<u8>, magic: bool) {
            bytes.resize(bytes.len() + 32, 0);
            if magic {
                bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            }
            let _ = ChangedBlocks::parse(&with_checksum(bytes));
        }

        #[test]
        fn never_panics_on_changed_bytes(
            changed in changed(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut bytes = changed.to_bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = ChangedBlocks::parse(&with_checksum(bytes));
        }
    }
}
