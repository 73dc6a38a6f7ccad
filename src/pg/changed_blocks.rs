//! Which blocks of which relations changed in a stretch of WAL: what PostgreSQL 17
//! calls a WAL summary, and its source a block reference table
//! (common/blkreftable.c).
//!
//! For each fork of each relation there are the blocks that WAL named, and the
//! *limit*, the shortest length the fork is known to have had: zero if it was
//! created or dropped, its new length if it was truncated. Blocks at the limit and
//! above it are not what they were before this WAL, named or not: the file was
//! shorter once and grew again, and it can grow by zeros that WAL never mentions.
//! A database that was created or dropped is one fork as well, that of a relation
//! with number zero, with the limit zero.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::pg::relation::{Fork, RelationFile};

pub use name::SummaryName;

mod format;
mod name;

/// A fork of a relation, as WAL names it. Orders as in a WAL summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationFork {
    /// The OID of the tablespace; 1663 is pg_default, 1664 pg_global.
    pub tablespace: u32,
    /// The OID of the database; zero for relations that all databases share.
    pub database: u32,
    /// What the names of the relation's files begin with.
    pub relfilenumber: u32,
    /// Which of its forks.
    pub fork: Fork,
}

/// The tablespace that `base` is of (catalog/pg_tablespace.dat).
const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace that `global` is of.
const GLOBAL_TABLESPACE: u32 = 1664;

impl RelationFork {
    /// The fork that a file is a segment of; nothing for a file that is in no directory of relations.
    pub fn of(file: &RelationFile<'_>) -> Option<RelationFork> {
        let mut directories = file.directory.split('/');
        let (tablespace, database) = match directories.next()? {
            "global" => (GLOBAL_TABLESPACE, 0),
            "base" => (DEFAULT_TABLESPACE, directories.next()?.parse().ok()?),
            "pg_tblspc" => (
                directories.next()?.parse().ok()?,
                directories.nth(1)?.parse().ok()?,
            ),
            _ => return None,
        };
        Some(RelationFork {
            tablespace,
            database,
            relfilenumber: file.relfilenumber,
            fork: file.fork,
        })
    }
}

/// What changed in a fork.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ForkChanges {
    /// The shortest length in blocks that the fork is known to have had, if it was
    /// ever made, dropped or truncated. All blocks from here on have changed.
    pub limit: Option<u32>,
    /// The blocks that were named, counted from the beginning of the fork. Those at
    /// the limit or above it were named after the fork last was that short.
    pub blocks: RoaringBitmap,
}

impl ForkChanges {
    fn set_limit(&mut self, limit: u32) {
        // As PostgreSQL has it, what a higher limit would forget is kept.
        if self.limit.is_none_or(|lowest| limit < lowest) {
            self.limit = Some(limit);
            self.blocks.remove_range(limit..);
        }
    }
}

/// What changed in a stretch of WAL, of all relations.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ChangedBlocks {
    forks: BTreeMap<RelationFork, ForkChanges>,
}

impl ChangedBlocks {
    /// The changes of no WAL at all.
    pub fn new() -> ChangedBlocks {
        ChangedBlocks::default()
    }

    /// A record changed this block, counted from the beginning of the fork
    /// (BlockRefTableMarkBlockModified).
    pub fn mark(&mut self, fork: RelationFork, block: u32) {
        self.forks.entry(fork).or_default().blocks.insert(block);
    }

    /// The fork was this many blocks long for a moment
    /// (BlockRefTableSetLimitBlock).
    pub fn set_limit(&mut self, fork: RelationFork, length: u32) {
        self.forks.entry(fork).or_default().set_limit(length);
    }

    /// A database was created or dropped in a tablespace.
    pub fn recreate(&mut self, tablespace: u32, database: u32) {
        self.set_limit(whole_database(tablespace, database), 0);
    }

    /// What changed in a fork; nothing if WAL does not mention it. If the whole
    /// database [was recreated](ChangedBlocks::is_recreated), all of it changed
    /// whatever this says.
    pub fn get(&self, fork: &RelationFork) -> Option<&ForkChanges> {
        self.forks.get(fork)
    }

    /// Whether a database was created or dropped in a tablespace: all of its files
    /// there are new.
    pub fn is_recreated(&self, tablespace: u32, database: u32) -> bool {
        self.forks
            .contains_key(&whole_database(tablespace, database))
    }

    /// Adds what changed in the stretch of WAL that follows
    /// (backup/basebackup_incremental.c, PrepareForIncrementalBackup).
    ///
    /// Cut differently, the same WAL can come to different blocks at or above a
    /// limit, but never to other limits, nor to other blocks below them.
    pub fn append(&mut self, later: ChangedBlocks) {
        for (fork, changes) in later.forks {
            let known = self.forks.entry(fork).or_default();
            if let Some(limit) = changes.limit {
                known.set_limit(limit);
            }
            known.blocks |= changes.blocks;
        }
    }

