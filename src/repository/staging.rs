//! A backup while it is being built, beside the finished ones; and how finished ones are
//! replaced and deleted.
//!
//! In a folder that is done by renames, in an object store by `backup.info` alone: a module for each.

mod folder;
mod objects;

use crate::error::Result;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, ServerFolder};
use crate::repository::lock::{InfoLock, ServerLock};
use crate::storage::{Place, durable};

/// The folder of a backup that is not finished. Dropped before it is
/// published, it removes what was written.
#[derive(Debug)]
pub struct Staging {
    server: ServerFolder,
    lock: ServerLock,
    identifier: Identifier,
    folder: BackupFolder,
    is_over: bool,
}

impl Staging {
    /// Starts a backup's folder, or that of what shall replace one. Only the holder of the lock may.
    pub fn begin(
        server: &ServerFolder,
        lock: &ServerLock,
        identifier: Identifier,
    ) -> Result<Staging> {
        let folder = match server.backups() {
            Place::Local(backups) => folder::begin(&backups, identifier)?,
            Place::Object(..) => objects::begin(server, identifier)?,
        };
        Ok(Staging::of(server, lock, identifier, folder))
    }

    /// Takes over the folder of a backup that died, under another name.
    pub fn take_over(
        server: &ServerFolder,
        lock: &ServerLock,
        left: Identifier,
        identifier: Identifier,
    ) -> Result<Staging> {
        let folder = match server.backups() {
            Place::Local(backups) => folder::take_over(&backups, left, identifier)?,
            Place::Object(..) => objects::begin(server, identifier)?,
        };
        Ok(Staging::of(server, lock, identifier, folder))
    }

    /// Begins the folder of what is copied here from elsewhere, and a part of this name in it. What somebody who was killed has
    /// copied into that part is still there, where it lies in a folder; all else goes.
    pub fn resume(
        server: &ServerFolder,
        lock: &ServerLock,
        identifier: Identifier,
        part: &str,
    ) -> Result<(Staging, BackupFolder)> {
        let Place::Local(backups) = server.backups() else {
            let staging = Staging::begin(server, lock, identifier)?;
            let part = staging.part(part)?;
            return Ok((staging, part));
        };
        let folder = folder::resume(&backups, identifier, part)?;
        let staging = Staging::of(server, lock, identifier, folder);
        let part = staging.folder.place().join(part);
        part.create_folder()?;
        Ok((staging, BackupFolder::new(part)))
    }

    fn of(
        server: &ServerFolder,
        lock: &ServerLock,
        identifier: Identifier,
        folder: BackupFolder,
    ) -> Staging {
        Staging {
            server: server.clone(),
            lock: lock.clone(),
            identifier,
            folder,
            is_over: false,
        }
    }

    /// Where to write what replaces a backup.
    pub fn folder(&self) -> &BackupFolder {
        &self.folder
    }

    /// Makes everything written so far durable.
    pub fn sync(&self) -> Result<()> {
        self.folder.place().settle()
    }

    /// A new folder inside, for a part of the work.
    pub fn part(&self, name: &str) -> Result<BackupFolder> {
        let place = match self.folder.place() {
            place @ Place::Local(_) => place.join(name),
            Place::Object(..) => objects::part(&self.folder, &self.server, self.identifier, name),
        };
        place.create_new_folder()?;
        Ok(BackupFolder::new(place))
    }

    /// The parts that have numbers for names, in their order. All else in there is removed.
    pub fn parts(&self) -> Result<Vec<(u32, BackupFolder)>> {
        match self.folder.place() {
            Place::Local(path) => folder::parts(path),
            Place::Object(..) => Ok(Vec::new()),
        }
    }

    /// Leaves all of it to the next backup, which takes it over where it lies in a folder.
    pub fn leave(&mut self) {
        self.is_over = self.folder.place().local().is_some();
    }

