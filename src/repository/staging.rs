//! A backup while it is being built, beside the finished ones; and how finished ones are
//! replaced and deleted.
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
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::repository::backup_info::BackupInfo;
use crate::repository::durable;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, INFO, JOURNAL, ServerFolder};
use crate::repository::lock::{InfoLock, ServerLock};

const BUILDING: &str = ".building";
const REPLACED: &str = ".replaced";
const DELETING: &str = ".deleting";

/// The folder of a backup that is not finished. Dropped before it is
/// published, it removes what was written.
#[derive(Debug)]
pub struct Staging {
    server: ServerFolder,
    identifier: Identifier,
    folder: BackupFolder,
    published: bool,
}

impl Staging {
    /// Starts a backup's folder. Only the holder of the lock may.
    pub fn begin(
        server: &ServerFolder,
        _lock: &ServerLock,
        identifier: Identifier,
    ) -> Result<Staging> {
        let path = with_suffix(server, identifier, BUILDING);
        durable::create_new_folder(&path)?;
        Ok(Staging {
            server: server.clone(),
            identifier,
            folder: BackupFolder::new(path),
            published: false,
        })
    }

    /// Takes over the folder of a backup that died, under another name.
    pub fn take_over(
        server: &ServerFolder,
        _lock: &ServerLock,
        left: Identifier,
        identifier: Identifier,
    ) -> Result<Staging> {
        let from = with_suffix(server, left, BUILDING);
        let staging = Staging {
            server: server.clone(),
            identifier,
            folder: BackupFolder::new(with_suffix(server, identifier, BUILDING)),
            published: false,
        };
        if left != identifier {
            rename(&from, staging.folder.path())?;
        }
        Ok(staging)
    }

    /// Where to write.
    pub fn folder(&self) -> &BackupFolder {
        &self.folder
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<()> {
        durable::sync_file_system(self.folder.path())
    }

    /// A new folder inside, for a part of the work.
    pub fn part(&self, name: &str) -> Result<BackupFolder> {
        let path = self.folder.path().join(name);
        durable::create_new_folder(&path)?;
        Ok(BackupFolder::new(path))
    }

    /// The parts that have numbers for names, in their order. All else in there is removed.
    pub fn parts(&self) -> Result<Vec<(u32, BackupFolder)>> {
        let mut parts = Vec::new();
        for name in names(self.folder.path())? {
            let path = self.folder.path().join(&name);
            match name.parse::<u32>() {
                Ok(number) => parts.push((number, BackupFolder::new(path))),
                Err(_) => durable::remove_folder(&path)?,
            }
        }
        parts.sort_by_key(|(number, _)| *number);
        Ok(parts)
    }

    /// Leaves all of it to the next backup.
    pub fn leave(&mut self) {
        self.published = true;
    }

    /// Makes one of its parts the backup: syncs everything, then renames. The rest goes.
    pub fn publish(self, part: &BackupFolder) -> Result<BackupFolder> {
        self.sync()?;
        let finished = self.server.backup(self.identifier);
        rename(part.path(), finished.path())?;
        durable::sync_folder(&self.server.backups())?;
        Ok(finished)
    }

    /// Puts it in the place of the finished backup of the same name, which is removed. All of it must be
    /// synced. At every moment there is one or the other.
    pub fn replace(mut self, _lock: &ServerLock, _info_lock: &InfoLock) -> Result<()> {
        let finished = self.server.backup(self.identifier);
        match exchange(self.folder.path(), finished.path()) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.make_room_and_replace()?,
            Err(error) => return Err(Error::io("replace", finished.path(), &error.into())),
        }
        self.published = true;
        durable::sync_folder(&self.server.backups())?;
        // What cannot be removed now, the next writer removes.
        for old in [BUILDING, REPLACED] {
            let _ = durable::remove_folder(&with_suffix(&self.server, self.identifier, old));
        }
        Ok(())
    }

