//! Records that bear a moment or a name which recovery can stop at.

use jiff::Timestamp;

use crate::pg::little_endian::{u32_at, u64_at};
use crate::pg::lsn::Timeline;
use crate::pg::timestamp;
use crate::pg::version::Major;
use crate::pg::wal::{Record, ResourceManager};

const XACT_OPERATION: u8 = 0x70;
const XACT_COMMIT: u8 = 0x00;
const XACT_PREPARE: u8 = 0x10;
const XACT_ABORT: u8 = 0x20;
const XACT_COMMIT_PREPARED: u8 = 0x30;
const XACT_ABORT_PREPARED: u8 = 0x40;
const XACT_HAS_INFO: u8 = 0x80;

const XLOG_OPERATION: u8 = 0xF0;
const XLOG_CHECKPOINT_SHUTDOWN: u8 = 0x00;
const XLOG_CHECKPOINT_ONLINE: u8 = 0x10;
const XLOG_PARAMETER_CHANGE: u8 = 0x60;
const XLOG_RESTORE_POINT: u8 = 0x70;
const XLOG_END_OF_RECOVERY: u8 = 0x90;

/// A transaction that committed or aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionEnd {
    /// Its number. Subtransactions end with it and have no record of their own.
    pub xid: u32,
    /// When it ended, by the server's clock.
    pub time: Timestamp,
    /// Whether it committed; or it aborted, or went back to a savepoint.
    pub is_committed: bool,
}

impl TransactionEnd {
    /// The end of a transaction, if that is what the record is (access/xact.h, xl_xact_commit and
    /// xl_xact_abort).
    pub fn of(record: &Record<'_>, major: Major) -> Option<TransactionEnd> {
        if record.resource_manager != ResourceManager::TRANSACTION {
            return None;
        }
        let operation = record.info & XACT_OPERATION;
        let xid = match operation {
            XACT_COMMIT | XACT_ABORT => record.xid,
            XACT_COMMIT_PREPARED | XACT_ABORT_PREPARED => prepared_xid(record, major)?,
            _ => return None,
        };
        let time = time_at(record.main_data, 0)?;
        Some(TransactionEnd {
            xid,
            time,
            is_committed: matches!(operation, XACT_COMMIT | XACT_COMMIT_PREPARED),
        })
    }
}

/// The transaction that COMMIT PREPARED or ROLLBACK PREPARED ended; the record itself is of no
/// transaction. What stands before the number (access/rmgrdesc/xactdesc.c, ParseCommitRecord):
///
/// ```text
///  0  i64  xact_time
///  8  u32  xinfo      which of the following there are
///          0x001  the database        u32, u32
///          0x002  subtransactions     u32 count, u32 each
///          0x004  dropped relations   u32 count, 12 bytes each
///          0x100  dropped statistics  u32 count, 12 bytes each; since 18, 16
///          0x008  invalidations       u32 count, 16 bytes each
///          0x010  the number          u32
/// ```
fn prepared_xid(record: &Record<'_>, major: Major) -> Option<u32> {
    if record.info & XACT_HAS_INFO == 0 {
        return None;
    }
    let data = record.main_data;
    let word = |offset: usize| data.get(offset..offset + 4).map(|word| u32_at(word, 0));
    let statistics = if major >= Major::V18 { 16 } else { 12 };
    let xinfo = word(8)?;
    let mut offset = 12;
    if xinfo & 0x001 != 0 {
        offset += 8;
    }
    for (flag, bytes) in [(0x002, 4), (0x004, 12), (0x100, statistics), (0x008, 16)] {
        if xinfo & flag != 0 {
            let items = (word(offset)? as usize).checked_mul(bytes)?;
            offset = offset.checked_add(4)?.checked_add(items)?;
            data.get(offset..)?;
        }
    }
    if xinfo & 0x010 != 0 {
        word(offset)
    } else {
        None
    }
}

/// What pg_create_restore_point wrote (access/xlog_internal.h, xl_restore_point).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestorePoint<'a> {
    /// Its name, up to 63 bytes.
    pub name: &'a [u8],
    /// When it was made, by the server's clock.
    pub time: Timestamp,
}

impl<'a> RestorePoint<'a> {
    /// The restore point, if that is what the record is.
    pub fn of(record: &Record<'a>) -> Option<RestorePoint<'a>> {
        if record.resource_manager != ResourceManager::XLOG
            || record.info & XLOG_OPERATION != XLOG_RESTORE_POINT
        {
            return None;
        }
        let name = record.main_data.get(8..)?;
        Some(RestorePoint {
            name: name.split(|byte| *byte == 0).next()?,
            time: time_at(record.main_data, 0)?,
        })
    }
}

/// Whether the record prepares its transaction, which ends later or in another session.
pub fn is_prepared(record: &Record<'_>) -> bool {
    record.resource_manager == ResourceManager::TRANSACTION
        && record.info & XACT_OPERATION == XACT_PREPARE
}

/// What becomes of a server as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent {
    /// It was promoted, and goes on here on a timeline of its own.
    Promoted {
        /// The new timeline.
        timeline: Timeline,
        /// The one before.
        before: Timeline,
    },
    /// It was shut down, or had recovered from a crash: nobody is connected here.
    Quiet,
    /// It was started with other settings that a standby must know.
    Reconfigured,
}