    /// Makes one of its parts the backup. The rest goes.
    pub fn publish(mut self, part: &BackupFolder) -> Result<BackupFolder> {
        self.sync()?;
        self.lock.check()?;
        match (self.server.backups(), part.place()) {
            (Place::Local(backups), Place::Local(part)) => {
                folder::publish(&backups, self.identifier, part)
            }
            _ => {
                let finished = objects::publish(&self.server, self.identifier, part);
                self.is_over = true;
                self.end(&finished);
                finished.map_err(|error| self.lock.check().err().unwrap_or(error))
            }
        }
    }

    /// Puts it in the place of the finished backup of the same name, which is removed. All of it must be
    /// synced. At every moment there is one or the other.
    pub fn replace(mut self, info_lock: &InfoLock) -> Result<()> {
        self.lock.check()?;
        info_lock.check()?;
        match self.server.backups() {
            Place::Local(backups) => {
                folder::replace(&backups, self.identifier)?;
                self.is_over = true;
                durable::sync_folder(&backups)?;
                folder::remove_replaced(&backups, self.identifier);
            }
            Place::Object(..) => {
                let replaced = objects::replace(&self.server, self.identifier, &self.folder);
                self.is_over = true;
                self.end(&replaced);
                replaced.map_err(|error| self.lock.check().err().unwrap_or(error))?;
            }
        }
        Ok(())
    }

    /// Removes in a store what is not needed any more. Of what failed nobody knows whether it will be done yet. Whoever has lost the
    /// lock leaves all to the one who has it.
    fn end<T>(&self, done: &Result<T>) {
        if self.lock.check().is_err() {
            return;
        }
        let server = self.server.for_cleaning_up();
        match done {
            Ok(_) => objects::clear(&server, self.identifier, &self.folder),
            Err(_) => objects::abandon(&server, self.identifier),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // What cannot be removed now, the next writer removes.
        match self.folder.place() {
            Place::Local(path) => drop(durable::remove_folder(path)),
            Place::Object(..) => self.end(&self.folder.place().settle()),
        }
    }
}

/// Deletes a backup. It is none any more before anything of it is removed.
pub fn delete(
    server: &ServerFolder,
    identifier: Identifier,
    lock: &ServerLock,
    info_lock: &InfoLock,
) -> Result<()> {
    lock.check()?;
    info_lock.check()?;
    match server.backups() {
        Place::Local(backups) => folder::delete(&backups, identifier),
        Place::Object(..) => objects::delete(server, identifier),
    }
}

/// The newest backup that died while it was being made, if it left anything that another one can take over. In an object
/// store nothing is taken over, as nothing there can be given another name.
pub fn unfinished(server: &ServerFolder, _lock: &ServerLock) -> Result<Option<Identifier>> {
    match server.backups() {
        Place::Local(backups) => folder::unfinished(&backups),
        Place::Object(..) => Ok(None),
    }
}

/// Removes what was left behind by those that were cut short, but for what is `spared`; returns how many folders there were. A folder beside a
/// backup that cannot be read may be all that is left of it, and stays. So does what cannot be removed: no backup shall
/// fail for that.
pub fn remove_leftovers(
    server: &ServerFolder,
    _lock: &ServerLock,
    spared: &[Identifier],
) -> Result<usize> {
    match server.backups() {
        Place::Local(backups) => folder::remove_leftovers(&backups, spared),
        Place::Object(..) => objects::remove_leftovers(server, spared),
    }
}

/// Whether a name must not be given to a new backup, as what somebody had sent who died while he made one of that name may
/// still arrive. In a folder nothing does.
pub fn is_marked(server: &ServerFolder, identifier: Identifier) -> Result<bool> {
    match server.backups() {
        Place::Local(_) => Ok(false),
        Place::Object(..) => objects::is_marked(server, identifier),
    }
}

/// Every finished backup, and where it lies.
pub fn finished(server: &ServerFolder) -> Result<Vec<(Identifier, BackupFolder)>> {
    match server.backups() {
        Place::Local(backups) => folder::finished(&backups),
        Place::Object(..) => objects::finished(server),
    }
}

fn identifier_with(name: &str, suffix: &str) -> Option<Identifier> {
    name.strip_suffix(suffix)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

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
        folder.stored("x").replace(content.as_bytes()).unwrap();
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
        let content = finished[0].1.stored("x").read().unwrap().unwrap();
        String::from_utf8(content).unwrap()
    }

