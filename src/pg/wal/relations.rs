//! Records about the files of whole relations (catalog/storage_xlog.h; access/xact.h).
//!
//! ```text
//! storage      0x10 made        u32 tablespace, database, relfilenumber; i32 fork
//!              0x20 truncated   u32 blocks; u32 tablespace, database, relfilenumber;
//!                               u32 flags: main fork 1, visibility map 2
//! transaction  0x00 committed, 0x20 aborted, 0x30 and 0x40 the same when prepared;
//!              with 0x80 there is xinfo:
//!                               i64 time; u32 xinfo; if xinfo & 1: u32 database,
//!                               tablespace; if xinfo & 2: u32 count and u32 each;
//!                               if xinfo & 4: u32 count and u32 tablespace, database,
//!                               relfilenumber each; …
//! ```

use super::fields::Fields;
use super::record::{OPERATION, Record, ResourceManager};
use crate::error::Result;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::relation::Fork;

const STORAGE_CREATE: u8 = 0x10;
const STORAGE_TRUNCATE: u8 = 0x20;
const TRUNCATE_MAIN: u32 = 1;
const TRUNCATE_VISIBILITY_MAP: u32 = 2;

const TRANSACTION_OPERATION: u8 = 0x70;
const TRANSACTION_HAS_INFO: u8 = 0x80;
const COMMIT: u8 = 0x00;
const ABORT: u8 = 0x20;
const COMMIT_PREPARED: u8 = 0x30;
const ABORT_PREPARED: u8 = 0x40;
const HAS_DATABASE: u32 = 1;
const HAS_SUBTRANSACTIONS: u32 = 2;
const HAS_RELATIONS: u32 = 4;

/// What became of the files of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageChange {
    /// This fork was made.
    Made(RelationFork),
    /// The relation was cut off.
    Truncated {
        /// Its main fork.
        main: RelationFork,
        /// How many blocks that has left, if it was cut.
        length: Option<u32>,
        /// For how many blocks of it the visibility map has bits left, if that was cut.
        visible: Option<u32>,
    },
}

impl StorageChange {
    /// Reads a record; nothing if it is about something else, an error if it is too short for what it is.
    pub fn of(record: &Record<'_>) -> Result<Option<StorageChange>> {
        if record.resource_manager != ResourceManager::STORAGE {
            return Ok(None);
        }
        let mut fields = Fields(record.main_data);
        let change = match record.info & OPERATION {
            STORAGE_CREATE => fields.made(),
            STORAGE_TRUNCATE => fields.truncated(),
            _ => return Ok(None),
        };
        change.ok_or_else(|| record.too_short()).map(Some)
    }
}

/// Hands over the main fork of each relation that a transaction dropped as it ended; all of its files went. An
/// error if a record is too short for what it is.
pub fn dropped_relations(record: &Record<'_>, visit: &mut dyn FnMut(RelationFork)) -> Result<()> {
    if !tells_of_an_end(record) {
        return Ok(());
    }
    let dropped = Fields(record.main_data).dropped_relations(visit);
    dropped.ok_or_else(|| record.too_short())
}

/// Hands over the subtransactions that ended as the transaction did. An error if a record is too short for what it
/// is.
pub fn subtransactions(record: &Record<'_>, visit: &mut dyn FnMut(u32)) -> Result<()> {
    if !tells_of_an_end(record) {
        return Ok(());
    }
    let ended = Fields(record.main_data).subtransactions(visit);
    ended.map(drop).ok_or_else(|| record.too_short())
}

/// Whether a transaction ended, and there is more to say of it than when.
fn tells_of_an_end(record: &Record<'_>) -> bool {
    record.resource_manager == ResourceManager::TRANSACTION
        && record.info & TRANSACTION_HAS_INFO != 0
        && matches!(
            record.info & TRANSACTION_OPERATION,
            COMMIT | ABORT | COMMIT_PREPARED | ABORT_PREPARED
        )
}

impl Fields<'_> {
    /// The main fork of the relation that is named next.
    fn relation(&mut self) -> Option<RelationFork> {
        Some(RelationFork {
            tablespace: self.next()?,
            database: self.next()?,
            relfilenumber: self.next()?,
            fork: Fork::Main,
        })
    }

    fn made(&mut self) -> Option<StorageChange> {
        let relation = self.relation()?;
        let fork = Fork::from_number(u8::try_from(self.next()?).ok()?)?;
        Some(StorageChange::Made(RelationFork { fork, ..relation }))
    }

    fn truncated(&mut self) -> Option<StorageChange> {
        let length = self.next()?;
        let main = self.relation()?;
        let flags = self.next()?;
        let if_cut = |flag| (flags & flag != 0).then_some(length);
        Some(StorageChange::Truncated {
            main,
            length: if_cut(TRUNCATE_MAIN),
            visible: if_cut(TRUNCATE_VISIBILITY_MAP),
        })
    }

    /// What comes before the relations that were dropped; gives xinfo.
    fn subtransactions(&mut self, visit: &mut dyn FnMut(u32)) -> Option<u32> {
        self.skip(2)?;
        let information = self.next()?;
        if information & HAS_DATABASE != 0 {
            self.skip(2)?;
        }
        if information & HAS_SUBTRANSACTIONS != 0 {
            for _ in 0..self.next()? {
                visit(self.next()?);
            }
        }
        Some(information)
    }

    fn dropped_relations(&mut self, visit: &mut dyn FnMut(RelationFork)) -> Option<()> {
        let information = self.subtransactions(&mut |_| {})?;
        if information & HAS_RELATIONS != 0 {
            for _ in 0..self.next()? {
                visit(self.relation()?);
            }
        }
        Some(())
    }
}
