//! What retention does not keep, removed: backups, and the archived WAL and block maps that no backup needs.

use jiff::Timestamp;

use crate::config::Retention;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::lifecycle::retention::{self, Candidate};
use crate::pg::lsn::Lsn;
use crate::progress::Progress;
use crate::repository::block_maps::BlockMaps;
use crate::repository::catalogue::Catalogue;
use crate::repository::identifier::Identifier;
use crate::repository::layout::ServerFolder;
use crate::repository::lock::{InfoLock, ServerLock};
use crate::repository::staging;
use crate::repository::wal_archive::{ClusterIdentity, WalArchive};
use crate::storage::{Place, durable};
use crate::stored::master_key::Keyring;

/// Whose backups expire.
pub struct Request<'a> {
    /// The server's name.
    pub server: &'a str,
    /// Its part of the repository.
    pub folder: &'a ServerFolder,
    /// What is kept.
    pub retention: &'a Retention,
    /// The master keys of its archive.
    pub keys: &'a Keyring,
}

/// What goes. Everything in it is named, so that it can be shown and nothing else is touched.
#[derive(Debug, Default)]
pub struct Expired {
    /// Backups, each before the one it is an increment of.
    pub backups: Vec<Identifier>,
    /// Files of the WAL archive, the oldest first.
    pub wal: Vec<Place>,
    /// Block maps of that WAL.
    pub block_maps: Vec<Place>,
    /// What of that the store has to keep for some time yet, as far as a run has met it.
    pub retained: Retained,
    /// Backups of which nothing can be read, not even what they need: while there are any, nothing goes.
    pub unreadable: Vec<Identifier>,
    /// Why nothing goes, where there are some.
    pub hindrance: Option<Error>,
}

/// What a store has to keep though it has expired. The next run tries to remove it again.
#[derive(Debug, Default)]
pub struct Retained {
    /// Backups, which nobody sees any longer.
    pub backups: Vec<Identifier>,
    /// Whether WAL or block maps are among it.
    pub has_wal: bool,
}

/// Tells what would go now. Nothing is changed, and no lock is needed.
pub fn plan(request: &Request<'_>, now: Timestamp) -> Result<Expired> {
    let catalogue = Catalogue::read(request.server, request.folder)?;
    if catalogue.backups().is_empty() {
        return Ok(Expired::default());
    }
    if catalogue.valid().next().is_none() {
        return Err(Error::damage(format!(
            "server {} has no valid backup, so nothing expires",
            request.server
        ))
        .hint(format!("pgkeep backup {} makes one", request.server)));
    }
    if let Some((first, error)) = catalogue.unreadable().next() {
        let hindrance = Error::damage(format!(
            "nothing expires while nobody can tell what backup {first} needs: {error}"
        ));
        return Ok(Expired {
            unreadable: catalogue.unreadable().map(|(name, _)| name).collect(),
            hindrance: Some(hindrance.hint(format!(
                "make it readable to this user; if it is damaged for good, pgkeep delete {} {first} --force removes it",
                request.server
            ))),
            ..Expired::default()
        });
    }
    let candidates: Vec<Candidate> = catalogue
        .backups()
        .iter()
        .filter_map(|backup| {
            let info = backup.info.as_ref().ok()?;
            Some(Candidate {
                identifier: backup.identifier,
                is_valid: catalogue.check(backup).is_ok(),
                is_kept: info.keep,
                parent: info.incremental.as_ref().map(|increment| increment.parent),
            })
        })
        .collect();
    let backups = retention::expired(&candidates, request.retention, now);
    let stay = catalogue
        .backups()
        .iter()
        .filter(|backup| !backups.contains(&backup.identifier))
        .filter_map(|backup| backup.info.as_ref().ok());
    let mut expired = Expired::default();
    if let Some(archive) = WalArchive::open(request.folder, request.keys.clone())? {
        // Positions of another cluster tell nothing about this one's WAL.
        let of_archive =
            stay.filter(|info| ClusterIdentity::of_backup(info) == Some(archive.cluster()));
        if let Some(position) = of_archive.map(|info| info.start_lsn).min() {
            expired.wal = unneeded_wal(&archive, position)?;
            expired.block_maps = unneeded_maps(request, position)?;
        }
    }
    expired.backups = backups;
    Ok(expired)
}

/// So many files are removed between two looks whether to stop.
const REMOVED_AT_ONCE: usize = 1000;

/// Removes what [`plan`] tells of.
pub fn run(
    request: &Request<'_>,
    now: Timestamp,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Expired> {
    if let Some(root) = request.folder.root().local()
        && !durable::exists(root)?
    {
        return Ok(Expired::default());
    }
    let lock = ServerLock::take(request.folder)?;
    // What a backup left that died belongs to the next one.
    let unfinished = staging::unfinished(request.folder, &lock)?;
    staging::remove_leftovers(request.folder, &lock, unfinished.as_slice())?;
    let mut expired = plan(request, now)?;
    progress.step("expire", None);
    for identifier in &expired.backups {
        interrupt.check()?;
        let info_lock = InfoLock::take(request.folder, interrupt)?;
        match staging::delete(request.folder, *identifier, &lock, &info_lock) {
            Err(error) if error.is_of_retention() => {
                log::warn!("backup {identifier} may not be removed yet: {error}");
                expired.retained.backups.push(*identifier);
            }
            deleted => deleted?,
        }
    }
    // The archive takes no lock, and replaces unfinished segments: what is gone is gone.
    let unneeded: Vec<Place> = [&*expired.wal, &*expired.block_maps].concat();
    for some in unneeded.chunks(REMOVED_AT_ONCE) {
        interrupt.check()?;
        match Place::remove_all(some) {
            Err(error) if error.is_of_retention() => {
                log::warn!("some WAL may not be removed yet: {error}");
                expired.retained.has_wal = true;
            }
            removed => removed?,
        }
    }
    Ok(expired)
}

/// Files of the archive before the segment in which the first backup that stays begins. Recovery from a backup reads no position
/// before its start, on whatever timeline. Histories stay: they are small, and tell how timelines came to be.
fn unneeded_wal(archive: &WalArchive, position: Lsn) -> Result<Vec<Place>> {
    let size = archive.cluster().segment_size;
    let first = position.segment(size);
    let mut unneeded: Vec<_> = archive
        .files()?
        .into_iter()
        .filter_map(|stored| Some((stored.name.segment_name(size)?, stored.path)))
        .filter(|(segment, _)| segment.number < first)
        .collect();
    unneeded.sort_by_cached_key(|(segment, place)| (segment.number, place.name()));
    Ok(unneeded.into_iter().map(|(_, path)| path).collect())
}

/// Maps of nothing but that WAL: an incremental backup asks for changes from its parent's start on.
fn unneeded_maps(request: &Request<'_>, position: Lsn) -> Result<Vec<Place>> {
    let maps = BlockMaps::of(request.folder).list()?;
    let unneeded = maps.into_iter().filter(|map| map.name.end <= position);
    Ok(unneeded.map(|map| map.path).collect())
}
