//! Staging in an object store: by `backup.info`.
//!
//! Nothing there can be renamed, so all that a backup stores is written where it stays, in folders of its own below that of its
//! `backup.info`, which is written last and says which of them counts:
//!
//! ```text
//! IDENTIFIER.building.STAMP             an object that is there as long as the backup is being made, replaced or deleted
//! IDENTIFIER/backup.info                makes it a backup
//! IDENTIFIER/NAME.STAMP/                the stored files: of a pass, or of what became of several, or of what was copied here
//! IDENTIFIER/STAMP/                     the same of what replaced the first
//! ```
//!
//! Whatever is cut short leaves the first of these, by which the next writer finds what to remove. A request of somebody who died
//! may still arrive, even after its answer was given up and it was made again. So no two that write or delete have a STAMP in
//! common, and where there was, or might have been, a backup, a tombstone lies in place of its `backup.info` for an hour.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;

use crate::error::{Error, Kind, Result};
use crate::parallel;
use crate::repository::backup_info::{BackupInfo, TOMBSTONE, is_tombstone};
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, INFO, ServerFolder};
use crate::storage::Place;

const BUILDING: &str = ".building";

/// So long a request may be on its way, by any measure.
const ARRIVAL: SignedDuration = SignedDuration::from_hours(1);

/// What nobody else has, nor had.
fn stamp() -> String {
    jiff::Timestamp::now().as_nanosecond().to_string()
}

fn marker(server: &ServerFolder, identifier: Identifier, stamp: &str) -> Place {
    let name = format!("{identifier}{BUILDING}.{stamp}");
    server.backups().join(&name)
}

/// The backup that a mark is of.
fn marked(name: &str) -> Option<Identifier> {
    let (identifier, _) = name.split_once(BUILDING)?;
    identifier.parse().ok()
}

/// Marks a backup as one that is being made or replaced, and gives a folder of its own for what replaces it.
pub(super) fn begin(server: &ServerFolder, identifier: Identifier) -> Result<BackupFolder> {
    let stamp = stamp();
    marker(server, identifier, &stamp).replace(b"")?;
    Ok(BackupFolder::new(server.backup(identifier).stored(&stamp)))
}

/// The folder of a part of what is being made.
pub(super) fn part(
    begun: &BackupFolder,
    server: &ServerFolder,
    identifier: Identifier,
    name: &str,
) -> Place {
    let name = format!("{name}.{}", begun.place().name());
    server.backup(identifier).stored(&name)
}

/// Makes a part the backup, by a `backup.info` that says where it lies.
pub(super) fn publish(
    server: &ServerFolder,
    identifier: Identifier,
    part: &BackupFolder,
) -> Result<BackupFolder> {
    let finished = server.backup(identifier);
    let info = BackupInfo::read(part)?.in_folder(part.place().name());
    let content = info.to_bytes()?;
    let is_made = match finished.info().read_version()? {
        None => finished.info().create(&content)?,
        Some((found, version)) if is_tombstone(&found) => finished
            .info()
            .replace_version(&content, version.as_ref())?,
        Some(_) => false,
    };
    if !is_made {
        return Err(Error::failed(format!(
            "{} was made by somebody else meanwhile",
            finished.info()
        ))
        .hint("see that no two pgkeep configurations write to the same place"));
    }
    Ok(finished)
}

/// Puts what was built in a folder in the place of what the backup was.
pub(super) fn replace(
    server: &ServerFolder,
    identifier: Identifier,
    built: &BackupFolder,
) -> Result<()> {
    let finished = server.backup(identifier);
    let (before, version) = BackupInfo::read_version(&finished)?;
    let info = BackupInfo {
        revision: before.revision,
        ..BackupInfo::read(built)?.in_folder(built.place().name())
    };
    info.replace(&finished, version.as_ref())
}

/// Removes all that a backup does not need that is finished, and what marked it. Nothing that this process has sent may still be
/// on its way.
pub(super) fn clear(server: &ServerFolder, identifier: Identifier, begun: &BackupFolder) {
    let mark = marker(server, identifier, &begun.place().name());
    let cleared = end_uploads(server, identifier)
        .and_then(|()| remove_unneeded(server, identifier, Some(mark)));
    tell(cleared.map(drop));
}

/// The same where something may be, as a request failed or was cut off: the next writer looks again.
pub(super) fn abandon(server: &ServerFolder, identifier: Identifier) {
    tell(remove_dead(server, identifier, None).map(drop));
}

fn tell(removed: Result<()>) {
    // What cannot be removed now, the next writer removes.
    if let Err(error) = removed {
        log::warn!("what is left of an unfinished backup stays for now: {error}");
    }
}

fn end_uploads(server: &ServerFolder, identifier: Identifier) -> Result<()> {
    server.backup(identifier).place().end_uploads()
}

/// Removes what somebody left who died. As long as what he had sent may still arrive, which nobody can rule out without marks of
/// old, the marks stay, by which the next writer removes that too; and nothing of it makes a backup, or another one, of what was
/// removed: there is a tombstone, or a `backup.info` that is not the one that he knew.
fn remove_dead(
    server: &ServerFolder,
    identifier: Identifier,
    old: Option<&[Place]>,
) -> Result<bool> {
    let folder = server.backup(identifier);
    end_uploads(server, identifier)?;
    if is_unfinished(&folder)? {
        bury(&folder)?;
    } else {
        let (info, version) = BackupInfo::read_version(&folder)?;
        info.replace(&folder, version.as_ref())?;
    }
    let found = remove_unneeded(server, identifier, None)?;
    if let Some(marks) = old {
        if is_unfinished(&folder)? {
            folder.info().remove()?;
        }
        Place::remove_all(marks)?;
    }
    Ok(found)
}

