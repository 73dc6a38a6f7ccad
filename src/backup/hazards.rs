//! What happened while the backup ran that PostgreSQL does another thing of when it replays it in a restored cluster.
//!
//! `CREATE DATABASE` with the strategy `file_copy`, the only one in PostgreSQL 14, and `ALTER DATABASE SET TABLESPACE`
//! copy a folder, and WAL does not say what is in it: replay copies that folder again (commands/dbcommands.c,
//! dbase_redo). In a restored cluster it holds what the backup read, maybe later than that; so it must have
//! stayed as it was. PostgreSQL's own backups have the same gap, and its documentation only asks not to change a
//! template meanwhile ("Continuous Archiving", Caveats).
//!
//! `CREATE TABLESPACE` is done again where it was done first (commands/tablespace.c, create_tablespace_directories),
//! wherever the tablespace was restored to: beside the server itself, the two would then write the same files.
//!
//! All of that is right where it happens behind the backup's end, as far as databases go: replay copies a folder when
//! it has come to that record, with all changes of before and none of after. Where tablespaces are created
//! then, and which unlogged relations are, a restore looks for itself ([`replayed`](crate::restore::replayed)).

use std::collections::{BTreeSet, HashMap};

use crate::backup::catalogued::Catalogued;
use crate::error::{Error, Result};
use crate::pg::changed_blocks::RelationFork;
use crate::pg::lsn::Lsn;
use crate::pg::relation::Fork;
use crate::pg::version::Major;
use crate::pg::wal::{Creations, DatabaseChange, DatabaseFolder, Record};

/// What a stretch of WAL says of databases' folders and of tablespaces.
#[derive(Debug, Default)]
pub(super) struct Hazards {
    copied: Vec<Copied>,
    /// Where a folder was last removed or a block in it changed.
    changed: HashMap<DatabaseFolder, Lsn>,
    creations: Creations,
}

#[derive(Debug)]
struct Copied {
    at: Lsn,
    from: DatabaseFolder,
    to: DatabaseFolder,
}

impl Hazards {
    /// Takes a record; those of one stretch in their order.
    pub(super) fn record(&mut self, major: Major, record: &Record<'_>) -> Result<()> {
        match DatabaseChange::of(major, record)? {
            Some(DatabaseChange::Copied { from, to }) => self.copied.push(Copied {
                at: record.start,
                from,
                to,
            }),
            Some(DatabaseChange::Dropped(folders)) => {
                for folder in folders {
                    self.change(folder, record.start);
                }
            }
            Some(DatabaseChange::Created(_)) | None => {}
        }
        self.creations.record(record)?;
        // A hint is as true before as after.
        if record.is_hint() {
            return Ok(());
        }
        let forks = record.blocks.iter().map(|block| block.fork);
        for fork in forks.filter(|fork| fork.fork != Fork::FreeSpaceMap) {
            let folder = DatabaseFolder {
                tablespace: fork.tablespace,
                database: fork.database,
            };
            self.change(folder, record.start);
        }
        Ok(())
    }

    fn change(&mut self, folder: DatabaseFolder, at: Lsn) {
        let last = self.changed.entry(folder).or_default();
        *last = at.max(*last);
    }

    /// Adds what another stretch says, in front of this one or behind it.
    pub(super) fn add(&mut self, other: Hazards) {
        self.copied.extend(other.copied);
        self.creations.append(other.creations);
        for (folder, at) in other.changed {
            self.change(folder, at);
        }
    }

    /// The init forks that were made; or what a restored cluster would not come to as the server did. All files had been
    /// read when the server's WAL had come to `read_until`: what it copied then, replay copies as it was.
    pub(super) fn check(
        self,
        read_until: Lsn,
        names: &[&Catalogued],
    ) -> Result<BTreeSet<RelationFork>, Hazard> {
        let changed_since = |copied: &&Copied| {
            let last = self.changed.get(&copied.from);
            copied.at < read_until && last.is_some_and(|last| *last > copied.at)
        };
        let copies = self.copied.iter().filter(changed_since).map(|copied| Met {
            at: copied.at,
            what: copied.in_words(names),
        });
        let created = self.creations.tablespaces.iter().map(|created| Met {
            at: created.at,
            what: format!("a tablespace was created in {}", created.folder.display()),
        });
        let mut met: Vec<Met> = copies.chain(created).collect();
        met.sort_by_key(|met| met.at);
        match met.last() {
            None => Ok(self.creations.init_forks),
            Some(last) => Err(Hazard {
                at: last.at,
                met: met.into_iter().map(|met| met.what).collect(),
            }),
        }
    }
}

impl Copied {
    fn in_words(&self, names: &[&Catalogued]) -> String {
        let named = |oid: u32| {
            let mut names = names.iter();
            match names.find_map(|catalogued| catalogued.database_name(oid)) {
                Some(name) => format!("database {name} (OID {oid})"),
                None => format!("the database with OID {oid}"),
            }
        };
        match (self.from.database, self.to.database) {
            (from, to) if from == to => format!("{} was moved to another tablespace", named(to)),
            (from, to) => format!(
                "{} was created as a copy of the files of {}, which was changed or dropped after that",
                named(to),
                named(from)
            ),
        }
    }
}

