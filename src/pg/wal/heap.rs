//! Records about rows of tables (access/heapam_xlog.h).
//!
//! ```text
//! heap         0x00 inserted     u16 offset; u8 flags: 4 for the time being
//!              0x10 deleted      u32 xmax; u16 offset; u8 infobits; u8 flags: 8 taken back
//!              0x20 updated, 0x40 on the same page
//!                                u32 old xmax; u16 old offset; u8 infobits; u8 flags;
//!                                u32 new xmax; u16 new offset
//!              0x70 in place     u16 offset; …
//! heap2        0x50 inserted     u8 flags; u16 count, aligned; …
//! ```
//!
//! The lowest of the four bits that are left says that the page was new (XLOG_HEAP_INIT_PAGE); it does not matter here.

use super::record::{Record, ResourceManager};
use crate::error::Result;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::heap_page::RowPlace;
use crate::pg::little_endian::u16_at;

/// The bits of xl_info that tell the operation (XLOG_HEAP_OPMASK).
const HEAP_OPERATION: u8 = 0x70;
const INSERTED: u8 = 0x00;
const DELETED: u8 = 0x10;
const UPDATED: u8 = 0x20;
const UPDATED_ON_PAGE: u8 = 0x40;
const CHANGED_IN_PLACE: u8 = 0x70;
const SEVERAL_INSERTED: u8 = 0x50;

/// A row of INSERT ... ON CONFLICT that had a conflict after all (XLH_DELETE_IS_SUPER).
const TAKEN_BACK: u8 = 0x08;

/// What was done to rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChange {
    /// One came.
    Inserted(RowPlace),
    /// So many came at once, as by COPY.
    SeveralInserted(u16),
    /// One that had come went again, as if it had never been there.
    TakenBack,
    /// One has other content, elsewhere.
    Updated {
        /// Where it was.
        old: RowPlace,
        /// Where it is.
        new: RowPlace,
    },
    /// One went.
    Deleted(RowPlace),
}

/// A record that changed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeapChange {
    /// The table's main fork.
    pub relation: RelationFork,
    /// What was done.
    pub change: RowChange,
}

impl HeapChange {
    /// Reads a record; nothing if it is about something else, an error if it is too short for what it is.
    pub fn of(record: &Record<'_>) -> Result<Option<HeapChange>> {
        let operation = record.info & HEAP_OPERATION;
        let is_change = match record.resource_manager {
            ResourceManager::HEAP => {
                matches!(operation, INSERTED | DELETED | UPDATED | UPDATED_ON_PAGE)
            }
            ResourceManager::HEAP2 => operation == SEVERAL_INSERTED,
            _ => false,
        };
        if !is_change {
            return Ok(None);
        }
        let data = record.main_data;
        let change = match (record.resource_manager, operation) {
            (ResourceManager::HEAP2, _) => word(data, 2).map(RowChange::SeveralInserted),
            (_, INSERTED) => place(record, 0, 0).map(RowChange::Inserted),
            (_, DELETED) => match data.get(7) {
                Some(flags) if flags & TAKEN_BACK != 0 => Some(RowChange::TakenBack),
                Some(_) => place(record, 0, 4).map(RowChange::Deleted),
                None => None,
            },
            _ => {
                // The old page comes second, where it is another one.
                let old = place(record, record.blocks.len().saturating_sub(1).min(1), 4);
                let new = place(record, 0, 12);
                old.zip(new)
                    .map(|(old, new)| RowChange::Updated { old, new })
            }
        };
        let relation = record.blocks.first().map(|block| block.fork);
        let change = relation.zip(change).ok_or_else(|| record.too_short())?;
        Ok(Some(HeapChange {
            relation: change.0,
            change: change.1,
        }))
    }
}

/// The line pointer of the row of which a record changed the content itself, for everybody and for good, as VACUUM does in
/// catalogs.
pub fn changed_in_place(record: &Record<'_>) -> Option<u16> {
    let is_in_place = record.resource_manager == ResourceManager::HEAP
        && record.info & HEAP_OPERATION == CHANGED_IN_PLACE;
    is_in_place.then(|| word(record.main_data, 0)).flatten()
}

fn word(data: &[u8], offset: usize) -> Option<u16> {
    data.get(offset..offset + 2).map(|word| u16_at(word, 0))
}

fn place(record: &Record<'_>, block: usize, offset: usize) -> Option<RowPlace> {
    Some(RowPlace {
        block: record.blocks.get(block)?.block,
        offset: word(record.main_data, offset)?,
    })
}

