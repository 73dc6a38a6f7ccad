//! What replay makes that a backup from before that WAL must reckon with.

use std::collections::BTreeSet;

use super::record::{OPERATION, Record, ResourceManager};
use super::relations::StorageChange;
use super::tablespace::CreatedTablespace;
use crate::error::Result;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::limits::Limits;
use crate::pg::lsn::Lsn;
use crate::pg::relation::Fork;

/// What the records of a stretch of WAL make.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Creations {
    /// Tablespaces outside of the data directory.
    pub tablespaces: BTreeSet<CreatedTablespace>,
    /// Init forks: those relations are unlogged.
    ///
    /// An index gets its init fork only once it is built (catalog/index.c, index_build), and so does a relation
    /// that is moved to another tablespace (commands/tablecmds.c, ATExecSetTableSpace). Until then nothing tells its
    /// other forks from those of any relation, so that a backup holds them. But where recovery ends it makes a main
    /// fork of each init fork, and the server does not start where there is one (storage/file/reinit.c, copy_file with O_EXCL).
    pub init_forks: BTreeSet<RelationFork>,
    /// What the server was set to, the highest of each, as far as the records tell.
    pub limits: Limits,
    /// Where a server began to write with `wal_level = minimal`, first: recovery gets no further
    /// (access/transam/xlogrecovery.c, CheckRequiredParameterValues).
    pub minimal: Option<Lsn>,
}

/// The settings of a server that was started with other ones (access/transam/xlog.c, XLogReportParameters).
const PARAMETER_CHANGE: u8 = 0x60;

impl Creations {
    /// Takes a record; an error if it is too short for what it is.
    pub fn record(&mut self, record: &Record<'_>) -> Result<()> {
        self.tablespaces.extend(CreatedTablespace::of(record)?);
        if let Some(StorageChange::Made(fork)) = StorageChange::of(record)?
            && fork.fork == Fork::Init
        {
            self.init_forks.insert(fork);
        }
        if record.resource_manager == ResourceManager::XLOG
            && record.info & OPERATION == PARAMETER_CHANGE
        {
            let limits = record.main_data.first_chunk().map(Limits::parse);
            let limits = limits.ok_or_else(|| record.too_short())?;
            self.limits = self.limits.or_higher(limits);
            let level = record.main_data.get(Limits::BYTES..);
            if level.and_then(<[u8]>::first_chunk) == Some(&0_u32.to_le_bytes()) {
                self.minimal.get_or_insert(record.start);
            }
        }
        Ok(())
    }

    /// Adds those of the stretch that follows.
    pub fn append(&mut self, other: Creations) {
        self.tablespaces.extend(other.tablespaces);
        self.init_forks.extend(other.init_forks);
        self.limits = self.limits.or_higher(other.limits);
        self.minimal = self.minimal.or(other.minimal);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(manager: ResourceManager, info: u8, main_data: &[u8]) -> Result<Creations> {
        let record = Record {
            start: Lsn(0x1000),
            end: Lsn(0x1040),
            resource_manager: manager,
            info,
            xid: 700,
            blocks: &[],
            main_data,
            parts: &[],
        };
        let mut creations = Creations::default();
        creations.record(&record)?;
        Ok(creations)
    }

    fn bytes(fields: &[u32]) -> Vec<u8> {
        let fields = fields.iter().flat_map(|field| field.to_le_bytes());
        fields.collect()
    }

    #[test]
    fn tablespaces_outside_and_init_forks_count() {
        let made = |fork| {
            of(
                ResourceManager::STORAGE,
                0x10,
                &bytes(&[1663, 5, 16_393, fork]),
            )
        };
        let init_fork = RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenumber: 16_393,
            fork: Fork::Init,
        };
        assert_eq!(made(3).unwrap().init_forks, BTreeSet::from([init_fork]));
        assert_eq!(made(0).unwrap(), Creations::default());

        let created = |path: &[u8]| {
            let main_data = [&16_390_u32.to_le_bytes(), path].concat();
            of(ResourceManager::TABLESPACE, 0x00, &main_data)
        };
        let tablespace = CreatedTablespace {
            at: Lsn(0x1000),
            oid: 16_390,
            folder: "/srv/fast".into(),
        };
        let found = created(b"/srv/fast\0\0\0").unwrap();
        assert_eq!(found.tablespaces, BTreeSet::from([tablespace]));
        assert_eq!(created(b"\0").unwrap(), Creations::default());
        assert!(created(b"/srv").is_err());
        assert!(of(ResourceManager::TABLESPACE, 0x00, b"x").is_err());
        let dropped = of(ResourceManager::TABLESPACE, 0x10, &bytes(&[16_390]));
        assert_eq!(dropped.unwrap(), Creations::default());
    }

    #[test]
    fn the_highest_settings_count() {
        let set = |limits: [u32; 5]| of(ResourceManager::XLOG, 0x60, &bytes(&limits));
        let mut all = set([100, 8, 10, 0, 64]).unwrap();
        all.append(set([50, 9, 10, 5, 64]).unwrap());
        let before = Limits {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 20,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
        };
        let raised = [
            ("max_worker_processes", 9),
            ("max_prepared_transactions", 5),
        ];
        assert_eq!(all.limits.above(&before), raised);
        assert_eq!(all.minimal, None);
        let minimal = of(ResourceManager::XLOG, 0x60, &[0; 24]).unwrap();
        assert_eq!(minimal.minimal, Some(Lsn(0x1000)));
        assert!(of(ResourceManager::XLOG, 0x60, b"x").is_err());
    }
}