    /// Network file systems cannot exchange two folders in one step.
    fn make_room_and_replace(&self) -> Result<()> {
        let finished = self.server.backup(self.identifier);
        let aside = with_suffix(&self.server, self.identifier, REPLACED);
        rename(finished.path(), &aside)?;
        rename(self.folder.path(), finished.path()).or_else(|error| {
            rename(&aside, finished.path())?;
            Err(error)
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now, the next writer removes.
            let _ = durable::remove_folder(self.folder.path());
        }
    }
}

/// Deletes a backup. It is none any more before anything of it is removed.
pub fn delete(
    server: &ServerFolder,
    identifier: Identifier,
    _lock: &ServerLock,
    _info_lock: &InfoLock,
) -> Result<()> {
    let deleting = with_suffix(server, identifier, DELETING);
    rename(server.backup(identifier).path(), &deleting)?;
    durable::sync_folder(&server.backups())?;
    durable::remove_folder(&deleting)
}

/// The newest backup that died while it was being made, if it left anything that another one can take over.
pub fn unfinished(server: &ServerFolder, _lock: &ServerLock) -> Result<Option<Identifier>> {
    let names = names(&server.backups())?;
    let building = names
        .iter()
        .filter_map(|name| identifier_with(name, BUILDING));
    let mut building: Vec<Identifier> = building
        .filter(|identifier| !names.contains(&identifier.to_string()))
        .collect();
    building.sort_unstable();
    for identifier in building.into_iter().rev() {
        let folder = with_suffix(server, identifier, BUILDING);
        for part in self::names(&folder)? {
            let part = folder.join(part);
            if durable::exists(&part.join(JOURNAL))? || durable::exists(&part.join(INFO))? {
                return Ok(Some(identifier));
            }
        }
    }
    Ok(None)
}

/// Removes what was left behind by those that were cut short, but for what is `spared`; returns how many folders there were. A folder beside a
/// backup that cannot be read may be all that is left of it, and stays. So does what cannot be removed: no backup shall
/// fail for that.
pub fn remove_leftovers(
    server: &ServerFolder,
    _lock: &ServerLock,
    spared: Option<Identifier>,
) -> Result<usize> {
    let names = names(&server.backups())?;
    let leftovers = names.iter().filter_map(|name| {
        let suffixes = [BUILDING, REPLACED, DELETING].into_iter();
        suffixes
            .filter_map(|suffix| Some((identifier_with(name, suffix)?, suffix)))
            .next()
    });
    let mut removed = 0;
    for (identifier, suffix) in leftovers {
        if suffix == BUILDING && spared == Some(identifier) {
            continue;
        }
        let path = with_suffix(server, identifier, suffix);
        let finished = server.backup(identifier);
        if !names.contains(&identifier.to_string()) {
            if suffix == REPLACED {
                rename(&path, finished.path())?;
                durable::sync_folder(&server.backups())?;
                continue;
            }
        } else if let Err(error) = BackupInfo::read(&finished) {
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
pub fn finished(server: &ServerFolder) -> Result<Vec<(Identifier, BackupFolder)>> {
    let names = names(&server.backups())?;
    let in_place: Vec<Identifier> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let aside = names
        .iter()
        .filter_map(|name| identifier_with(name, REPLACED))
        .filter(|identifier| !in_place.contains(identifier))
        .map(|identifier| {
            let path = with_suffix(server, identifier, REPLACED);
            (identifier, BackupFolder::new(path))
        });
    let finished = in_place
        .iter()
        .map(|identifier| (*identifier, server.backup(*identifier)));
    Ok(finished.chain(aside).collect())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let unreadable = |error: &io::Error| Error::io("read the folder", folder, error);
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| unreadable(&error))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(&error))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

fn with_suffix(server: &ServerFolder, identifier: Identifier, suffix: &str) -> PathBuf {
    server.backups().join(format!("{identifier}{suffix}"))
}

fn identifier_with(name: &str, suffix: &str) -> Option<Identifier> {
    name.strip_suffix(suffix)?.parse().ok()
}

fn exchange(one: &Path, other: &Path) -> std::result::Result<(), Errno> {
    rustix::fs::renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| Error::io("rename", from, &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::interrupt::Interrupt;
    use crate::repository::backup_info::tests::example;

    const NAME: &str = "20240928065644";

    fn server() -> (tempfile::TempDir, ServerFolder, ServerLock) {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let lock = ServerLock::take(&server).unwrap();
        (base, server, lock)
    }

    /// Makes a backup of one file.
    fn backup(server: &ServerFolder, lock: &ServerLock, content: &str) {
        let staging = Staging::begin(server, lock, NAME.parse().unwrap()).unwrap();
        let part = staging.part("1").unwrap();
        fill(&part, content);
        staging.publish(&part).unwrap();
    }

    fn fill(folder: &BackupFolder, content: &str) {
        fs::write(folder.stored("x"), content).unwrap();
        example(NAME).write(folder).unwrap();
    }

    /// A staged folder with one file.
    fn staging(server: &ServerFolder, lock: &ServerLock, content: &str) -> Staging {
        let staging = Staging::begin(server, lock, NAME.parse().unwrap()).unwrap();
        fill(staging.folder(), content);
        staging
    }

    /// The one finished backup's file.
    fn content(server: &ServerFolder) -> String {
        let finished = finished(server).unwrap();
        assert_eq!(finished.len(), 1);
        fs::read_to_string(finished[0].1.stored("x")).unwrap()
    }

    fn entries(server: &ServerFolder) -> usize {
        fs::read_dir(server.backups()).unwrap().count()
    }

    #[test]
    fn only_a_published_backup_stays() {
        let (_base, server, lock) = server();
        drop(staging(&server, &lock, "x"));
        assert_eq!(entries(&server), 0);
        std::mem::forget(staging(&server, &lock, "x"));
        assert!(finished(&server).unwrap().is_empty());
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 1);
        backup(&server, &lock, "x");
        assert_eq!(content(&server), "x");
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 0);
    }

    #[test]
    fn a_backup_is_replaced_by_another_one() {
        let (_base, server, lock) = server();
        let info_lock = InfoLock::take(&server, &Interrupt::default()).unwrap();
        backup(&server, &lock, "old");
        let new = staging(&server, &lock, "new");
        new.replace(&lock, &info_lock).unwrap();
        assert_eq!(content(&server), "new");
        assert_eq!(entries(&server), 1);
    }

    #[test]
    fn a_backup_that_made_room_is_still_there() {
        let (_base, server, lock) = server();
        backup(&server, &lock, "old");
        let mut new = staging(&server, &lock, "new");
        // Cut short between the two steps.
        let aside = with_suffix(&server, NAME.parse().unwrap(), REPLACED);
        rename(server.backup(NAME.parse().unwrap()).path(), &aside).unwrap();
        assert_eq!(content(&server), "old");
        new.published = true;
        drop(new);
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 1);
        assert_eq!(content(&server), "old");
        assert_eq!(entries(&server), 1);
        // Cut short after them.
        let mut new = staging(&server, &lock, "new");
        new.make_room_and_replace().unwrap();
        assert_eq!(content(&server), "new");
        new.published = true;
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 1);
        assert_eq!(content(&server), "new");
        assert_eq!(entries(&server), 1);
    }