    fn local(place: &Place) -> &Path {
        place.local().unwrap()
    }

    fn beside(server: &ServerFolder, suffix: &str) -> PathBuf {
        local(&server.backups()).join(format!("{NAME}{suffix}"))
    }

    fn entries(server: &ServerFolder) -> usize {
        server.backups().names().unwrap().len()
    }

    #[test]
    fn only_a_published_backup_stays() {
        let (_base, server, lock) = server();
        drop(staging(&server, &lock, "x"));
        assert_eq!(entries(&server), 0);
        std::mem::forget(staging(&server, &lock, "x"));
        assert!(finished(&server).unwrap().is_empty());
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 1);
        backup(&server, &lock, "x");
        assert_eq!(content(&server), "x");
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 0);
    }

    #[test]
    fn a_backup_is_replaced_by_another_one() {
        let (_base, server, lock) = server();
        let info_lock = InfoLock::take(&server, &Interrupt::default()).unwrap();
        backup(&server, &lock, "old");
        let new = staging(&server, &lock, "new");
        new.replace(&info_lock).unwrap();
        assert_eq!(content(&server), "new");
        assert_eq!(entries(&server), 1);
    }

    #[test]
    fn a_backup_that_made_room_is_still_there() {
        let (_base, server, lock) = server();
        backup(&server, &lock, "old");
        let mut new = staging(&server, &lock, "new");
        // Cut short between the two steps.
        let finished = server.backup(NAME.parse().unwrap());
        fs::rename(local(finished.place()), beside(&server, ".replaced")).unwrap();
        assert_eq!(content(&server), "old");
        new.is_over = true;
        drop(new);
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 1);
        assert_eq!(content(&server), "old");
        assert_eq!(entries(&server), 1);
        // Cut short after them.
        let mut new = staging(&server, &lock, "new");
        folder::make_room_and_replace(local(&server.backups()), NAME.parse().unwrap()).unwrap();
        assert_eq!(content(&server), "new");
        new.is_over = true;
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 1);
        assert_eq!(content(&server), "new");
        assert_eq!(entries(&server), 1);
    }

    #[test]
    fn what_may_be_all_that_is_left_of_a_backup_stays() {
        let (_base, server, lock) = server();
        let finished = server.backup(NAME.parse().unwrap());
        backup(&server, &lock, "x");
        for suffix in [".building", ".replaced", ".deleting"] {
            fs::create_dir(beside(&server, suffix)).unwrap();
        }
        let sound = finished.info().read().unwrap().unwrap();
        finished.info().replace(b"x").unwrap();
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 0);
        assert_eq!(entries(&server), 4);
        finished.info().replace(&sound).unwrap();
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 3);
        assert_eq!(content(&server), "x");
    }

    #[test]
    fn only_what_is_named_as_a_backup_is_a_leftover() {
        let (_base, server, lock) = server();
        for name in ["notes.building", "20240928.deleting", "x.replaced"] {
            server.backups().join(name).create_folder().unwrap();
        }
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 0);
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
        let path = server.backup(identifier);
        fs::rename(local(path.place()), beside(&server, ".deleting")).unwrap();
        assert!(finished(&server).unwrap().is_empty());
        assert_eq!(remove_leftovers(&server, &lock, &[]).unwrap(), 1);
        backup(&server, &lock, "x");
        delete(&server, identifier, &lock, &info_lock).unwrap();
        assert_eq!(entries(&server), 0);
    }
}
