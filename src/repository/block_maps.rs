//! Block maps: which blocks the archived WAL changed, as PostgreSQL 17's own WAL summaries say it.
//!
//! One is made of each segment as it is stored. They adjoin at the ends of records, so that nothing
//! is missing where one ends and the next begins. Their names are those of summaries ([`SummaryName`]), with the
//! suffixes of what was done to the file, and so is their content ([`ChangedBlocks`]), followed by which WAL of which
//! cluster it is of, lest one be taken for another, and by what replay of that WAL makes ([`Creations`]).

mod format;

use crate::error::{Error, Result};
use crate::pg::changed_blocks::{ChangedBlocks, SummaryName};
use crate::pg::wal::Creations;
use crate::repository::incoming::{self, Incoming};
use crate::repository::layout::ServerFolder;
use crate::repository::wal_archive::Stored;
use crate::storage::{Place, durable};
use crate::stored::coding::{Coding, Suffix};
use crate::stored::master_key::Keyring;
use crate::stored::reader::read_whole;

/// The block maps of one server.
#[derive(Debug, Clone)]
pub struct BlockMaps {
    folder: Place,
}

/// What a stretch of WAL tells.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockMap {
    /// The WAL it is of.
    pub name: SummaryName,
    /// The cluster that wrote it.
    pub system_identifier: u64,
    /// Which blocks it changed.
    pub changed: ChangedBlocks,
    /// What it makes.
    pub creations: Creations,
}

/// A block map as it lies in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMap {
    /// The WAL it is of.
    pub name: SummaryName,
    /// Where it lies.
    pub path: Place,
}

impl BlockMaps {
    /// The block maps of a server; there need not be any.
    pub fn of(server: &ServerFolder) -> BlockMaps {
        BlockMaps {
            folder: server.summaries(),
        }
    }

    /// All of them, in the order of their names: by timeline, then by position.
    pub fn list(&self) -> Result<Vec<StoredMap>> {
        let stored = |file_name: String| {
            Some(StoredMap {
                name: SummaryName::parse(Suffix::split(&file_name).0)?,
                path: self.folder.join(&file_name),
            })
        };
        let names = self.folder.names()?.into_iter();
        let mut maps: Vec<StoredMap> = names.filter_map(stored).collect();
        maps.sort_by_key(|map| map.name);
        Ok(maps)
    }

    /// Stores the map of WAL that is in the archive, unless it is there. Once this returns, it is on disk. Another one of
    /// that name goes: it is of WAL that did not come into the archive. The keys are those that it may be encrypted with.
    pub fn store(&self, map: &BlockMap, coding: &Coding, keys: &Keyring) -> Result<()> {
        self.folder
            .local()
            .map_or(Ok(()), durable::create_synced_folder)?;
        incoming::remove_leftovers(&self.folder)?;
        let mut is_there = false;
        for stored in self.variants(map.name)? {
            match stored.read(map.system_identifier, keys) {
                Ok(Some(found)) if found == *map => is_there = true,
                _ => stored.path.remove()?,
            }
        }
        if is_there {
            // Somebody else made it, and may not have synced it.
            return self.folder.sync_folder();
        }
        let mut file = Incoming::create(&self.folder, coding)?;
        file.append(&map.to_bytes())?;
        // The same WAL always comes to the same map.
        match file.finish()?.publish(&map.name.file_name())? {
            true => Ok(()),
            false => self.folder.sync_folder(),
        }
    }

