//! What transactions did, put together from their records until they end.
//!
//! A subtransaction has a number and records of its own; the record of the end of the transaction names those that ended
//! with it, while one that went back to a savepoint has an end of its own before. What is known of all transactions
//! that have not ended is bounded: beyond that, what they did is not counted, and that is told.

use std::collections::HashMap;
use std::rc::Rc;

use jiff::Timestamp;

use crate::catalogs::{Before, Relation, RelationChange, RelationFiles};
use crate::pg::lsn::Lsn;
use crate::pg::wal::{DatabaseFolder, RowChange};

/// How many things are remembered of all transactions that have not ended: some 100 MB at most.
const REMEMBERED: usize = 500_000;

/// How many rows of a table came, changed and went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rows {
    /// Those that came.
    pub inserted: u64,
    /// Those that were changed.
    pub updated: u64,
    /// Those that went.
    pub deleted: u64,
}

impl Rows {
    fn count(&mut self, change: RowChange) {
        match change {
            RowChange::Inserted(_) => self.inserted += 1,
            RowChange::SeveralInserted(rows) => self.inserted += u64::from(rows),
            RowChange::TakenBack => self.inserted = self.inserted.saturating_sub(1),
            RowChange::Updated { .. } => self.updated += 1,
            RowChange::Deleted(_) => self.deleted += 1,
        }
    }

    pub(super) fn add(&mut self, other: Rows) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }

    /// All together.
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.deleted
    }
}

/// What is done at once, whether its transaction commits or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AtOnce {
    DatabaseCreated(DatabaseFolder),
    DatabaseDropped(DatabaseFolder),
    TablespaceCreated(u32),
    TablespaceDropped(u32),
}

/// What a transaction has done so far.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Where its first record begins, or the one in which it began without a number.
    pub(super) first: Option<Lsn>,
    /// By relation, in the order of their files.
    pub(super) rows: Vec<(RelationFiles, Rows)>,
    pub(super) relations: Vec<RelationChange>,
    pub(super) at_once: Vec<AtOnce>,
    /// When it was prepared, where it was.
    pub(super) is_prepared: bool,
    /// What its changes of the catalogs replaced.
    pub(super) before: Vec<Before>,
}

impl Work {
    fn size(&self) -> usize {
        1 + self.rows.len() + self.relations.len() + self.at_once.len() + self.before.len()
    }

    /// Takes what a subtransaction did.
    fn merge(&mut self, other: Work) {
        for (files, rows) in other.rows {
            self.rows_of(files).add(rows);
        }
        self.first = match (self.first, other.first) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.relations.extend(other.relations);
        self.at_once.extend(other.at_once);
        self.before.extend(other.before);
    }

    fn rows_of(&mut self, files: RelationFiles) -> &mut Rows {
        let found = self.rows.binary_search_by_key(&files, |(files, _)| *files);
        let at = found.unwrap_or_else(|at| {
            self.rows.insert(at, (files, Rows::default()));
            at
        });
        &mut self.rows[at].1
    }

    pub(super) fn created(&self) -> impl Iterator<Item = &Rc<Relation>> {
        self.relations.iter().filter_map(|change| match change {
            RelationChange::Created(relation) => Some(relation),
            _ => None,
        })
    }
}

/// A transaction's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) xid: u32,
    pub(super) time: Timestamp,
    pub(super) is_committed: bool,
    /// Where the record begins that says so.
    pub(super) at: Lsn,
}

/// All transactions that have not ended.
#[derive(Debug, Default)]
pub(super) struct Running {
    by_xid: HashMap<u32, Work>,
    remembered: usize,
    /// Records that were not counted.
    forgotten: u64,
}

impl Running {
    /// A record of a transaction, of which there is more to remember.
    fn remember(&mut self, xid: u32, at: Lsn, remember: impl FnOnce(&mut Work)) {
        if xid == 0 {
            return;
        }
        if self.remembered >= REMEMBERED && !self.by_xid.contains_key(&xid) {
            self.forgotten += 1;
            return;
        }
        let work = self.by_xid.entry(xid).or_default();
        let before = if work.first.is_some() { work.size() } else { 0 };
        work.first = Some(work.first.map_or(at, |first| first.min(at)));
        remember(work);
        self.remembered += work.size() - before;
    }

    /// Any record of a transaction.
    pub(super) fn seen(&mut self, xid: u32, at: Lsn) {
        self.remember(xid, at, |_| {});
    }

