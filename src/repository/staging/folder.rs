//! Staging in a folder: by renames.
//!
//! Whatever is cut short leaves folders whose names are no backup's:
//!
//! ```text
//! IDENTIFIER.building    a backup, or what shall replace one, that is not finished; or one that was replaced. What is being
//!                        backed up has a folder in there for each pass, and for what becomes of several
//! IDENTIFIER.replaced    a backup that makes room for what replaces it, where the two cannot be exchanged in
//!                        one step; without IDENTIFIER beside it, it is the backup
//! IDENTIFIER.deleting    a backup that was deleted
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, INFO, JOURNAL};
use crate::repository::staging::identifier_with;
use crate::storage::{Place, durable};

const BUILDING: &str = ".building";
const REPLACED: &str = ".replaced";
const DELETING: &str = ".deleting";

/// Makes the folder of a backup.
pub(super) fn begin(backups: &Path, identifier: Identifier) -> Result<BackupFolder> {
    let path = with_suffix(backups, identifier, BUILDING);
    durable::create_new_folder(&path)?;
    Ok(backup(path))
}

/// Makes the folder of a backup, or keeps that of one that died, and in it a part of this name alone.
pub(super) fn resume(backups: &Path, identifier: Identifier, part: &str) -> Result<BackupFolder> {
    let path = with_suffix(backups, identifier, BUILDING);
    durable::create_folder(&path)?;
    for name in names(&path)?.iter().filter(|name| *name != part) {
        durable::remove_folder(&path.join(name))?;
    }
    Ok(backup(path))
}

/// Renames the folder of a backup that died.
pub(super) fn take_over(
    backups: &Path,
    left: Identifier,
    identifier: Identifier,
) -> Result<BackupFolder> {
    let path = with_suffix(backups, identifier, BUILDING);
    if left != identifier {
        rename(&with_suffix(backups, left, BUILDING), &path)?;
    }
    Ok(backup(path))
}

/// The parts in the folder of a backup that have numbers for names. All else goes.
pub(super) fn parts(building: &Path) -> Result<Vec<(u32, BackupFolder)>> {
    let mut parts = Vec::new();
    for name in names(building)? {
        let path = building.join(&name);
        match name.parse::<u32>() {
            Ok(number) => parts.push((number, backup(path))),
            Err(_) => durable::remove_folder(&path)?,
        }
    }
    parts.sort_by_key(|(number, _)| *number);
    Ok(parts)
}

/// Renames a part of which all is synced. The rest goes with its folder.
pub(super) fn publish(backups: &Path, identifier: Identifier, part: &Path) -> Result<BackupFolder> {
    let finished = finished_path(backups, identifier);
    rename(part, &finished)?;
    durable::sync_folder(backups)?;
    Ok(backup(finished))
}

/// Exchanges what was built with the finished backup. The folder is not synced.
pub(super) fn replace(backups: &Path, identifier: Identifier) -> Result<()> {
    let building = with_suffix(backups, identifier, BUILDING);
    let finished = finished_path(backups, identifier);
    match exchange(&building, &finished) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            make_room_and_replace(backups, identifier)
        }
        Err(error) => Err(Error::io("replace", &finished, &error.into())),
    }
}

/// Network file systems cannot exchange two folders in one step.
pub(super) fn make_room_and_replace(backups: &Path, identifier: Identifier) -> Result<()> {
    let finished = finished_path(backups, identifier);
    let aside = with_suffix(backups, identifier, REPLACED);
    rename(&finished, &aside)?;
    rename(&with_suffix(backups, identifier, BUILDING), &finished).or_else(|error| {
        rename(&aside, &finished)?;
        Err(error)
    })
}

/// Removes what [`replace`] left.
pub(super) fn remove_replaced(backups: &Path, identifier: Identifier) {
    // What cannot be removed now, the next writer removes.
    for old in [BUILDING, REPLACED] {
        let _ = durable::remove_folder(&with_suffix(backups, identifier, old));
    }
}

/// Deletes a backup.
pub(super) fn delete(backups: &Path, identifier: Identifier) -> Result<()> {
    let deleting = with_suffix(backups, identifier, DELETING);
    rename(&finished_path(backups, identifier), &deleting)?;
    durable::sync_folder(backups)?;
    durable::remove_folder(&deleting)
}

/// The newest backup that died, if it left anything of use.
pub(super) fn unfinished(backups: &Path) -> Result<Option<Identifier>> {
    let names = names(backups)?;
    let building = names
        .iter()
        .filter_map(|name| identifier_with(name, BUILDING));
    let mut building: Vec<Identifier> = building
        .filter(|identifier| !names.contains(&identifier.to_string()))
        .collect();
    building.sort_unstable();
    for identifier in building.into_iter().rev() {
        let folder = with_suffix(backups, identifier, BUILDING);
        for part in self::names(&folder)? {
            let part = folder.join(part);
            if durable::exists(&part.join(JOURNAL))? || durable::exists(&part.join(INFO))? {
                return Ok(Some(identifier));
            }
        }
    }
    Ok(None)
}

/// Removes what others left, but for what is `spared`; how many folders there were.
pub(super) fn remove_leftovers(backups: &Path, spared: &[Identifier]) -> Result<usize> {
    let names = names(backups)?;
    let leftovers = names.iter().filter_map(|name| {
        let suffixes = [BUILDING, REPLACED, DELETING].into_iter();
        suffixes
            .filter_map(|suffix| Some((identifier_with(name, suffix)?, suffix)))
            .next()
    });
    let mut removed = 0;
    for (identifier, suffix) in leftovers {
        if suffix == BUILDING && spared.contains(&identifier) {
            continue;
        }
        let path = with_suffix(backups, identifier, suffix);
        let finished = finished_path(backups, identifier);
        if !names.contains(&identifier.to_string()) {
            if suffix == REPLACED {
                rename(&path, &finished)?;
                durable::sync_folder(backups)?;
                continue;
            }
        } else if let Err(error) = BackupInfo::read(&backup(finished)) {
            log::warn!(
                "{} stays, as the backup beside it cannot be read: {error}",
                path.display()
            );
            continue;
        }
        match durable::remove_folder(&path) {
            Ok(()) => removed += 1,
            Err(error) => log::warn!("an unfinished backup stays: {error}"),
        }
    }
    Ok(removed)
}

/// Every finished backup, and where it lies.
pub(super) fn finished(backups: &Path) -> Result<Vec<(Identifier, BackupFolder)>> {
    let names = names(backups)?;
    let in_place: Vec<Identifier> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let aside = names
        .iter()
        .filter_map(|name| identifier_with(name, REPLACED))
        .filter(|identifier| !in_place.contains(identifier))
        .map(|identifier| {
            let path = with_suffix(backups, identifier, REPLACED);
            (identifier, backup(path))
        });
    let finished = in_place
        .iter()
        .map(|identifier| (*identifier, backup(finished_path(backups, *identifier))));
    Ok(finished.chain(aside).collect())
}

fn backup(path: PathBuf) -> BackupFolder {
    BackupFolder::new(Place::Local(path))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    Place::from(folder).names()
}

fn finished_path(backups: &Path, identifier: Identifier) -> PathBuf {
    backups.join(identifier.to_string())
}

fn with_suffix(backups: &Path, identifier: Identifier, suffix: &str) -> PathBuf {
    backups.join(format!("{identifier}{suffix}"))
}

fn exchange(one: &Path, other: &Path) -> std::result::Result<(), Errno> {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::io("rename", from, &error))
}
