//! What the records of a stretch of WAL say of changed blocks
//! (postmaster/walsummarizer.c, SummarizeWAL).
//!
//! Every block that a record refers to has changed. Some records say more, in their
//! main data: that a relation was [made, truncated](StorageChange) or
//! [dropped](dropped_relations), or what [became of a database](DatabaseChange).
//!
//! The free space map is left out: WAL does not tell all that changes in it.
//!
//! With `wal_level = minimal` WAL does not even tell of all changed tables. What the
//! level is becomes known by these records of the WAL's own (catalog/pg_control.h,
//! access/xlog_internal.h):
//!
//! ```text
//! 0x60 parameters changed       i32 at 20
//! 0x00 shut down                i32 at 20, since 17
//! 0x90 recovered                i32 at 16, since 17
//! 0xE0 a checkpoint begins      i32 at 0, since 17
//! ```

use std::fmt;

use super::database::DatabaseChange;
use super::record::{OPERATION, Record, ResourceManager};
use super::relations::{StorageChange, dropped_relations};
use crate::error::Result;
use crate::pg::changed_blocks::{ChangedBlocks, RelationFork};
use crate::pg::little_endian::u32_at;
use crate::pg::lsn::Lsn;
use crate::pg::relation::Fork;
use crate::pg::version::Major;

/// Blocks of a table that a page of its visibility map has room for: two bits each,
/// in 8192 bytes but for a header of 24 (access/heap/visibilitymap.c,
/// HEAPBLOCKS_PER_PAGE).
const BLOCKS_PER_MAP_PAGE: u32 = (8192 - 24) * 4;

const CHECKPOINT_SHUTDOWN: u8 = 0x00;
const PARAMETER_CHANGE: u8 = 0x60;
const END_OF_RECOVERY: u8 = 0x90;
const CHECKPOINT_REDO: u8 = 0xE0;
const LEVEL_MINIMAL: u32 = 0;

/// Gathers what changed from record after record, in their order.
#[derive(Debug)]
pub struct Summarizer {
    major: Major,
    changed: ChangedBlocks,
    minimal: Option<MinimalWal>,
}

/// Why WAL does not tell what changed: it was written with `wal_level = minimal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinimalWal {
    /// The record that says so, the first of them.
    pub at: Lsn,
}

impl Summarizer {
    /// Knows of no record yet. The first must have been written with a `wal_level`
    /// above minimal, as is all WAL since the start of any backup until a record says
    /// otherwise.
    pub fn new(major: Major) -> Summarizer {
        Summarizer {
            major,
            changed: ChangedBlocks::new(),
            minimal: None,
        }
    }

    /// Takes the next record; an error if it is too short for what it is.
    pub fn record(&mut self, record: &Record<'_>) -> Result<()> {
        if record.resource_manager == ResourceManager::XLOG {
            self.level(record).ok_or_else(|| record.too_short())?;
        }
        if let Some(change) = StorageChange::of(record)? {
            self.storage(change);
        }
        dropped_relations(record, &mut |relation| {
            for fork in Fork::ALL {
                self.set_limit(relation, fork, 0);
            }
        })?;
        if let Some(change) = DatabaseChange::of(self.major, record)? {
            for folder in change.affected() {
                self.changed.recreate(folder.tablespace, folder.database);
            }
        }
        for reference in record.blocks {
            if reference.fork.fork != Fork::FreeSpaceMap {
                self.changed.mark(reference.fork, reference.block);
            }
        }
        Ok(())
    }

    /// What changed, unless the WAL does not tell that.
    pub fn finish(self) -> std::result::Result<ChangedBlocks, MinimalWal> {
        match self.minimal {
            Some(minimal) => Err(minimal),
            None => Ok(self.changed),
        }
    }

    fn level(&mut self, record: &Record<'_>) -> Option<()> {
        let offset = match record.info & OPERATION {
            PARAMETER_CHANGE => 20,
            CHECKPOINT_SHUTDOWN if self.major >= Major::V17 => 20,
            END_OF_RECOVERY if self.major >= Major::V17 => 16,
            CHECKPOINT_REDO => 0,
            _ => return Some(()),
        };
        let level = u32_at(record.main_data.get(offset..offset + 4)?, 0);
        if level == LEVEL_MINIMAL {
            self.minimal.get_or_insert(MinimalWal { at: record.start });
        }
        Some(())
    }