struct Met {
    at: Lsn,
    what: String,
}

/// What a restored cluster would not come to as the server did, as long as replay begins before it.
#[derive(Debug)]
pub(super) struct Hazard {
    /// Where the last of it is in the WAL.
    pub(super) at: Lsn,
    /// All of it in words, in its order.
    pub(super) met: Vec<String>,
}

impl Hazard {
    /// The first of it as an error.
    pub(super) fn error(&self) -> Error {
        let first = self.met.first().map_or("", String::as_str);
        Error::failed(format!("while the backup ran, {first}"))
            .hint(
                "start the backup when databases are not moved or copied by file, nor tablespaces created, all the time; \
                 CREATE DATABASE ... STRATEGY wal_log (PostgreSQL 15 and later) can be run at any time",
            )
            .momentary()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::changed_blocks::RelationFork;
    use crate::pg::wal::{BlockReference, ResourceManager};

    const TEMPLATE: u32 = 5;
    const NEW: u32 = 16_384;

    fn record(
        at: u64,
        manager: ResourceManager,
        info: u8,
        fields: &[u32],
        blocks: &[BlockReference],
    ) -> Hazards {
        let main_data: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        let mut databases = Hazards::default();
        let record = Record {
            start: Lsn(at),
            end: Lsn(at + 8),
            resource_manager: manager,
            info,
            xid: 0,
            blocks,
            main_data: &main_data,
            parts: &[],
        };
        databases.record(Major::V16, &record).unwrap();
        databases
    }

    fn copy(at: u64) -> Hazards {
        record(
            at,
            ResourceManager::DATABASE,
            0x00,
            &[NEW, 1663, TEMPLATE, 1663],
            &[],
        )
    }

    fn drop_of(at: u64, database: u32) -> Hazards {
        record(
            at,
            ResourceManager::DATABASE,
            0x20,
            &[database, 1, 1663],
            &[],
        )
    }

    fn change(at: u64, manager: ResourceManager, info: u8, database: u32) -> Hazards {
        let fork = RelationFork {
            tablespace: 1663,
            database,
            relfilenumber: 1259,
            fork: Fork::Main,
        };
        record(
            at,
            manager,
            info,
            &[],
            &[BlockReference {
                fork,
                block: 3,
                has_image: false,
                is_begun: false,
            }],
        )
    }

    fn is_sound(parts: impl IntoIterator<Item = Hazards>) -> bool {
        let mut all = Hazards::default();
        for part in parts {
            all.add(part);
        }
        all.check(Lsn(u64::MAX), &[]).is_ok()
    }

    #[test]
    fn what_is_copied_must_stay_as_it_was() {
        let heap = ResourceManager(10);
        assert!(is_sound([copy(100)]));
        assert!(!is_sound([copy(100), change(200, heap, 0, TEMPLATE)]));
        assert!(!is_sound([change(200, heap, 0, TEMPLATE), copy(100)]));
        assert!(!is_sound([copy(100), drop_of(200, TEMPLATE)]));
        // Before it was copied, replay has done the same; and other databases do not matter.
        assert!(is_sound([
            copy(100),
            change(50, heap, 0, TEMPLATE),
            drop_of(50, TEMPLATE)
        ]));
        assert!(is_sound([
            copy(100),
            change(200, heap, 0, NEW),
            drop_of(200, NEW)
        ]));
        assert!(is_sound([
            change(200, heap, 0, TEMPLATE),
            drop_of(200, TEMPLATE)
        ]));
    }

    #[test]
    fn a_tablespace_outside_is_created_anew() {
        let created = |location: &str| {
            let mut fields = vec![16_390];
            let bytes = [location.as_bytes(), &[0; 4]].concat();
            fields.extend(
                bytes
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|four| u32::from_le_bytes(*four)),
            );
            record(100, ResourceManager::TABLESPACE, 0x00, &fields, &[])
        };
        assert!(!is_sound([created("/srv/fast")]));
        // In the data directory it is the restored cluster's own.
        assert!(is_sound([created("")]));
        let dropped = record(100, ResourceManager::TABLESPACE, 0x10, &[16_390], &[]);
        assert!(is_sound([dropped]));
    }

    #[test]
    fn what_is_copied_once_all_is_read_may_change() {
        let heap = ResourceManager(10);
        let of = |read_until| {
            let mut all = copy(100);
            all.add(change(200, heap, 0, TEMPLATE));
            all.check(Lsn(read_until), &[])
        };
        assert!(of(100).is_ok());
        assert_eq!(of(150).unwrap_err().at, Lsn(100));
    }

    #[test]
    fn a_hint_is_no_change() {
        assert!(is_sound([
            copy(100),
            change(200, ResourceManager::XLOG, 0xA0, TEMPLATE)
        ]));
        assert!(!is_sound([
            copy(100),
            change(200, ResourceManager::XLOG, 0xB0, TEMPLATE)
        ]));
    }
}