    /// All forks that changed, in their order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&RelationFork, &ForkChanges)> {
        self.forks.iter()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.forks.is_empty()
    }
}

/// The fork that stands for all relations of a database in a tablespace.
fn whole_database(tablespace: u32, database: u32) -> RelationFork {
    RelationFork {
        tablespace,
        database,
        relfilenumber: 0,
        fork: Fork::Main,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    pub(super) fn fork(relfilenumber: u32) -> RelationFork {
        RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenumber,
            fork: Fork::Main,
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Change {
        Mark(u32),
        Limit(u32),
    }

    fn change() -> impl Strategy<Value = Change> {
        // Around the bounds of a bitmap's containers, and where there are none.
        let block = prop_oneof![0..20_u32, 65_530..65_540_u32, u32::MAX - 3..=u32::MAX];
        prop_oneof![
            4 => block.clone().prop_map(Change::Mark),
            1 => block.prop_map(Change::Limit),
        ]
    }

    fn summary(changes: &[Change]) -> ChangedBlocks {
        let mut changed = ChangedBlocks::new();
        for change in changes {
            match *change {
                Change::Mark(block) => changed.mark(fork(1), block),
                Change::Limit(block) => changed.set_limit(fork(1), block),
            }
        }
        changed
    }

    #[test]
    fn a_limit_forgets_the_blocks_from_there_on() {
        let mut changed = ChangedBlocks::new();
        for block in [1, 9, 10, 11, 70_000] {
            changed.mark(fork(1), block);
        }
        changed.mark(fork(2), 70_000);
        changed.set_limit(fork(1), 10);
        changed.mark(fork(1), 12);
        changed.set_limit(fork(1), 11);
        let changes = changed.get(&fork(1)).unwrap();
        assert_eq!(changes.limit, Some(10));
        assert_eq!(changes.blocks, RoaringBitmap::from([1, 9, 12]));
        assert_eq!(changed.get(&fork(2)).unwrap().limit, None);
        assert_eq!(changed.get(&fork(3)), None);
    }

    #[test]
    fn a_limit_of_a_later_stretch_spares_its_own_blocks() {
        let mut changed = ChangedBlocks::new();
        changed.mark(fork(1), 4);
        changed.mark(fork(1), 6);
        let mut later = ChangedBlocks::new();
        later.set_limit(fork(1), 5);
        later.mark(fork(1), 7);
        changed.append(later);
        let changes = changed.get(&fork(1)).unwrap();
        assert_eq!(changes.limit, Some(5));
        assert_eq!(changes.blocks, RoaringBitmap::from([4, 7]));
    }

    #[test]
    fn a_database_is_recreated_where_that_was_said() {
        let mut changed = ChangedBlocks::new();
        changed.mark(fork(1), 0);
        changed.recreate(1663, 6);
        assert!(changed.is_recreated(1663, 6));
        assert!(!changed.is_recreated(1663, 5));
        assert!(!changed.is_recreated(16_390, 6));
        let mut earlier = ChangedBlocks::new();
        earlier.append(changed);
        assert!(earlier.is_recreated(1663, 6));
    }

    proptest! {
        #[test]
        fn keeps_what_a_simple_model_keeps(changes in prop::collection::vec(change(), 0..60)) {
            let mut limit = None;
            let mut blocks = BTreeSet::new();
            for change in &changes {
                match *change {
                    Change::Mark(block) => {
                        blocks.insert(block);
                    }
                    Change::Limit(length) => {
                        if limit.is_none_or(|lowest| length < lowest) {
                            limit = Some(length);
                            blocks.retain(|block| *block < length);
                        }
                    }
                }
            }
            let changed = summary(&changes);
            let found = changed.get(&fork(1)).cloned().unwrap_or_default();
            prop_assert_eq!(found.limit, limit);
            prop_assert_eq!(found.blocks.iter().collect::<BTreeSet<_>>(), blocks);
        }

        #[test]
        fn the_same_wherever_it_is_cut(changes in prop::collection::vec(change(), 0..60), cuts: [prop::sample::Index; 2]) {
            let mut cuts = cuts.map(|cut| cut.index(changes.len() + 1));
            cuts.sort_unstable();
            let mut whole = ChangedBlocks::new();
            for part in [&changes[..cuts[0]], &changes[cuts[0]..cuts[1]], &changes[cuts[1]..]] {
                whole.append(summary(part));
            }
            let below_limit = |changed: ChangedBlocks| {
                let mut changes = changed.get(&fork(1)).cloned().unwrap_or_default();
                changes.blocks.remove_range(changes.limit.unwrap_or(u32::MAX)..);
                changes
            };
            prop_assert_eq!(below_limit(whole), below_limit(summary(&changes)));
        }
    }
}
