//! Staging in an object store: by `backup.info`.
//!
//! Nothing there can be renamed, so all that a backup stores is written where it stays, in folders of its own below that of its
//! `backup.info`, which is written last and says which of them counts:
//!
//! ```text
//! IDENTIFIER.building                   an object that is there as long as the backup is being made or replaced
//! IDENTIFIER.deleting                   an object that is there as long as the backup is being deleted
//! IDENTIFIER/backup.info                makes it a backup
//! IDENTIFIER/NAME/                      the stored files: of a pass, or of what became of several, or of what replaced the first
//! ```
//!
//! Whatever is cut short leaves one of the two objects, by which the next writer finds what to remove. That of a backup that
//! died stays for an hour, with an empty `backup.info` where there is none: what it had sent may still arrive.

use jiff::SignedDuration;

use crate::error::{Error, Kind, Result};
use crate::repository::backup_info::BackupInfo;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, INFO, ServerFolder};
use crate::repository::staging::identifier_with;
use crate::storage::Place;

const BUILDING: &str = ".building";
const DELETING: &str = ".deleting";

/// Marks a backup as one that is being made or replaced, and gives a folder of its own for what replaces it.
pub(super) fn begin(server: &ServerFolder, identifier: Identifier) -> Result<BackupFolder> {
    marker(server, identifier, BUILDING).replace(b"")?;
    // Nothing else there has it: what replaces a backup may be replaced within the same second.
    let name = jiff::Timestamp::now().as_nanosecond().to_string();
    Ok(BackupFolder::new(server.backup(identifier).stored(&name)))
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
        // Of one that died.
        Some((found, version)) if found.is_empty() => finished
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

/// Removes all that a backup does not need that is, or is not, finished; and then what marks it. Nothing that this process
/// has sent may still be on its way.
pub(super) fn clear(server: &ServerFolder, identifier: Identifier) {
    tell(remove_unneeded(server, identifier, true));
}

/// The same where something may be, as a request failed or was cut off: the next writer looks again.
pub(super) fn abandon(server: &ServerFolder, identifier: Identifier) {
    tell(remove_dead(server, identifier));
}

fn tell(removed: Result<bool>) {
    // What cannot be removed now, the next writer removes.
    if let Err(error) = removed {
        log::warn!("what is left of an unfinished backup stays for now: {error}");
    }
}

/// Removes what somebody left who died. As long as what he had sent may still arrive, the mark stays, by which the next
/// writer removes that too; and nothing of it makes a backup, or another one, of what was removed: there is a
/// `backup.info` already, an empty one, or it is not the one that he knew.
fn remove_dead(server: &ServerFolder, identifier: Identifier) -> Result<bool> {
    let folder = server.backup(identifier);
    folder.place().end_uploads()?;
    if is_unfinished(&folder)? {
        folder.info().create(b"")?;
    } else {
        let (info, version) = BackupInfo::read_version(&folder)?;
        info.replace(&folder, version.as_ref())?;
    }
    let age = marker(server, identifier, BUILDING).age()?;
    remove_unneeded(server, identifier, age.is_none_or(|age| age > ARRIVAL))
}

/// So long a request may be on its way, by any measure.
const ARRIVAL: SignedDuration = SignedDuration::from_hours(1);

/// Whether it was never finished: without a `backup.info`, or with an empty one.
fn is_unfinished(folder: &BackupFolder) -> Result<bool> {
    let info = folder.info().read()?;
    Ok(info.is_none_or(|content| content.is_empty()))
}

/// Tells whether there was anything.
fn remove_unneeded(
    server: &ServerFolder,
    identifier: Identifier,
    is_settled: bool,
) -> Result<bool> {
    let folder = server.backup(identifier);
    let needed = match is_unfinished(&folder)? {
        true => None,
        false => Some(BackupInfo::read(&folder)?.files_in.unwrap_or_default()),
    };
    let mut found = false;
    for name in folder.place().names()? {
        let place = folder.place().join(&name);
        match &needed {
            Some(needed) if name == INFO || *needed == name => {}
            // Its stored files lie beside it where it was copied here from a folder.
            Some(needed) if needed.is_empty() && !is_part(&name) => {}
            None if name == INFO && !is_settled => {}
            None if name == INFO => place.remove()?,
            _ => {
                place.remove_folder()?;
                found = true;
            }
        }
    }
    // Of a part there is one more.
    let further = needed
        .filter(|needed| !needed.is_empty())
        .map(|needed| folder.place().join(&needed).join(INFO));
    let mark = is_settled.then(|| marker(server, identifier, BUILDING));
    Place::remove_all(&further.into_iter().chain(mark).collect::<Vec<_>>())?;
    Ok(found)
}

/// Deletes a backup.
pub(super) fn delete(server: &ServerFolder, identifier: Identifier) -> Result<()> {
    let deleting = marker(server, identifier, DELETING);
    deleting.replace(b"")?;
    remove_deleted(server, identifier)
}

fn remove_deleted(server: &ServerFolder, identifier: Identifier) -> Result<()> {
    let folder = server.backup(identifier);
    // It is first what it is a backup by, and then all the rest.
    folder.info().remove()?;
    folder.place().remove_folder()?;
    marker(server, identifier, BUILDING).remove()?;
    marker(server, identifier, DELETING).remove()
}

/// Removes what others left; how many backups there were.
pub(super) fn remove_leftovers(server: &ServerFolder) -> Result<usize> {
    let mut removed = 0;
    for name in server.backups().names()? {
        let done = if let Some(identifier) = identifier_with(&name, DELETING) {
            remove_deleted(server, identifier).map(|()| true)
        } else if let Some(identifier) = identifier_with(&name, BUILDING) {
            remove_dead(server, identifier)
        } else {
            continue;
        };
        match done {
            Ok(found) => removed += usize::from(found),
            Err(error) if error.kind() == Kind::Damage => log::warn!(
                "what is left of an unfinished backup stays, as the backup beside it cannot be read: {error}"
            ),
            Err(error) => return Err(error),
        }
    }
    Ok(removed)
}

/// Every finished backup, and where its `backup.info` lies.
pub(super) fn finished(server: &ServerFolder) -> Result<Vec<(Identifier, BackupFolder)>> {
    let names = server.backups().names()?;
    let marked = |identifier: Identifier, suffix: &str| {
        names
            .iter()
            .any(|name| *name == format!("{identifier}{suffix}"))
    };
    let mut finished = Vec::new();
    for identifier in names.iter().filter_map(|name| name.parse().ok()) {
        let folder = server.backup(identifier);
        if marked(identifier, DELETING) || marked(identifier, BUILDING) && is_unfinished(&folder)? {
            continue;
        }
        finished.push((identifier, folder));
    }
    Ok(finished)
}

/// Whether it is the name of a folder that [`begin`] or a pass makes.
fn is_part(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_digit()) || name.starts_with("merged.")
}

/// Whether somebody is making a backup of this name, or died while he did.
pub(super) fn is_marked(server: &ServerFolder, identifier: Identifier) -> Result<bool> {
    let name = identifier.to_string();
    let marks = [BUILDING, DELETING].map(|suffix| format!("{name}{suffix}"));
    let found = server.backups().present(&name, marks.into_iter())?;
    Ok(!found.is_empty())
}

fn marker(server: &ServerFolder, identifier: Identifier, suffix: &str) -> Place {
    server.backups().join(&format!("{identifier}{suffix}"))
}
