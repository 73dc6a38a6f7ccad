//! Records about tablespaces (commands/tablespace.h).
//!
//! ```text
//! 0x00 created     u32 tablespace; the absolute path of its folder, ending in a zero, or
//!                  just that for one in the data directory
//! 0x10 dropped     u32 tablespace
//! ```

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::record::{OPERATION, Record, ResourceManager};
use crate::error::Result;
use crate::pg::little_endian::u32_at;
use crate::pg::lsn::Lsn;

const CREATED: u8 = 0x00;
const DROPPED: u8 = 0x10;
const PATH: usize = 4;

/// A tablespace that was created outside of the data directory.
///
/// Replay creates it again in the very folder that the record names (commands/tablespace.c,
/// create_tablespace_directories), whatever machine that is on: it takes the folder for its own even where somebody's
/// files are in there. In the data directory it is the restored cluster's own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CreatedTablespace {
    /// Where the record begins that says so.
    pub at: Lsn,
    /// Its OID.
    pub oid: u32,
    /// Its folder, absolute.
    pub folder: PathBuf,
}

/// What became of a tablespace, by its OID, wherever its folder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TablespaceChange {
    /// It was created.
    Created(u32),
    /// It was dropped.
    Dropped(u32),
}

impl TablespaceChange {
    /// Reads a record; nothing if it is about something else, an error if it is too short for what it is.
    pub fn of(record: &Record<'_>) -> Result<Option<TablespaceChange>> {
        let change = match record.info & OPERATION {
            CREATED => TablespaceChange::Created,
            DROPPED => TablespaceChange::Dropped,
            _ => return Ok(None),
        };
        if record.resource_manager != ResourceManager::TABLESPACE {
            return Ok(None);
        }
        let oid = record
            .main_data
            .get(..PATH)
            .ok_or_else(|| record.too_short())?;
        Ok(Some(change(u32_at(oid, 0))))
    }
}

impl CreatedTablespace {
    /// Reads a record; nothing if it is about something else, an error if it is too short for what it is.
    pub fn of(record: &Record<'_>) -> Result<Option<CreatedTablespace>> {
        let is_created = record.resource_manager == ResourceManager::TABLESPACE
            && record.info & OPERATION == CREATED;
        if !is_created {
            return Ok(None);
        }
        let Some((oid, path)) = record.main_data.split_at_checked(PATH) else {
            return Err(record.too_short());
        };
        let end = path.iter().position(|byte| *byte == 0);
        let path = &path[..end.ok_or_else(|| record.too_short())?];
        Ok((!path.is_empty()).then(|| CreatedTablespace {
            at: record.start,
            oid: u32_at(oid, 0),
            folder: OsStr::from_bytes(path).into(),
        }))
    }
}
