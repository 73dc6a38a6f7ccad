//! The content of a block map: a WAL summary of PostgreSQL 17, and what that has no room for.
//!
//! ```text
//! the summary, which ends with a checksum of its own
//! u64  system identifier
//! u32  timeline; u64 start and u64 end of the WAL that all of this is of
//! u32  count of init forks that were made; for each:
//!        u32  tablespace, database, relfilenumber
//! u32  count of tablespaces that were created outside of the data directory; for each:
//!        u32  OID
//!        u64  where the record begins that says so
//!        u32  bytes of the path of its folder, and these
//! 20   the highest settings that the WAL tells of, as [`Limits`] has them
//! u64  where a server began to write with `wal_level = minimal`; 0 if it did not
//! u32  bytes from the system identifier to here
//! u32  CRC-32C of these bytes
//! 8    magic, the letters PGKEEPB2
//! ```
//!
//! Programs that read a summary stop where that ends. A map without the magic was made before there was all of that.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::BlockMap;
use crate::error::{Error, Result};
use crate::pg::changed_blocks::{ChangedBlocks, RelationFork, SummaryName};
use crate::pg::limits::Limits;
use crate::pg::little_endian::{u32_at, u64_at};
use crate::pg::lsn::{Lsn, Timeline};
use crate::pg::relation::Fork;
use crate::pg::wal::{CreatedTablespace, Creations};

const MAGIC: &[u8; 8] = b"PGKEEPB2";
/// The length and the checksum in front of the magic.
const LENGTH_AND_CHECKSUM: usize = 8;

impl BlockMap {
    /// The content of the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let BlockMap {
            name,
            system_identifier,
            changed,
            creations,
        } = self;
        let mut bytes = changed.to_bytes();
        let begin = bytes.len();
        bytes.extend(system_identifier.to_le_bytes());
        bytes.extend(name.timeline.0.to_le_bytes());
        bytes.extend(name.start.0.to_le_bytes());
        bytes.extend(name.end.0.to_le_bytes());
        bytes.extend((creations.init_forks.len() as u32).to_le_bytes());
        for fork in &creations.init_forks {
            for field in [fork.tablespace, fork.database, fork.relfilenumber] {
                bytes.extend(field.to_le_bytes());
            }
        }
        bytes.extend((creations.tablespaces.len() as u32).to_le_bytes());
        for CreatedTablespace { at, oid, folder } in &creations.tablespaces {
            let path = folder.as_os_str().as_bytes();
            bytes.extend(oid.to_le_bytes());
            bytes.extend(at.0.to_le_bytes());
            bytes.extend((path.len() as u32).to_le_bytes());
            bytes.extend(path);
        }
        for (_, limit) in creations.limits.settings() {
            bytes.extend(limit.to_le_bytes());
        }
        bytes.extend(creations.minimal.map_or(0, |at| at.0).to_le_bytes());
        let length = bytes.len() - begin;
        let checksum = crc32c::crc32c(&bytes[begin..]);
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend(checksum.to_le_bytes());
        bytes.extend(MAGIC);
        bytes
    }

    /// Reads the content of a file; nothing of one that was made before it said which WAL it is of.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<BlockMap>> {
        let Some(bytes) = bytes.strip_suffix(MAGIC) else {
            return Ok(None);
        };
        let damaged = |why: &str| Error::damage(format!("the block map is damaged: {why}"));
        let cut_off = || damaged("it is cut off");
        let (content, end) = split_off(bytes, LENGTH_AND_CHECKSUM).ok_or_else(cut_off)?;
        let (length, checksum) = (u32_at(end, 0), u32_at(end, 4));
        let (summary, own) = split_off(content, length as usize).ok_or_else(cut_off)?;
        if crc32c::crc32c(own) != checksum {
            return Err(damaged("its checksum does not fit its content"));
        }
        let mut own = Input(own);
        let map = own.map(ChangedBlocks::parse(summary)?);
        match map.filter(|_| own.0.is_empty()) {
            Some(map) => Ok(Some(map)),
            None => Err(damaged("an entry in it is impossible")),
        }
    }
}

