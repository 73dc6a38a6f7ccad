//! Block maps: which blocks the archived WAL changed, as PostgreSQL 17's own WAL summaries say it.
//!
//! One is made of each segment as it is stored. They adjoin at the ends of records, so that nothing
//! is missing where one ends and the next begins. Their content and names are those of
//! summaries ([`ChangedBlocks`], [`SummaryName`]), with the suffixes of what was done to the file.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::pg::changed_blocks::{ChangedBlocks, SummaryName};
use crate::repository::durable;
use crate::repository::incoming::{self, Incoming};
use crate::repository::layout::ServerFolder;
use crate::stored::coding::{Coding, Suffix};
use crate::stored::master_key::Keyring;
use crate::stored::reader::read_whole;

/// The block maps of one server.
#[derive(Debug, Clone)]
pub struct BlockMaps {
    folder: PathBuf,
}

/// A block map as it lies in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMap {
    /// The WAL it is of.
    pub name: SummaryName,
    /// Where it lies.
    pub path: PathBuf,
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
        let unreadable = |error: io::Error| Error::io("read the folder", &self.folder, &error);
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unreadable)?,
        };
        let mut maps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let file_name = entry.file_name();
            maps.extend(file_name.to_str().and_then(|file_name| {
                Some(StoredMap {
                    name: SummaryName::parse(Suffix::split(file_name).0)?,
                    path: entry.path(),
                })
            }));
        }
        maps.sort_by_key(|map| map.name);
        Ok(maps)
    }

    /// Stores a map, unless there is one of the same WAL. Once this returns, it is on disk.
    pub fn store(&self, name: SummaryName, changed: &ChangedBlocks, coding: &Coding) -> Result<()> {
        durable::create_folder(&self.folder)?;
        incoming::remove_leftovers(&self.folder)?;
        let mut file = Incoming::create(&self.folder, coding)?;
        file.append(&changed.to_bytes())?;
        // The same WAL always comes to the same map. One that somebody else made may not be on disk yet.
        match file.finish()?.publish(&name.file_name())? {
            true => Ok(()),
            false => durable::sync_folder(&self.folder),
        }
    }
}

impl StoredMap {
    /// Reads it.
    pub fn read(&self, keys: &Keyring) -> Result<ChangedBlocks> {
        let content = read_whole(&self.path, &Coding::of_file(&self.path, keys)?)?;
        ChangedBlocks::parse(&content).map_err(|error| error.context(self.path.display()))
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

    fn changed(block: u32) -> ChangedBlocks {
        let mut changed = ChangedBlocks::new();
        let fork = RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenumber: 16384,
            fork: Fork::Main,
        };
        changed.mark(fork, block);
        changed
    }

    #[test]
    fn maps_come_back_as_they_were() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let maps = BlockMaps::of(&server);
        assert_eq!(maps.list().unwrap(), []);

        let none = &Coding::PLAIN;
        maps.store(name(2, 300, 400), &changed(2), none).unwrap();
        maps.store(name(1, 200, 300), &changed(1), none).unwrap();
        maps.store(name(1, 100, 200), &changed(0), &Coding::default())
            .unwrap();
        // The first one stays.
        maps.store(name(1, 200, 300), &changed(7), none).unwrap();
        let stored = maps.list().unwrap();
        let names: Vec<SummaryName> = stored.iter().map(|map| map.name).collect();
        assert_eq!(
            names,
            [name(1, 100, 200), name(1, 200, 300), name(2, 300, 400)]
        );
        for (block, map) in (0..).zip(&stored) {
            assert_eq!(map.read(&Keyring::new(None)).unwrap(), changed(block));
        }
    }
}