impl ServerEvent {
    /// The event, if that is what the record is (catalog/pg_control.h, CheckPoint; access/xlog_internal.h,
    /// xl_end_of_recovery: both have the new timeline behind eight bytes and then the one before).
    pub fn of(record: &Record<'_>) -> Option<ServerEvent> {
        if record.resource_manager != ResourceManager::XLOG {
            return None;
        }
        match record.info & XLOG_OPERATION {
            XLOG_PARAMETER_CHANGE => Some(ServerEvent::Reconfigured),
            XLOG_CHECKPOINT_SHUTDOWN | XLOG_END_OF_RECOVERY => {
                let timelines = record.main_data.get(8..16)?;
                let timeline = Timeline(u32_at(timelines, 0));
                let before = Timeline(u32_at(timelines, 4));
                Some(if timeline == before {
                    ServerEvent::Quiet
                } else {
                    ServerEvent::Promoted { timeline, before }
                })
            }
            _ => None,
        }
    }
}

/// The second in which a checkpoint began, by the server's clock, if the record is a checkpoint's
/// (catalog/pg_control.h, CheckPoint: the field is at the same place in 14 to 18).
pub fn checkpoint_time(record: &Record<'_>) -> Option<Timestamp> {
    const TIME: usize = 64;
    let operation = record.info & XLOG_OPERATION;
    if record.resource_manager != ResourceManager::XLOG
        || !matches!(operation, XLOG_CHECKPOINT_SHUTDOWN | XLOG_CHECKPOINT_ONLINE)
    {
        return None;
    }
    let field = record.main_data.get(TIME..TIME + 8)?;
    Timestamp::from_second(u64_at(field, 0) as i64).ok()
}

fn time_at(data: &[u8], offset: usize) -> Option<Timestamp> {
    let field = data.get(offset..offset + 8)?;
    timestamp::from_postgres(u64_at(field, 0) as i64)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pg::lsn::Lsn;

    /// A record of no blocks.
    pub(in crate::pg::recovery) fn record(
        resource_manager: ResourceManager,
        info: u8,
        start: u64,
        main_data: &[u8],
    ) -> Record<'_> {
        Record {
            start: Lsn(start),
            end: Lsn(start + 80),
            resource_manager,
            info,
            xid: 700,
            blocks: &[],
            main_data,
            parts: &[],
        }
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_transaction_is_told_by_the_record_of_its_end() {
        let data = [0; 8];
        for (info, expected) in [
            (XACT_COMMIT, Some(700)),
            (XACT_ABORT, Some(700)),
            (XACT_COMMIT_PREPARED, None),
            // To prepare, to assign a subtransaction, to invalidate: no end.
            (0x10, None),
            (0x50, None),
            (0x60, None),
        ] {
            let record = record(ResourceManager::TRANSACTION, info, 8, &data);
            let end = TransactionEnd::of(&record, Major::V17);
            assert_eq!(end.map(|end| end.xid), expected, "{info:02X}");
        }
        let heap = record(ResourceManager(10), XACT_COMMIT, 8, &data);
        assert_eq!(TransactionEnd::of(&heap, Major::V17), None);
    }

    #[test]
    fn a_prepared_transaction_is_told_behind_all_else() {
        // Time, flags, database, two subtransactions, a relation, then statistics.
        let mut before = words(&[0, 0, 0x11F, 5, 6, 2, 701, 702, 1, 1663, 5, 16400]);
        let after = words(&[1, 0, 0, 0, 0, 703]);
        for (major, statistics) in [(Major::V17, 3), (Major::V18, 4)] {
            let mut data = before.clone();
            data.extend(words(&[2]));
            data.extend(words(&vec![9; 2 * statistics]));
            data.extend(&after);
            let record = record(
                ResourceManager::TRANSACTION,
                XACT_COMMIT_PREPARED | XACT_HAS_INFO,
                8,
                &data,
            );
            let end = TransactionEnd::of(&record, major).unwrap();
            assert_eq!(end.xid, 703, "{major}");
        }
        // Neither statistics nor invalidations, as at the end of an aborted one in 14.
        before[8..12].copy_from_slice(&words(&[0x017]));
        before.extend(words(&[704]));
        let record = record(
            ResourceManager::TRANSACTION,
            XACT_ABORT_PREPARED | XACT_HAS_INFO,
            8,
            &before,
        );
        let end = TransactionEnd::of(&record, Major::V14).unwrap();
        assert_eq!(end.xid, 704);
    }

    #[test]
    fn a_restore_point_has_a_name() {
        let mut data = vec![0; 72];
        data[8..14].copy_from_slice(b"before");
        let point = record(ResourceManager::XLOG, XLOG_RESTORE_POINT, 8, &data);
        assert_eq!(RestorePoint::of(&point).unwrap().name, b"before");
        let other = record(ResourceManager::XLOG, 0x40, 8, &data);
        assert_eq!(RestorePoint::of(&other), None);
    }

    proptest! {
        #[test]
        fn never_panics(data: Vec<u8>, info: u8, number in 0_u8..2) {
            let record = record(ResourceManager(number), info, 8, &data);
            for major in [Major::V14, Major::V18] {
                let _ = TransactionEnd::of(&record, major);
            }
            let _ = RestorePoint::of(&record);
            let _ = checkpoint_time(&record);
            let _ = ServerEvent::of(&record);
        }
    }
}
