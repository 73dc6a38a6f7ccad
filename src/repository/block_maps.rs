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
use crate::pg::history::WalRange;
use crate::pg::lsn::Lsn;
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

/// Block maps of a range of WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// They cover the range from its start on, in the order in which they must be taken together.
    pub maps: Vec<StoredMap>,
    /// The first position of the range that none covers.
    pub missing: Option<Lsn>,
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

    /// The maps that together say what changed in a range of one timeline.
    pub fn cover(&self, range: &WalRange) -> Result<Coverage> {
        Ok(cover(&self.list()?, range))
    }

    /// Stores a map, unless there is one of the same WAL. Once this returns, it is on disk.
    pub fn store(&self, name: SummaryName, changed: &ChangedBlocks, coding: &Coding) -> Result<()> {
        durable::create_folder(&self.folder)?;
        incoming::remove_leftovers(&self.folder)?;
        let mut file = Incoming::create(&self.folder, coding)?;
        file.append(&changed.to_bytes())?;
        // The same WAL always comes to the same map.
        file.finish()?.publish(&name.file_name())?;
        durable::sync_folder(&self.folder)
    }
}

impl StoredMap {
    /// Reads it.
    pub fn read(&self, keys: &Keyring) -> Result<ChangedBlocks> {
        let content = read_whole(&self.path, &Coding::of_file(&self.path, keys)?)?;
        ChangedBlocks::parse(&content).map_err(|error| error.context(self.path.display()))
    }
}

/// Takes at each position the map that goes furthest, from `maps` in the order of their names. That one
/// may begin before the position: what is taken twice does no harm.
fn cover(maps: &[StoredMap], range: &WalRange) -> Coverage {
    let mut candidates = maps
        .iter()
        .filter(|map| map.name.timeline == range.timeline)
        .peekable();
    let mut coverage = Coverage {
        maps: Vec::new(),
        missing: None,
    };
    let mut position = range.start;
    while position < range.end {
        let mut furthest: Option<&StoredMap> = None;
        while let Some(map) = candidates.next_if(|map| map.name.start <= position) {
            furthest = furthest
                .into_iter()
                .chain([map])
                .max_by_key(|map| map.name.end);
        }
        match furthest {
            Some(map) if map.name.end > position => {
                position = map.name.end;
                coverage.maps.push(map.clone());
            }
            _ => {
                coverage.missing = Some(position);
                break;
            }
        }
    }
    coverage
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pg::changed_blocks::RelationFork;
    use crate::pg::lsn::Timeline;
    use crate::pg::relation::Fork;

    fn name(timeline: u32, start: u64, end: u64) -> SummaryName {
        SummaryName {
            timeline: Timeline(timeline),
            start: Lsn(start),
            end: Lsn(end),
        }
    }

    fn range(timeline: u32, start: u64, end: u64) -> WalRange {
        WalRange {
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
    fn maps_come_back_and_cover_what_they_are_of() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let maps = BlockMaps::of(&server);
        assert_eq!(maps.list().unwrap(), []);
        assert_eq!(maps.cover(&range(1, 1, 2)).unwrap().missing, Some(Lsn(1)));

        let none = &Coding::PLAIN;
        let keys = Keyring::new(None);
        maps.store(name(1, 100, 200), &changed(1), &Coding::default())
            .unwrap();
        maps.store(name(1, 200, 300), &changed(2), none).unwrap();
        maps.store(name(1, 150, 300), &changed(3), none).unwrap();
        maps.store(name(2, 300, 400), &changed(4), none).unwrap();
        maps.store(name(1, 310, 400), &changed(5), none).unwrap();
        // The first one stays.
        maps.store(name(1, 200, 300), &changed(2), none).unwrap();
        assert_eq!(maps.list().unwrap().len(), 5);

        let covered = |range| {
            let coverage = maps.cover(&range).unwrap();
            let read = coverage.maps.iter().map(|map| map.read(&keys).unwrap());
            (read.collect::<Vec<_>>(), coverage.missing)
        };
        assert_eq!(covered(range(1, 120, 200)), (vec![changed(1)], None));
        let (maps, missing) = covered(range(1, 100, 301));
        assert_eq!((maps.len(), missing), (2, Some(Lsn(300))));
        assert_eq!(covered(range(1, 50, 120)), (vec![], Some(Lsn(50))));
        assert_eq!(covered(range(2, 300, 350)), (vec![changed(4)], None));
        assert_eq!(covered(range(1, 200, 200)), (vec![], None));
    }
}
