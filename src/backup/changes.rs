//! Which blocks changed since the parent, from whichever source knows it.
//!
//! The server's WAL summaries come first, then the repository's block maps, and what
//! neither covers is read from the WAL itself.

mod coverage;
mod joined;
mod wal;

use postgres::Client;

use crate::backup::parent::Parent;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::pg::changed_blocks::{ChangedBlocks, RelationFork};
use crate::pg::history::{TimelineHistory, WalRange};
use crate::pg::lsn::Lsn;
use crate::pg::page::PAGE_SIZE;
use crate::pg::relation::{Fork, RelationFile};
use crate::pg::version::Major;
use crate::progress::Progress;
use crate::repository::backup_info::{ChangeSource, Increment};
use crate::repository::block_maps::BlockMaps;
use crate::repository::file_list::{Files, SearchOn};
use crate::repository::layout::ServerFolder;
use crate::repository::store::BUNDLED_BYTES;
use crate::server::facts::Facts;
use crate::server::pg_wal;
use crate::server::reading::{FileReader, Range, ranges};
use crate::server::session::BackupSession;
use crate::stored::master_key::Keyring;

use coverage::{Piece, cover};

/// What changed since the parent.
pub(super) struct Changes {
    /// What makes this backup incremental.
    pub(super) increment: Increment,
    pub(super) blocks: ChangedBlocks,
    /// The main forks of the parent's relations.
    relations: Files,
    /// Blocks of a full segment file.
    segment_blocks: u32,
}

/// All it takes to find out.
pub(super) struct Search<'a> {
    pub(super) facts: &'a Facts,
    /// The server's part of the repository.
    pub(super) folder: &'a ServerFolder,
    /// The master keys at hand.
    pub(super) keys: &'a Keyring,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
}

/// The way from the parent to this backup.
struct Path {
    /// The timelines the server came by.
    history: TimelineHistory,
    /// The WAL in between, the newest first.
    ranges: Vec<WalRange>,
}

impl Search<'_> {
    /// Finds every block that changed from the parent's start to this backup's, which the server has `reached`, or more.
    pub(super) fn run(
        &self,
        parent: Parent,
        reached: Lsn,
        session: &mut BackupSession,
        readers: &mut [FileReader],
    ) -> Result<Changes> {
        let start = session.start_lsn();
        let (_, control) = readers[0].read_control_file()?;
        let timeline = control
            .checkpoint_timeline
            .max(control.min_recovery_point_timeline);
        let (history, _) = pg_wal::history(timeline, &mut readers[0])?;
        parent.check_ancestry(reached, &history)?;
        parent.check_wal(self.facts.control.wal_segment_size, &mut readers[0])?;
        let from = parent.info.start_lsn;
        let path = Path {
            ranges: match from < start {
                true => history.ranges(from, start, history.timeline_of(start))?,
                // A standby that had no other restartpoint meanwhile.
                false => Vec::new(),
            },
            history,
        };
        let changed = self.changed(&path, session.client(), readers);
        let (later, sources) = changed.map_err(|error| {
            error.context(format!(
                "cannot tell which blocks changed since backup {}",
                parent.info.backup
            ))
        })?;
        let mut blocks = parent.owed;
        blocks.append(later);
        Ok(Changes {
            increment: Increment {
                parent: parent.info.backup,
                from_lsn: from,
                from_timeline: parent.info.start_timeline,
                sources,
            },
            blocks,
            relations: parent.relations,
            segment_blocks: parent.info.relation_segment_blocks,
        })
    }

    fn changed(
        &self,
        path: &Path,
        client: &mut Client,
        readers: &mut [FileReader],
    ) -> Result<(ChangedBlocks, Vec<ChangeSource>)> {
        let mut changed = ChangedBlocks::new();
        let mut sources = Vec::new();
        let summaries = match self.facts.version.major >= Major::V17 {
            true => pg_wal::summaries(client)?,
            false => Vec::new(),
        };
        let maps = BlockMaps::of(self.folder).list()?;
        for range in path.ranges.iter().rev() {
            for piece in cover(range, &summaries, &maps) {
                let known = match piece {
                    Piece::Summary(summary) => Some((
                        ChangeSource::Summaries,
                        read_summary(summary, &mut readers[0])?,
                    )),
                    Piece::BlockMap(map) => map
                        .read(self.facts.control.system_identifier, self.keys)?
                        .map(|map| (ChangeSource::BlockMaps, map.changed)),
                    Piece::Wal(_) => None,
                };
                let (source, piece) = match known {
                    Some(known) => known,
                    None => (
                        ChangeSource::Wal,
                        self.read_wal(piece.range(), &path.history, client, readers)?,
                    ),
                };
                sources.push(source);
                changed.append(piece);
            }
        }
        sources.sort_unstable();
        sources.dedup();
        Ok((changed, sources))
    }
}