    pub(super) fn rows(&mut self, xid: u32, at: Lsn, files: RelationFiles, change: RowChange) {
        let is_full = self.remembered >= REMEMBERED;
        let mut is_forgotten = false;
        self.remember(xid, at, |work| {
            let is_known = || work.rows.iter().any(|(known, _)| *known == files);
            if is_full && !is_known() {
                is_forgotten = true;
            } else {
                work.rows_of(files).count(change);
            }
        });
        self.forgotten += u64::from(is_forgotten);
    }

    pub(super) fn relation(
        &mut self,
        xid: u32,
        at: Lsn,
        change: Option<RelationChange>,
        before: Vec<Before>,
    ) {
        if self.remembered >= REMEMBERED {
            self.forgotten += 1;
            return;
        }
        self.remember(xid, at, |work| {
            work.relations.extend(change);
            work.before.extend(before);
        });
    }

    pub(super) fn at_once(&mut self, xid: u32, at: Lsn, what: AtOnce) {
        self.remember(xid, at, |work| work.at_once.push(what));
    }

    pub(super) fn prepare(&mut self, xid: u32, at: Lsn) {
        self.remember(xid, at, |work| work.is_prepared = true);
    }

    /// Takes out what a transaction did, that of its subtransactions included.
    pub(super) fn end(&mut self, xid: u32, subtransactions: &[u32]) -> Work {
        let mut work = self.take(xid);
        for subtransaction in subtransactions {
            let below = self.take(*subtransaction);
            work.merge(below);
        }
        work
    }

    fn take(&mut self, xid: u32) -> Work {
        let work = self.by_xid.remove(&xid).unwrap_or_default();
        if work.first.is_some() {
            self.remembered = self.remembered.saturating_sub(work.size());
        }
        work
    }

    /// Takes out all that have no end any more: nobody is connected. Those that are prepared outlast that.
    pub(super) fn end_all(&mut self) -> Vec<(u32, Work)> {
        let mut ended: Vec<u32> = self
            .by_xid
            .iter()
            .filter(|(_, work)| !work.is_prepared)
            .map(|(xid, _)| *xid)
            .collect();
        ended.sort_unstable();
        ended.into_iter().map(|xid| (xid, self.take(xid))).collect()
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) -> Vec<Work> {
        self.remembered = 0;
        self.by_xid.drain().map(|(_, work)| work).collect()
    }

    /// Those that are still there, with all they have done.
    pub(super) fn left(&self) -> impl Iterator<Item = (u32, &Work)> {
        self.by_xid.iter().map(|(xid, work)| (*xid, work))
    }

    /// How many records were not counted.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::heap_page::RowPlace;

    const ORDERS: RelationFiles = RelationFiles {
        database: 5,
        relfilenumber: 16_384,
    };
    const INSERTED: RowChange = RowChange::Inserted(RowPlace {
        block: 0,
        offset: 1,
    });

    #[test]
    fn subtransactions_end_with_theirs_or_before() {
        let mut running = Running::default();
        running.rows(700, Lsn(2), ORDERS, INSERTED);
        running.rows(701, Lsn(1), ORDERS, RowChange::SeveralInserted(10));
        running.rows(702, Lsn(4), ORDERS, INSERTED);
        running.rows(703, Lsn(5), ORDERS, INSERTED);
        running.rows(0, Lsn(5), ORDERS, INSERTED);
        assert_eq!(running.end(702, &[]).rows[0].1.inserted, 1);
        let work = running.end(700, &[701, 704]);
        assert_eq!(work.first, Some(Lsn(1)));
        assert_eq!(work.rows[0].1.inserted, 11);
        running.prepare(703, Lsn(6));
        assert!(running.end_all().is_empty());
        assert_eq!(running.left().count(), 1);
        assert_eq!(running.clear().len(), 1);
        assert_eq!((running.remembered, running.forgotten()), (0, 0));
    }

    #[test]
    fn a_row_that_was_taken_back_never_came() {
        let mut rows = Rows::default();
        for change in [INSERTED, INSERTED, RowChange::TakenBack] {
            rows.count(change);
        }
        assert_eq!(rows.total(), 1);
    }

    #[test]
    fn the_memory_is_bounded_and_what_is_beyond_is_told() {
        let mut running = Running::default();
        for xid in 3..REMEMBERED as u32 {
            running.rows(xid, Lsn(8), ORDERS, INSERTED);
        }
        assert!(running.by_xid.len() <= REMEMBERED / 2 + 1);
        assert!(running.forgotten() > 0);
        // What is known goes on.
        running.rows(3, Lsn(8), ORDERS, INSERTED);
        assert_eq!(running.end(3, &[]).rows[0].1.inserted, 2);
        let left = running.remembered;
        running.clear();
        assert!(left > 0 && running.remembered == 0);
    }
}