    fn storage(&mut self, change: StorageChange) {
        match change {
            StorageChange::Made(fork) => self.set_limit(fork, fork.fork, 0),
            StorageChange::Truncated {
                main,
                length,
                visible,
            } => {
                if let Some(length) = length {
                    self.set_limit(main, Fork::Main, length);
                }
                if let Some(length) = visible {
                    let pages = length.div_ceil(BLOCKS_PER_MAP_PAGE);
                    self.set_limit(main, Fork::VisibilityMap, pages);
                }
            }
        }
    }

    fn set_limit(&mut self, relation: RelationFork, fork: Fork, length: u32) {
        if fork != Fork::FreeSpaceMap {
            let fork = RelationFork { fork, ..relation };
            self.changed.set_limit(fork, length);
        }
    }
}

impl fmt::Display for MinimalWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the WAL at {} was written with wal_level = minimal, which does not tell what changed",
            self.at
        )
    }
}

impl std::error::Error for MinimalWal {}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::super::record::BlockReference;
    use super::*;

    const START: Lsn = Lsn(0x0700_0028);

    fn bytes(fields: &[u32]) -> Vec<u8> {
        fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect()
    }

    fn summarize(
        major: Major,
        records: &[(ResourceManager, u8, Vec<u8>)],
    ) -> std::result::Result<ChangedBlocks, MinimalWal> {
        let mut summarizer = Summarizer::new(major);
        for (resource_manager, info, main_data) in records {
            let record = Record {
                start: START,
                end: Lsn(0),
                resource_manager: *resource_manager,
                info: *info,
                xid: 0,
                blocks: &[],
                main_data,
                parts: &[],
            };
            summarizer.record(&record).unwrap();
        }
        summarizer.finish()
    }

    /// What one record sets: `tablespace/database/relation/fork: limit`.
    fn limits(major: Major, manager: ResourceManager, info: u8, fields: &[u32]) -> Vec<String> {
        let changed = summarize(major, &[(manager, info, bytes(fields))]).unwrap();
        let limits = changed.iter().map(|(fork, changes)| {
            assert!(changes.blocks.is_empty());
            let RelationFork {
                tablespace,
                database,
                relfilenumber,
                fork,
            } = fork;
            let (fork, limit) = (fork.number(), changes.limit.unwrap());
            format!("{tablespace}/{database}/{relfilenumber}/{fork}: {limit}")
        });
        limits.collect()
    }

    #[test]
    fn relations_come_and_shrink() {
        let storage =
            |info, fields: &[u32]| limits(Major::V18, ResourceManager::STORAGE, info, fields);
        assert_eq!(storage(0x10, &[1663, 5, 16_384, 0]), ["1663/5/16384/0: 0"]);
        assert_eq!(storage(0x11, &[1663, 5, 16_384, 3]), ["1663/5/16384/3: 0"]);
        assert!(storage(0x10, &[1663, 5, 16_384, 1]).is_empty());
        let truncated = |length, flags| storage(0x20, &[length, 1663, 5, 16_384, flags]);
        assert_eq!(truncated(7, 1), ["1663/5/16384/0: 7"]);
        assert!(truncated(7, 4).is_empty());
        for (length, pages) in [
            (0, 0),
            (1, 1),
            (32_672, 1),
            (32_673, 2),
            (u32::MAX - 1, 131_458),
        ] {
            let expected = [
                format!("1663/5/16384/0: {length}"),
                format!("1663/5/16384/2: {pages}"),
            ];
            assert_eq!(truncated(length, 7), expected);
        }
    }

    #[test]
    fn transactions_drop_relations() {
        let transaction =
            |info, fields: &[u32]| limits(Major::V14, ResourceManager::TRANSACTION, info, fields);
        let relations = [2, 1663, 5, 16_384, 16_390, 6, 16_385, 99];
        let all = [
            "1663/5/16384/0: 0",
            "1663/5/16384/2: 0",
            "1663/5/16384/3: 0",
            "16390/6/16385/0: 0",
            "16390/6/16385/2: 0",
            "16390/6/16385/3: 0",
        ];
        for operation in [0x80, 0xA0, 0xB0, 0xC0] {
            assert_eq!(
                transaction(operation, &[&[0, 0, 4][..], &relations].concat()),
                all
            );
        }
        let behind_others = [&[0, 0, 7, 5, 1663, 2, 701, 702][..], &relations].concat();
        assert_eq!(transaction(0x81, &behind_others), all);
        for (info, fields) in [
            (0x80, &[0, 0, 3, 5, 1663, 0][..]),
            (0x00, &[0, 0]),
            (0x20, &[0, 0]),
            (0x10, &[0, 0, 4]),
            (0x90, &[0, 0, 4, 1]),
            (0xE0, &[0, 0, 4, 1]),
        ] {
            assert!(transaction(info, fields).is_empty(), "{info:02X}");
        }
    }

    #[test]
    fn databases_come_and_go() {
        for major in Major::ALL {
            let database =
                |info, fields: &[u32]| limits(major, ResourceManager::DATABASE, info, fields);
            assert_eq!(database(0x00, &[6, 1663, 5, 1663]), ["1663/6/0/0: 0"]);
            let dropped = [6, 2, 16_390, 1663];
            let all = ["1663/6/0/0: 0", "16390/6/0/0: 0"];
            if major == Major::V14 {
                assert_eq!(database(0x10, &dropped), all);
                assert!(database(0x20, &dropped).is_empty());
            } else {
                assert_eq!(database(0x10, &[6, 16_390]), ["16390/6/0/0: 0"]);
                assert_eq!(database(0x20, &dropped), all);
            }
        }
    }

    #[test]
    fn minimal_wal_says_nothing() {
        let parameters = |level| {
            (
                ResourceManager::XLOG,
                0x60,
                bytes(&[100, 8, 10, 0, 64, level, 0]),
            )
        };
        let shut_down = |level| {
            (
                ResourceManager::XLOG,
                0x00,
                bytes(&[0, 0, 1, 1, 1, level, 0, 0]),
            )
        };
        let recovered = |level| (ResourceManager::XLOG, 0x90, bytes(&[0, 0, 2, 1, level]));
        let begins = |level| (ResourceManager::XLOG, 0xE0, bytes(&[level]));
        for major in Major::ALL {
            assert!(summarize(major, &[parameters(1), parameters(2)]).is_ok());
            let back_again = summarize(major, &[parameters(0), parameters(1)]);
            assert_eq!(back_again, Err(MinimalWal { at: START }));
            for record in [shut_down(0), recovered(0)] {
                assert_eq!(summarize(major, &[record]).is_err(), major >= Major::V17);
            }
        }
        assert!(summarize(Major::V17, &[begins(0)]).is_err());
        assert!(summarize(Major::V17, &[begins(1), shut_down(1), recovered(2)]).is_ok());
        // Others of the WAL's own records carry no level.
        assert!(
            summarize(
                Major::V18,
                &[(ResourceManager::XLOG, 0x10, bytes(&[0; 22]))]
            )
            .is_ok()
        );
    }

    #[test]
    fn blocks_are_marked_but_for_the_free_space_map() {
        let reference = |fork, block| BlockReference {
            fork: RelationFork {
                tablespace: 1663,
                database: 5,
                relfilenumber: 16_384,
                fork,
            },
            block,
            has_image: false,
            is_begun: false,
        };
        let blocks = [
            reference(Fork::Main, 3),
            reference(Fork::FreeSpaceMap, 4),
            reference(Fork::VisibilityMap, 5),
            reference(Fork::Init, 6),
        ];
        let truncated = bytes(&[3, 1663, 5, 16_384, 1]);
        let mut summarizer = Summarizer::new(Major::V16);
        let record = Record {
            start: START,
            end: Lsn(0),
            resource_manager: ResourceManager::STORAGE,
            info: 0x20,
            xid: 0,
            blocks: &blocks,
            main_data: &truncated,
            parts: &[],
        };
        summarizer.record(&record).unwrap();
        // What a record says of lengths comes before its blocks.
        let changed = summarizer.finish().unwrap();
        let changes: Vec<_> = changed
            .iter()
            .map(|(fork, changes)| (fork.fork, changes.limit, changes.blocks.min()))
            .collect();
        assert_eq!(
            changes,
            [
                (Fork::Main, Some(3), Some(3)),
                (Fork::VisibilityMap, None, Some(5)),
                (Fork::Init, None, Some(6)),
            ]
        );
    }

    proptest! {
        #[test]
        fn never_panics(
            major in prop::sample::select(&Major::ALL[..]),
            manager in 0..5_u8,
            info: u8,
            fields in prop::collection::vec(0..8_u32, 0..20),
            cut in 0..4_usize,
        ) {
            let mut main_data = bytes(&fields);
            main_data.truncate(main_data.len().saturating_sub(cut));
            let record = Record {
                start: START,
                end: Lsn(0),
                resource_manager: ResourceManager(manager),
                info,
                xid: 0,
                blocks: &[],
                main_data: &main_data,
                parts: &[],
            };
            let _ = Summarizer::new(major).record(&record);
        }
    }
}