fn read_summary(summary: pg_wal::Summary, reader: &mut FileReader) -> Result<ChangedBlocks> {
    let path = summary.path();
    let mut content = Vec::new();
    let wanted: Vec<Range<'_>> = ranges(&path, 0, summary.size).collect();
    reader.read(&wanted, |_, bytes| {
        let bytes = bytes.ok_or_else(|| {
            Error::server(format!("the server has just removed {path}"))
                .hint("start the backup again; wal_summary_keep_time says how long summaries stay")
                .momentary()
        })?;
        content.extend_from_slice(bytes);
        Ok(())
    })?;
    ChangedBlocks::parse(&content).map_err(|error| {
        error
            .context(format!("the server's {path}"))
            .hint("make a full backup, and see what damages files on the server")
    })
}

/// Above this part of its blocks a file is stored whole, as PostgreSQL does
/// (backup/basebackup_incremental.c, GetFileBackupMethod).
const MOSTLY_CHANGED_PERCENT: usize = 90;

impl Changes {
    /// What to read of relations' files, which are asked about in the order of their paths.
    pub(super) fn wanted_blocks(&self) -> WantedBlocks<'_> {
        WantedBlocks {
            changes: self,
            parents: self.relations.search_on(),
        }
    }
}

/// What to read of one file after the other.
pub(super) struct WantedBlocks<'a> {
    changes: &'a Changes,
    parents: SearchOn<'a>,
}

impl WantedBlocks<'_> {
    /// The blocks to read of a relation's file that has `size` bytes; `None` for all of it (backup/basebackup_incremental.c,
    /// GetFileBackupMethod), more carefully in two ways.
    ///
    /// Visibility maps are always whole: until late in 2026 the clearing of their bits left no trace in the WAL
    /// that a summary could see. And what a relation grew by since it was last
    /// shortened, or since the parent, counts as changed: it may have grown by pages that are zero and that
    /// the WAL does not mention, where an older backup has rows that were removed since.
    pub(super) fn of(
        &mut self,
        path: &str,
        file: &RelationFile<'_>,
        size: u64,
    ) -> Option<Box<[u32]>> {
        let Changes {
            blocks,
            relations,
            segment_blocks,
            ..
        } = self.changes;
        let segment_blocks = *segment_blocks;
        if file.fork != Fork::Main {
            return None;
        }
        let parents_size = relations.get(self.parents.find(path)?).restored_size();
        let parents_length = (parents_size / PAGE_SIZE as u64) as u32;
        let length = size / PAGE_SIZE as u64;
        if length == 0 || length > u64::from(segment_blocks) {
            return None;
        }
        let length = length as u32;
        let fork = RelationFork::of(file)?;
        if blocks.is_recreated(fork.tablespace, fork.database) {
            return None;
        }
        let first = file.segment.checked_mul(segment_blocks)?;
        let changes = blocks.get(&fork);
        let mut kept = parents_length.min(length);
        if let Some(limit) = changes.and_then(|changes| changes.limit) {
            let limit = limit.saturating_sub(first).min(segment_blocks);
            // A file shorter than the relation ever was is none that is understood.
            if limit == 0 || limit > length {
                return None;
            }
            kept = kept.min(limit);
        }
        let mut blocks: Vec<u32> = Vec::new();
        if let Some(changes) = changes {
            let referenced = changes.blocks.range(first..first.saturating_add(kept));
            blocks.extend(referenced.map(|block| block - first));
        }
        blocks.extend(kept..length);
        let is_small = size <= BUNDLED_BYTES && !blocks.is_empty();
        let is_mostly_changed = blocks.len() * 100 > length as usize * MOSTLY_CHANGED_PERCENT;
        (!is_small && !is_mostly_changed).then(|| blocks.into_boxed_slice())
    }
}
