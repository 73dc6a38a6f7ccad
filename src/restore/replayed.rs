//! What PostgreSQL makes while it replays the WAL between a backup and a position, and what that means for what is restored.
//!
//! Most of it stays in the restored data directory. Three things do not go well by themselves:
//!
//! - A tablespace is created again in the folder where it was created first ([`CreatedTablespace`]). Where that is the source's, two
//!   servers would write the same files. The WAL cannot be told another place, so the folder must be free.
//! - A relation turns out to be unlogged, and the backup holds more of it than an init fork
//!   ([`Creations::init_forks`]). What it holds too much is not restored.
//! - The server was started with higher settings than it had when it was backed up, and those in the backup are too low for its WAL
//!   ([`Limits`]). The restored cluster is given the higher ones.
//!
//! Databases that are copied by file (`CREATE DATABASE ... STRATEGY file_copy`, `ALTER DATABASE ... SET TABLESPACE`) do go
//! well: replay copies the folder as it is at that record (commands/dbcommands.c, dbase_redo, which writes all changed
//! pages to it first), and there the restored cluster has what the source had, because it was consistent before.
//! The source let nobody change the folder between its own copy and the record.
//!
//! The block maps tell of all, so that no WAL need be read where there are maps and nothing is in them. Where something is,
//! the WAL is read up to the record that recovery stops at: what comes behind is of no concern.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};

use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::changed_blocks::RelationFork;
use crate::pg::exclusion::is_other_fork;
use crate::pg::history::WalRange;
use crate::pg::limits::Limits;
use crate::pg::lsn::Lsn;
use crate::pg::recovery::target::TargetTimeline;
use crate::pg::relation::{Fork, RelationFile};
use crate::pg::segment::SegmentSize;
use crate::pg::version::Major;
use crate::pg::wal::{
    CreatedTablespace, Creations, DatabaseChange, Record, StorageChange, behind_page_header,
    dropped_relations,
};
use crate::progress::Progress;
use crate::repository::block_maps::{BlockMap, BlockMaps, StoredMap};
use crate::repository::contents::Contents;
use crate::repository::layout::ServerFolder;
use crate::repository::roll_forward::{HeldWal, Way};
use crate::repository::wal_path::WalPath;
use crate::restore::plan::{Destination, Route, major};
use crate::stored::master_key::Keyring;

/// What replay makes that concerns what is restored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Tablespaces that are created in these folders, in the order of their records.
    pub tablespaces: Vec<CreatedTablespace>,
    /// The init forks of relations of which the backup holds other forks.
    pub unlogged: BTreeSet<RelationFork>,
    /// What the server that replays must be set to at least, as far as the WAL tells.
    pub limits: Limits,
}

/// All it takes to find out.
pub struct Search<'a> {
    /// The server's part of the repository.
    pub folder: &'a ServerFolder,
    /// The archived WAL, where there is any.
    pub held: Option<&'a HeldWal>,
    /// The master keys that block maps may be encrypted with.
    pub keys: &'a Keyring,
    /// Who waits for it.
    pub progress: &'a dyn Progress,
    /// Who may end it.
    pub interrupt: &'a Interrupt,
}

