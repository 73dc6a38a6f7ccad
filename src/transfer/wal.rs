//! Archived WAL and block maps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Result;
use crate::parallel::{self, Stop};
use crate::pg::lsn::Lsn;
use crate::pg::wal_file::{WalFileKind, WalFileName};
use crate::repository::block_maps::{BlockMaps, StoredMap};
use crate::repository::catalogue::Catalogue;
use crate::repository::wal_archive::{ClusterIdentity, Stored, StoredWal, WalArchive};
use crate::storage::Place;
use crate::transfer::Work;

/// What is held in memory at most, as a store takes a file of WAL whole.
const HELD_BYTES: u64 = 256 << 20;

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub(super) wal: u64,
    pub(super) block_maps: u64,
    pub(super) bytes: u64,
}

enum Task {
    Wal(StoredWal),
    Map(StoredMap),
}

impl Task {
    fn place(&self) -> &Place {
        match self {
            Task::Wal(stored) => &stored.path,
            Task::Map(stored) => &stored.path,
        }
    }
}

/// Copies what the target lacks of what its backups can be rolled forward with.
pub(super) fn copy(work: &Work<'_>, source: &WalArchive, target: &WalArchive) -> Result<Copied> {
    work.progress.step("copy WAL", None);
    let request = work.request;
    let needed_from = needed_from(work, source.cluster())?;
    let maps = BlockMaps::of(request.target.folder);
    let mut tasks = Vec::new();
    for stored in missing_wal(source, target, needed_from)? {
        tasks.push(Task::Wal(stored));
    }
    let held: BTreeSet<_> = maps.list()?.into_iter().map(|map| map.name).collect();
    for map in BlockMaps::of(request.source.folder).list()? {
        let is_needed = needed_from.is_none_or(|position| map.name.end > position);
        if is_needed && !held.contains(&map.name) {
            tasks.push(Task::Map(map));
        }
    }
    let (wal, block_maps, bytes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let at_once = HELD_BYTES / source.cluster().segment_size.bytes();
    let mut workers = vec![(); request.workers.min(at_once.max(1) as usize)];
    let take = |task: &Task, stop: &Stop<'_>| -> Result<()> {
        let mut moved = 0;
        let mut pass = |part: u64| {
            stop.check()?;
            work.rate.take(part, || stop.is_set());
            work.progress.advance(part);
            moved += part;
            Ok(())
        };
        let (counter, stored) = match task {
            Task::Wal(stored) => (&wal, target.take_in(source, stored, &mut pass)?),
            Task::Map(map) => (&block_maps, maps.take_in(map, &mut pass)?),
        };
        if stored == Stored::New {
            counter.fetch_add(1, Ordering::Relaxed);
            bytes.fetch_add(moved, Ordering::Relaxed);
        }
        Ok(())
    };
    parallel::run(
        &mut workers,
        &tasks,
        work.interrupt,
        |(), task, stop| match take(task, stop) {
            // What expired meanwhile, or became whole, is not wanted any more.
            Err(error) if !stop.is_set() && !task.place().exists()? => {
                log::info!("passed over, as it went meanwhile: {error}");
                Ok(())
            }
            taken => taken,
        },
        || Ok(()),
    )?;
    Ok(Copied {
        wal: wal.into_inner(),
        block_maps: block_maps.into_inner(),
        bytes: bytes.into_inner(),
    })
}

/// Where the first backup of the target begins: what lies before is of no use there, and expired. Nothing where
/// it has none, or one that cannot be read.
fn needed_from(work: &Work<'_>, cluster: ClusterIdentity) -> Result<Option<Lsn>> {
    let catalogue = Catalogue::read(work.request.server, work.request.target.folder)?;
    if catalogue.unreadable().next().is_some() {
        return Ok(None);
    }
    let infos = catalogue.backups().iter();
    let infos = infos.filter_map(|backup| backup.info.as_ref().ok());
    let of_cluster = infos.filter(|info| ClusterIdentity::of_backup(info) == Some(cluster));
    Ok(of_cluster.map(|info| info.start_lsn).min())
}

/// The files that one archive has and the other has not, or not as they are now, in the order of their names.
fn missing_wal(
    source: &WalArchive,
    target: &WalArchive,
    needed_from: Option<Lsn>,
) -> Result<Vec<StoredWal>> {
    let size = source.cluster().segment_size;
    let first = needed_from.map(|position| position.segment(size));
    let files = source.files()?;
    let names = |files: &[StoredWal]| -> BTreeSet<WalFileName> {
        files.iter().map(|stored| stored.name.clone()).collect()
    };
    let (here, there) = (names(&files), names(&target.files()?));
    let is_missing = |stored: &StoredWal| {
        let segment = stored.name.segment_name(size);
        if let (Some(first), Some(segment)) = (first, segment)
            && segment.number < first
        {
            return false;
        }
        match (stored.name.kind(), segment) {
            // It grows under the same name, until it is whole.
            (WalFileKind::Partial, Some(segment)) => {
                let whole = WalFileName::segment(segment, size);
                !here.contains(&whole) && !there.contains(&whole)
            }
            // Two servers of one origin differ first in these.
            (WalFileKind::History, _) => true,
            _ => !there.contains(&stored.name),
        }
    };
    let mut missing: Vec<StoredWal> = files.into_iter().filter(is_missing).collect();
    missing.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(missing)
}
