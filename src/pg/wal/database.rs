//! Records about whole databases (commands/dbcommands_xlog.h).
//!
//! ```text
//! 0x00 copied      u32 database, tablespace; u32 database, tablespace it was copied from
//! 0x10 created     u32 database, tablespace; since 15
//! 0x20 dropped     u32 database; u32 count and u32 tablespace each; 0x10 in 14
//! ```

use super::fields::Fields;
use super::record::{OPERATION, Record, ResourceManager};
use crate::error::Result;
use crate::pg::version::Major;

const COPIED: u8 = 0x00;
const CREATED: u8 = 0x10;

/// The files that a database has in a tablespace: a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatabaseFolder {
    /// The OID of the tablespace; 1663 is pg_default.
    pub tablespace: u32,
    /// The OID of the database.
    pub database: u32,
}

/// What became of a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseChange {
    /// All files of one folder were copied to another, and WAL says no more of them.
    Copied {
        /// The one that was copied.
        from: DatabaseFolder,
        /// The new one.
        to: DatabaseFolder,
    },
    /// An empty folder was made; what comes into it is in the WAL.
    Created(DatabaseFolder),
    /// Folders were removed with all their files.
    Dropped(Vec<DatabaseFolder>),
}

impl DatabaseChange {
    /// Reads a record; nothing if it is about something else, an error if it is too short for what it is.
    pub fn of(major: Major, record: &Record<'_>) -> Result<Option<DatabaseChange>> {
        if record.resource_manager != ResourceManager::DATABASE {
            return Ok(None);
        }
        // There are two ways to create one since 15, and one in 14.
        let dropped = if major == Major::V14 { 0x10 } else { 0x20 };
        let mut fields = Fields(record.main_data);
        let change = match record.info & OPERATION {
            operation if operation == dropped => fields.dropped(),
            COPIED => fields.copied(),
            CREATED => fields.folder().map(DatabaseChange::Created),
            _ => return Ok(None),
        };
        change.ok_or_else(|| record.too_short()).map(Some)
    }

    /// The folders whose files all are new or gone.
    pub fn affected(&self) -> &[DatabaseFolder] {
        match self {
            DatabaseChange::Copied { to, .. } => std::slice::from_ref(to),
            DatabaseChange::Created(folder) => std::slice::from_ref(folder),
            DatabaseChange::Dropped(folders) => folders,
        }
    }
}

impl Fields<'_> {
    fn folder(&mut self) -> Option<DatabaseFolder> {
        let database = self.next()?;
        Some(DatabaseFolder {
            tablespace: self.next()?,
            database,
        })
    }

    fn copied(&mut self) -> Option<DatabaseChange> {
        let to = self.folder()?;
        let from = self.folder()?;
        Some(DatabaseChange::Copied { from, to })
    }

    fn dropped(&mut self) -> Option<DatabaseChange> {
        let database = self.next()?;
        let count = self.next()?;
        let folders = (0..count).map(|_| {
            Some(DatabaseFolder {
                tablespace: self.next()?,
                database,
            })
        });
        folders.collect::<Option<_>>().map(DatabaseChange::Dropped)
    }
}