/// Puts a tombstone in the place of a `backup.info`, or where there is none.
fn bury(folder: &BackupFolder) -> Result<()> {
    let tombstone = format!("{TOMBSTONE}{}\n", stamp());
    let is_buried = match folder.info().read_version()? {
        None => folder.info().create(tombstone.as_bytes())?,
        Some((found, _)) if is_tombstone(&found) => true,
        Some((_, version)) => folder
            .info()
            .replace_version(tombstone.as_bytes(), version.as_ref())?,
    };
    match is_buried {
        true => Ok(()),
        false => Err(
            Error::failed(format!("{} was changed meanwhile", folder.info()))
                .hint("run the same command again"),
        ),
    }
}

/// Whether it was never finished, or is no backup any more: without a `backup.info`, or with a tombstone in its place.
fn is_unfinished(folder: &BackupFolder) -> Result<bool> {
    let info = folder.info().read()?;
    Ok(info.is_none_or(|content| is_tombstone(&content)))
}

/// Removes what a backup does not need, and a mark; all but the tombstone where it is none. Tells whether there was anything.
fn remove_unneeded(
    server: &ServerFolder,
    identifier: Identifier,
    mark: Option<Place>,
) -> Result<bool> {
    let folder = server.backup(identifier);
    let needed = match is_unfinished(&folder)? {
        true => None,
        false => Some(BackupInfo::read(&folder)?.files_in.unwrap_or_default()),
    };
    let mut found = false;
    for name in folder.place().names()? {
        match &needed {
            _ if name == INFO => {}
            Some(needed) if *needed == name => {}
            // Its stored files lie beside it where it was copied here from a folder.
            Some(needed) if needed.is_empty() && !is_part(&name) => {}
            _ => {
                folder.place().join(&name).remove_folder()?;
                found = true;
            }
        }
    }
    // Of a part there is one more.
    let info = needed
        .filter(|needed| !needed.is_empty())
        .map(|needed| folder.place().join(&needed).join(INFO));
    Place::remove_all(&mark.into_iter().chain(info).collect::<Vec<_>>())?;
    Ok(found)
}

/// Deletes a backup.
pub(super) fn delete(server: &ServerFolder, identifier: Identifier) -> Result<()> {
    marker(server, identifier, &stamp()).replace(b"")?;
    // It is first what it is a backup by, and then all the rest.
    bury(&server.backup(identifier))?;
    end_uploads(server, identifier)?;
    remove_unneeded(server, identifier, None).map(drop)
}

/// Removes what others left, but for what is `spared`; how many backups there were.
pub(super) fn remove_leftovers(server: &ServerFolder, spared: &[Identifier]) -> Result<usize> {
    let mut marks: BTreeMap<Identifier, Vec<Place>> = BTreeMap::new();
    for name in server.backups().names()? {
        if let Some(identifier) = marked(&name).filter(|identifier| !spared.contains(identifier)) {
            let of_it = marks.entry(identifier).or_default();
            of_it.push(server.backups().join(&name));
        }
    }
    let marks: Vec<(Identifier, Vec<Place>)> = marks.into_iter().collect();
    let looked_at = parallel::at_once(&marks, |(identifier, marks)| {
        remove_left(server, *identifier, marks)
    });
    let mut removed = 0;
    for done in looked_at {
        match done {
            Ok(found) => removed += usize::from(found),
            Err(error) if error.kind() == Kind::Damage => log::warn!(
                "what is left of an unfinished backup stays, as the backup beside it cannot be read: {error}"
            ),
            Err(error) if error.is_of_retention() => {
                log::info!("what is left of a backup stays for some time yet: {error}");
            }
            // Whoever may not remove it can make backups all the same.
            Err(error) if error.kind() == Kind::Server && !error.is_momentary() => {
                log::warn!("what is left of a backup stays: {error}");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

fn remove_left(server: &ServerFolder, identifier: Identifier, marks: &[Place]) -> Result<bool> {
    let mut is_old = true;
    for mark in marks {
        is_old &= mark.age()?.is_none_or(|age| age > ARRIVAL);
    }
    remove_dead(server, identifier, is_old.then_some(marks))
}

/// Every finished backup, and where its `backup.info` lies.
pub(super) fn finished(server: &ServerFolder) -> Result<Vec<(Identifier, BackupFolder)>> {
    let names = server.backups().names()?;
    let marked: BTreeSet<Identifier> = names.iter().filter_map(|name| marked(name)).collect();
    let folders = names.iter().filter_map(|name| name.parse().ok());
    let folders: Vec<(Identifier, BackupFolder)> = folders
        .map(|identifier| (identifier, server.backup(identifier)))
        .collect();
    let unfinished = parallel::at_once(&folders, |(identifier, folder)| {
        match marked.contains(identifier) {
            true => is_unfinished(folder),
            false => Ok(false),
        }
    });
    let mut finished = Vec::new();
    for (folder, is_unfinished) in folders.into_iter().zip(unfinished) {
        if !is_unfinished? {
            finished.push(folder);
        }
    }
    Ok(finished)
}

/// Whether it is the name of a folder that this module makes.
fn is_part(name: &str) -> bool {
    let (first, stamp) = name.rsplit_once('.').unwrap_or((name, name));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    is_number(stamp) && (is_number(first) || first.starts_with("merged.") || first == "copied")
}

/// Whether somebody is making a backup of this name, or died while he did, or removed it.
pub(super) fn is_marked(server: &ServerFolder, identifier: Identifier) -> Result<bool> {
    let marks = server
        .backups()
        .names_with(&format!("{identifier}{BUILDING}"))?;
    Ok(!marks.is_empty())
}