    /// Takes in a map of another repository as it is stored there, unless there is one of its name. Once this returns, it is on disk.
    pub fn take_in(
        &self,
        theirs: &StoredMap,
        pass: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Stored> {
        self.folder
            .local()
            .map_or(Ok(()), durable::create_synced_folder)?;
        let mut file = Incoming::copy_of(&self.folder, &theirs.path, pass)?;
        match file.publish(&theirs.path.name())? {
            true => Ok(Stored::New),
            false => self.folder.sync_folder().map(|()| Stored::Already),
        }
    }
}

impl BlockMaps {
    /// The maps of a name, each stored in its own way.
    fn variants(&self, name: SummaryName) -> Result<Vec<StoredMap>> {
        let file_name = name.file_name();
        let all = Suffix::all().map(|suffix| format!("{file_name}{suffix}"));
        let found = self.folder.present(&file_name, all)?.into_iter();
        Ok(found
            .map(|stored| StoredMap {
                name,
                path: self.folder.join(&stored),
            })
            .collect())
    }
}

impl StoredMap {
    /// Reads it, if it is of this cluster's WAL and of that which it is named after. Gives nothing where it was made
    /// before maps said so: that WAL must be read itself.
    pub fn read(&self, system_identifier: u64, keys: &Keyring) -> Result<Option<BlockMap>> {
        let content = read_whole(&self.path, &Coding::of_file(&self.path, keys)?)?;
        let unusable = |error: Error| {
            error
                .context(&self.path)
                .hint("remove it: the WAL that it is of is read instead")
        };
        let Some(map) = BlockMap::parse(&content).map_err(unusable)? else {
            return Ok(None);
        };
        if map.name != self.name {
            let SummaryName {
                timeline,
                start,
                end,
            } = map.name;
            return Err(unusable(Error::damage(format!(
                "it is of the WAL from {start} to {end} on timeline {timeline}, and was given another name"
            ))));
        }
        if map.system_identifier != system_identifier {
            return Err(unusable(Error::damage(format!(
                "it is of the WAL of another cluster, {}",
                map.system_identifier
            ))));
        }
        Ok(Some(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::changed_blocks::RelationFork;
    use crate::pg::lsn::{Lsn, Timeline};
    use crate::pg::relation::Fork;

    fn name(timeline: u32, start: u64, end: u64) -> SummaryName {
        SummaryName {
            timeline: Timeline(timeline),
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    const CLUSTER: u64 = 7_710_982_562_572_587_380;

    fn map(name: SummaryName, block: u32) -> BlockMap {
        let fork = RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenumber: 16384,
            fork: Fork::Main,
        };
        let mut changed = ChangedBlocks::new();
        changed.mark(fork, block);
        BlockMap {
            name,
            system_identifier: CLUSTER,
            changed,
            creations: Creations::default(),
        }
    }

    fn read(stored: &StoredMap) -> Result<Option<BlockMap>> {
        stored.read(CLUSTER, &Keyring::new(None))
    }

    #[test]
    fn maps_come_back_as_they_were() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let maps = BlockMaps::of(&server);
        assert_eq!(maps.list().unwrap(), []);

        let expected = [
            map(name(1, 100, 200), 0),
            map(name(1, 200, 300), 1),
            map(name(2, 300, 400), 2),
        ];
        let none = &Coding::PLAIN;
        let keys = &Keyring::new(None);
        maps.store(&expected[2], none, keys).unwrap();
        // The last one stays: it is of the WAL that came into the archive, whatever it is stored like.
        maps.store(&map(name(1, 200, 300), 7), none, keys).unwrap();
        maps.store(&expected[1], &Coding::default(), keys).unwrap();
        maps.store(&expected[0], &Coding::default(), keys).unwrap();
        maps.store(&expected[0], none, keys).unwrap();
        let stored = maps.list().unwrap();
        let found: Vec<BlockMap> = stored
            .iter()
            .map(|map| read(map).unwrap().unwrap())
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_map_counts_for_its_own_wal_alone() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let maps = BlockMaps::of(&server);
        let keys = &Keyring::new(None);
        maps.store(&map(name(1, 100, 200), 0), &Coding::PLAIN, keys)
            .unwrap();
        let stored = maps.list().unwrap().remove(0);
        let error = stored.read(CLUSTER + 1, &Keyring::new(None)).unwrap_err();
        assert!(error.message().contains("another cluster"), "{error}");

        let renamed = StoredMap {
            name: name(1, 200, 300),
            ..stored.clone()
        };
        let error = read(&renamed).unwrap_err();
        assert!(error.message().contains("0/64 to 0/C8"), "{error}");

        let earlier = map(stored.name, 0).changed.to_bytes();
        stored.path.replace(&earlier).unwrap();
        assert_eq!(read(&stored).unwrap(), None);
    }
}