impl Search<'_> {
    /// Looks along the way that recovery takes from a backup.
    pub fn run(&self, contents: &Contents, route: &Route) -> Result<Replayed> {
        let (wanted, destination) = match route {
            // What the backup's own WAL makes, the backup knew.
            Route::OwnWal => return Ok(Replayed::default()),
            Route::Archive {
                timeline,
                destination,
            } => (TargetTimeline::Number(*timeline), destination.as_ref()),
            Route::Replica {
                timeline: Some(timeline),
                ..
            } => (TargetTimeline::Number(*timeline), None),
            Route::Replica { .. } => (TargetTimeline::Latest, None),
        };
        let Some(held) = self.held else {
            return Ok(Replayed::default());
        };
        let looked = self.along(held, contents, wanted, destination);
        match route {
            // What it does not find in the archive, it gets from its primary.
            Route::Replica { .. } => looked.or_else(|error| {
                self.interrupt.check()?;
                log::warn!(
                    "cannot tell whether the replica will create tablespaces where its primary has them: {error}"
                );
                Ok(Replayed::default())
            }),
            _ => looked,
        }
    }

    /// Hands over all records that recovery replays, from the backup's start on, until `visit` has had enough. Where it is not
    /// known beforehand where a primary stops, the record that makes it stop is the last.
    pub(super) fn visit(
        &self,
        contents: &Contents,
        route: &Route,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let info = &contents.info;
        let major = major(info)?;
        let (path, destination) = match (route, self.held) {
            (
                Route::Archive {
                    timeline,
                    destination,
                },
                Some(held),
            ) => {
                let history = held.history(info, TargetTimeline::Number(*timeline))?;
                let way = held.way(&contents.folder, info, history)?;
                (way.path, destination.as_ref())
            }
            _ => (WalPath::of_backup(&contents.folder, info, self.keys)?, None),
        };
        let landing = destination.and_then(|there| there.landing.lsn);
        let mut fault = None;
        path.read(info.start_lsn, self.interrupt, &mut |record| {
            if landing.is_some_and(|landing| record.start >= landing) {
                return ControlFlow::Break(());
            }
            let stops = destination
                .filter(|there| there.landing.lsn.is_none())
                .and_then(|there| there.target.stops_at(record, major));
            match visit(record) {
                Err(error) => {
                    fault = Some(error);
                    ControlFlow::Break(())
                }
                Ok(_) if stops.is_some() => ControlFlow::Break(()),
                Ok(flow) => flow,
            }
        })?;
        fault.map_or(Ok(()), Err)
    }

    fn along(
        &self,
        held: &HeldWal,
        contents: &Contents,
        wanted: TargetTimeline,
        destination: Option<&Destination>,
    ) -> Result<Replayed> {
        let info = &contents.info;
        let history = held.history(info, wanted)?;
        let way = Stretch {
            search: self,
            way: held.way(&contents.folder, info, history)?,
            contents,
            destination,
            major: major(info)?,
        };
        self.progress.step("look at what replay does", None);
        let creations = way.survey()?;
        let candidates = way.candidates(&creations.init_forks);
        let is_passed = creations.minimal.is_none();
        if is_passed && creations.tablespaces.is_empty() && candidates.is_empty() {
            return Ok(Replayed {
                limits: creations.limits,
                ..Replayed::default()
            });
        }
        Ok(Replayed {
            limits: creations.limits,
            ..way.read(&candidates)?
        })
    }
}

/// The way from a backup's end to where recovery stops.
struct Stretch<'a> {
    search: &'a Search<'a>,
    way: Way<'a>,
    contents: &'a Contents,
    destination: Option<&'a Destination>,
    major: Major,
}