/// The last bytes, and those before.
fn split_off(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(bytes.len().checked_sub(length)?)
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32_at(self.take(4)?, 0))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64_at(self.take(8)?, 0))
    }

    fn map(&mut self, changed: ChangedBlocks) -> Option<BlockMap> {
        let system_identifier = self.u64()?;
        let name = SummaryName {
            timeline: Timeline(self.u32()?),
            start: Lsn(self.u64()?),
            end: Lsn(self.u64()?),
        };
        let mut init_forks = BTreeSet::new();
        for _ in 0..self.u32()? {
            init_forks.insert(RelationFork {
                tablespace: self.u32()?,
                database: self.u32()?,
                relfilenumber: self.u32()?,
                fork: Fork::Init,
            });
        }
        let mut tablespaces = BTreeSet::new();
        for _ in 0..self.u32()? {
            let (oid, at) = (self.u32()?, Lsn(self.u64()?));
            let length = self.u32()? as usize;
            tablespaces.insert(CreatedTablespace {
                at,
                oid,
                folder: OsStr::from_bytes(self.take(length)?).into(),
            });
        }
        let limits = Limits::parse(self.take(Limits::BYTES)?.first_chunk()?);
        let minimal = Some(self.u64()?).filter(|at| *at > 0).map(Lsn);
        Some(BlockMap {
            name,
            system_identifier,
            changed,
            creations: Creations {
                tablespaces,
                init_forks,
                limits,
                minimal,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn example() -> BlockMap {
        let fork = |relfilenumber, fork| RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenumber,
            fork,
        };
        let mut changed = ChangedBlocks::new();
        changed.mark(fork(16_384, Fork::Main), 7);
        BlockMap {
            name: SummaryName {
                timeline: Timeline(2),
                start: Lsn(0x700_0028),
                end: Lsn(0x800_0028),
            },
            system_identifier: 7_710_982_562_572_587_380,
            changed,
            creations: Creations {
                tablespaces: [(16_390, "/srv/fast"), (16_391, "/srv/\u{e9}")]
                    .map(|(oid, folder)| CreatedTablespace {
                        at: Lsn(0x700_1000),
                        oid,
                        folder: folder.into(),
                    })
                    .into(),
                init_forks: [16_400, 16_401]
                    .map(|number| fork(number, Fork::Init))
                    .into(),
                limits: Limits::parse(&[7; Limits::BYTES]),
                minimal: Some(Lsn(0x700_2000)),
            },
        }
    }

    #[test]
    fn there_and_back() {
        let map = example();
        assert_eq!(BlockMap::parse(&map.to_bytes()).unwrap(), Some(map.clone()));
        let empty = BlockMap {
            creations: Creations::default(),
            ..map
        };
        let bytes = empty.to_bytes();
        // Whoever knows summaries alone finds one in front.
        assert!(bytes.starts_with(&empty.changed.to_bytes()));
        assert_eq!(BlockMap::parse(&bytes).unwrap(), Some(empty));
    }

    #[test]
    fn an_earlier_one_tells_nothing() {
        let earlier = example().changed.to_bytes();
        assert_eq!(BlockMap::parse(&earlier).unwrap(), None);
        assert_eq!(BlockMap::parse(b"").unwrap(), None);
    }

    #[test]
    fn finds_every_flipped_bit_and_every_cut() {
        let sound = example().to_bytes();
        let is_believed = |bytes: &[u8]| matches!(BlockMap::parse(bytes), Ok(Some(_)));
        assert!(is_believed(&sound));
        for bit in 0..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_believed(&bytes), "{bit}");
        }
        for length in 0..sound.len() {
            assert!(!is_believed(&sound[..length]), "{length}");
            let cut = [&sound[..length], MAGIC].concat();
            assert!(cut == sound || !is_believed(&cut), "{length}");
            assert!(!is_believed(&sound[sound.len() - length..]), "{length}");
        }
    }
}