/// The content of the row that a record brought, as far as it is in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewRow<'a> {
    /// Bytes at the beginning that are those of the row before.
    pub prefix: usize,
    /// The bytes behind these.
    pub middle: &'a [u8],
    /// Bytes at the end that are those of the row before.
    pub suffix: usize,
}

/// What a record of a row holds of a new one's content: an insertion's, or with `is_update` an update's
/// (access/heap/heapam.c, log_heap_insert and log_heap_update).
///
/// ```text
/// in front, of an update:   u16 prefix if flags & 0x20; u16 suffix if flags & 0x40
/// u16 infomask2; u16 infomask; u8 hoff; bytes up to hoff, which begin at 23; content
/// ```
pub fn new_row<'a>(record: &Record<'_>, data: &'a [u8], is_update: bool) -> Option<NewRow<'a>> {
    const FLAGS: usize = 7;
    const PREFIX: u8 = 0x20;
    const SUFFIX: u8 = 0x40;
    const HEADER: usize = 23;
    let mut data = data;
    let mut shared = |flag: u8| -> Option<usize> {
        if !is_update || record.main_data.get(FLAGS)? & flag == 0 {
            return Some(0);
        }
        let (length, left) = data.split_first_chunk()?;
        data = left;
        Some(usize::from(u16::from_le_bytes(*length)))
    };
    let (prefix, suffix) = (shared(PREFIX)?, shared(SUFFIX)?);
    let begin = usize::from(*data.get(4)?).checked_sub(HEADER)?;
    Some(NewRow {
        prefix,
        middle: data.get(5 + begin..)?,
        suffix,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pg::lsn::Lsn;
    use crate::pg::relation::Fork;
    use crate::pg::wal::BlockReference;

    const RELATION: RelationFork = RelationFork {
        tablespace: 1663,
        database: 5,
        relfilenumber: 16_384,
        fork: Fork::Main,
    };

    fn of(manager: u8, info: u8, blocks: &[u32], main_data: &[u8]) -> Result<Option<HeapChange>> {
        let blocks: Vec<BlockReference> = blocks
            .iter()
            .map(|block| BlockReference {
                fork: RELATION,
                block: *block,
                has_image: false,
                is_begun: false,
            })
            .collect();
        HeapChange::of(&Record {
            start: Lsn(0x1000),
            end: Lsn(0x1040),
            resource_manager: ResourceManager(manager),
            info,
            xid: 700,
            blocks: &blocks,
            main_data,
            parts: &[],
        })
    }

    #[test]
    fn rows_are_told_by_their_places() {
        let change = |manager, info, blocks: &[u32], data: &[u8]| {
            of(manager, info, blocks, data)
                .unwrap()
                .map(|change| change.change)
        };
        let at = |block, offset| RowPlace { block, offset };
        assert_eq!(
            change(10, 0x80, &[3], &[7, 0, 0]),
            Some(RowChange::Inserted(at(3, 7)))
        );
        assert_eq!(
            change(10, 0x10, &[3], &[1, 2, 3, 4, 9, 0, 0, 1]),
            Some(RowChange::Deleted(at(3, 9)))
        );
        assert_eq!(
            change(10, 0x10, &[3], &[1, 2, 3, 4, 9, 0, 0, 8]),
            Some(RowChange::TakenBack)
        );
        let update = [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0];
        let updated = |old, new| Some(RowChange::Updated { old, new });
        assert_eq!(
            change(10, 0x20, &[4, 3], &update),
            updated(at(3, 5), at(4, 6))
        );
        assert_eq!(change(10, 0x40, &[4], &update), updated(at(4, 5), at(4, 6)));
        assert_eq!(
            change(9, 0xD0, &[4], &[0, 0, 44, 1, 1, 0]),
            Some(RowChange::SeveralInserted(300))
        );
        // To lock a row, to vacuum a page; and another resource manager.
        assert_eq!(change(10, 0x60, &[4], &[]), None);
        assert_eq!(change(9, 0x10, &[4], &[]), None);
        assert_eq!(change(11, 0x00, &[4], &[]), None);
        assert!(of(10, 0x00, &[3], &[7]).is_err());
        assert!(of(10, 0x00, &[], &[7, 0, 0]).is_err());
        assert!(of(10, 0x40, &[3], &update[..12]).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(manager in 9..11_u8, info: u8, blocks: Vec<u32>, data: Vec<u8>, row: Vec<u8>) {
            let _ = of(manager, info, &blocks, &data);
            let record = Record {
                start: Lsn(0),
                end: Lsn(0),
                resource_manager: ResourceManager(10),
                info,
                xid: 0,
                blocks: &[],
                main_data: &data,
                parts: &[],
            };
            let _ = new_row(&record, &row, info & 1 == 0);
            let _ = changed_in_place(&record);
        }
    }
}