impl Stretch<'_> {
    /// The positions from the backup's end to where recovery stops, as far as that is known.
    fn range(&self) -> Range<Lsn> {
        let landing = self.destination.and_then(|there| there.landing.lsn);
        let end = landing.unwrap_or(Lsn(u64::MAX)).min(self.way.path.end());
        self.contents.info.end_lsn..end
    }

    /// What is made on the way, and maybe somewhat before or behind: by the block maps, and where there is
    /// none by the WAL itself.
    fn survey(&self) -> Result<Creations> {
        let Range { start, end } = self.range();
        let size = SegmentSize::new(self.contents.info.wal_segment_size)
            .ok_or_else(|| Error::damage("backup.info has an impossible WAL segment size"))?;
        let maps = BlockMaps::of(self.search.folder).list()?;
        let mut creations = Creations::default();
        for range in self.way.history.path() {
            let maps = maps
                .iter()
                .filter(|map| map.name.timeline == range.timeline);
            let part = WalRange {
                start: range.start.max(start),
                end: range.end.min(end),
                ..range
            };
            let mut position = behind_page_header(part.start, size);
            for stored in maps {
                if stored.name.end <= position || position >= part.end {
                    continue;
                }
                let Some(map) = self.read_map(stored) else {
                    continue;
                };
                if stored.name.start > position {
                    let until = stored.name.start.min(part.end);
                    creations.append(self.read_wal(position..until)?);
                }
                creations.append(map.creations);
                position = stored.name.end;
            }
            if position < part.end {
                creations.append(self.read_wal(position..part.end)?);
            }
        }
        Ok(creations)
    }

    /// A map that is not to be had costs time, but no restore.
    fn read_map(&self, stored: &StoredMap) -> Option<BlockMap> {
        let system_identifier = self.contents.info.system_identifier;
        stored
            .read(system_identifier, self.search.keys)
            .unwrap_or_else(|error| {
                log::warn!("{error}; the WAL is read instead");
                None
            })
    }

    fn read_wal(&self, range: Range<Lsn>) -> Result<Creations> {
        let mut creations = Creations::default();
        self.visit(range.start, &mut |record| {
            if record.start >= range.end {
                return Ok(ControlFlow::Break(()));
            }
            creations.record(record)?;
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(creations)
    }

    /// The init forks of relations of which the backup holds another fork.
    fn candidates(&self, init_forks: &BTreeSet<RelationFork>) -> BTreeSet<RelationFork> {
        if init_forks.is_empty() {
            return BTreeSet::new();
        }
        let tablespace_directory = self.major.tablespace_directory();
        let files = self.contents.list.files.iter();
        files
            .filter(|file| is_other_fork(file.path, init_forks, &tablespace_directory))
            .filter_map(|file| init_fork_of(file.path, &tablespace_directory))
            .collect()
    }

    /// Reads the records that are replayed.
    fn read(&self, candidates: &BTreeSet<RelationFork>) -> Result<Replayed> {
        let mut replayed = Replayed::default();
        let mut relations = Relations::new(candidates);
        let Range { start, end } = self.range();
        self.visit(start, &mut |record| {
            let stops = self
                .destination
                .filter(|there| there.landing.lsn.is_none())
                .and_then(|there| there.target.stops_at(record, self.major));
            // Where it is not known beforehand where that is, it is before the record.
            if record.start >= end || stops.is_some() {
                return Ok(ControlFlow::Break(()));
            }
            let mut made = Creations::default();
            made.record(record)?;
            if let Some(at) = made.minimal {
                return Err(minimal(at));
            }
            replayed.tablespaces.extend(made.tablespaces);
            relations.record(self.major, record)?;
            Ok(ControlFlow::Continue(()))
        })?;
        replayed.unlogged = relations.unlogged;
        Ok(replayed)
    }

    fn visit(
        &self,
        from: Lsn,
        visit: &mut dyn FnMut(&Record<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut fault = None;
        self.way
            .path
            .read(from, self.search.interrupt, &mut |record| {
                visit(record).unwrap_or_else(|error| {
                    fault = Some(error);
                    ControlFlow::Break(())
                })
            })?;
        fault.map_or(Ok(()), Err)
    }
}

fn minimal(at: Lsn) -> Error {
    Error::failed(format!(
        "the server ran with wal_level = minimal at {at}, and recovery gets no further"
    ))
    .hint(format!(
        "restore a backup that was made after that, or to a position before: lsn={at},inclusive=off"
    ))
}

/// Which relations, of those that the backup holds, replay makes unlogged ones.
struct Relations<'a> {
    candidates: &'a BTreeSet<RelationFork>,
    /// Those whose files replay has removed: what has their number after that is another relation.
    gone: BTreeSet<RelationFork>,
    unlogged: BTreeSet<RelationFork>,
}

impl<'a> Relations<'a> {
    fn new(candidates: &'a BTreeSet<RelationFork>) -> Relations<'a> {
        Relations {
            candidates,
            gone: BTreeSet::new(),
            unlogged: BTreeSet::new(),
        }
    }

    fn record(&mut self, major: Major, record: &Record<'_>) -> Result<()> {
        if self.candidates.is_empty() {
            return Ok(());
        }
        if let Some(StorageChange::Made(fork)) = StorageChange::of(record)?
            && self.candidates.contains(&fork)
            && !self.gone.contains(&fork)
        {
            self.unlogged.insert(fork);
        }
        dropped_relations(record, &mut |relation| self.remove(init_fork(relation)))?;
        match DatabaseChange::of(major, record)? {
            None | Some(DatabaseChange::Created(_)) => {}
            Some(change) => {
                for folder in change.affected() {
                    let there = |fork: &&RelationFork| {
                        (fork.tablespace, fork.database) == (folder.tablespace, folder.database)
                    };
                    self.gone
                        .extend(self.candidates.iter().filter(there).copied());
                }
            }
        }
        Ok(())
    }

    fn remove(&mut self, fork: RelationFork) {
        if self.candidates.contains(&fork) {
            self.gone.insert(fork);
        }
    }
}

fn init_fork(fork: RelationFork) -> RelationFork {
    RelationFork {
        fork: Fork::Init,
        ..fork
    }
}

fn init_fork_of(path: &str, tablespace_directory: &str) -> Option<RelationFork> {
    let file = RelationFile::parse(path, tablespace_directory)?;
    RelationFork::of(&file).map(init_fork)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pg::wal::ResourceManager;

    /// A record's resource manager, what it does, and the fields of its main data.
    type Fields<'a> = (ResourceManager, u8, &'a [u32]);

    const MADE: Fields<'_> = (ResourceManager::STORAGE, 0x10, &[1663, 5, 16_393, 3]);
    const OTHER_MADE: Fields<'_> = (ResourceManager::STORAGE, 0x10, &[1663, 5, 16_394, 3]);
    const DROPPED: Fields<'_> = (
        ResourceManager::TRANSACTION,
        0x80,
        &[0, 0, 4, 1, 1663, 5, 16_393],
    );
    const DATABASE_DROPPED: Fields<'_> = (ResourceManager::DATABASE, 0x20, &[5, 1, 1663]);
    const DATABASE_COPIED: Fields<'_> = (ResourceManager::DATABASE, 0x00, &[5, 1663, 4, 1663]);
    const OTHER_COPIED: Fields<'_> = (ResourceManager::DATABASE, 0x00, &[6, 1663, 5, 1663]);

    /// How many relations are unlogged after these records, of one that the backup holds.
    fn unlogged(records: &[Fields<'_>]) -> usize {
        let candidates = BTreeSet::from([RelationFork {
            tablespace: 1663,
            database: 5,
            relfilenumber: 16_393,
            fork: Fork::Init,
        }]);
        let mut relations = Relations::new(&candidates);
        for (manager, info, fields) in records {
            let main_data: Vec<u8> = fields
                .iter()
                .flat_map(|field| field.to_le_bytes())
                .collect();
            let record = Record {
                start: Lsn(0x1000),
                end: Lsn(0x1040),
                resource_manager: *manager,
                info: *info,
                xid: 700,
                blocks: &[],
                main_data: &main_data,
                parts: &[],
            };
            relations.record(Major::V16, &record).unwrap();
        }
        relations.unlogged.len()
    }

    #[test]
    fn what_the_backup_holds_is_unlogged_unless_it_went_before() {
        for (records, expected) in [
            (&[MADE][..], 1),
            (&[OTHER_MADE], 0),
            (&[MADE, DROPPED], 1),
            (&[OTHER_COPIED, MADE], 1),
            // What has the same number is no longer what the backup holds.
            (&[DROPPED, MADE], 0),
            (&[DATABASE_DROPPED, MADE], 0),
            (&[DATABASE_COPIED, MADE], 0),
        ] {
            assert_eq!(unlogged(records), expected, "{records:?}");
        }
    }
}