    #[test]
    fn what_may_be_all_that_is_left_of_a_backup_stays() {
        let (_base, server, lock) = server();
        let finished = server.backup(NAME.parse().unwrap());
        backup(&server, &lock, "x");
        for suffix in [BUILDING, REPLACED, DELETING] {
            fs::create_dir(with_suffix(&server, NAME.parse().unwrap(), suffix)).unwrap();
        }
        let sound = fs::read(finished.info()).unwrap();
        fs::write(finished.info(), "x").unwrap();
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 0);
        assert_eq!(entries(&server), 4);
        fs::write(finished.info(), sound).unwrap();
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 3);
        assert_eq!(content(&server), "x");
    }

    #[test]
    fn only_what_is_named_as_a_backup_is_a_leftover() {
        let (_base, server, lock) = server();
        for name in ["notes.building", "20240928.deleting", "x.replaced"] {
            fs::create_dir(server.backups().join(name)).unwrap();
        }
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 0);
        assert_eq!(entries(&server), 3);
    }

    #[test]
    fn a_backup_is_not_built_on_top_of_a_leftover() {
        let (_base, server, lock) = server();
        let _first = staging(&server, &lock, "x");
        assert!(Staging::begin(&server, &lock, NAME.parse().unwrap()).is_err());
    }

    #[test]
    fn a_deleted_backup_is_gone_whatever_was_removed_of_it() {
        let (_base, server, lock) = server();
        let info_lock = InfoLock::take(&server, &Interrupt::default()).unwrap();
        let identifier = NAME.parse().unwrap();
        backup(&server, &lock, "x");
        let deleting = with_suffix(&server, identifier, DELETING);
        rename(server.backup(identifier).path(), &deleting).unwrap();
        assert!(finished(&server).unwrap().is_empty());
        assert_eq!(remove_leftovers(&server, &lock, None).unwrap(), 1);
        backup(&server, &lock, "x");
        delete(&server, identifier, &lock, &info_lock).unwrap();
        assert_eq!(entries(&server), 0);
    }
}
