//! A backup while it is being built, beside the finished ones.

use std::fs;
use std::io;

use crate::error::{Error, Result};
use crate::repository::durable;
use crate::repository::identifier::Identifier;
use crate::repository::layout::{BackupFolder, ServerFolder};
use crate::repository::lock::ServerLock;

const SUFFIX: &str = ".building";

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
        let path = server.backups().join(format!("{identifier}{SUFFIX}"));
        durable::create_folder(&path)?;
        Ok(Staging {
            server: server.clone(),
            identifier,
            folder: BackupFolder::new(path),
            published: false,
        })
    }

    /// Where to write.
    pub fn folder(&self) -> &BackupFolder {
        &self.folder
    }

    /// Makes it a backup: syncs everything, then renames.
    pub fn publish(mut self) -> Result<BackupFolder> {
        durable::sync_file_system(self.folder.path())?;
        let finished = self.server.backup(self.identifier);
        fs::rename(self.folder.path(), finished.path())
            .map_err(|error| Error::io("rename", self.folder.path(), &error))?;
        self.published = true;
        durable::sync_folder(&self.server.backups())?;
        Ok(finished)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.published {
            // What cannot be removed now, the next backup removes.
            let _ = durable::remove_folder(self.folder.path());
        }
    }
}

/// Removes what backups that never finished left behind; returns how many there were.
pub fn remove_leftovers(server: &ServerFolder, _lock: &ServerLock) -> Result<usize> {
    let backups = server.backups();
    let unreadable = |error: &io::Error| Error::io("read the folder", &backups, error);
    let mut removed = 0;
    for entry in fs::read_dir(&backups).map_err(|error| unreadable(&error))? {
        let entry = entry.map_err(|error| unreadable(&error))?;
        if entry.file_name().to_string_lossy().ends_with(SUFFIX) {
            durable::remove_folder(&entry.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_a_published_backup_stays() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerFolder::new(base.path(), "primary");
        server.create().unwrap();
        let lock = ServerLock::take(&server).unwrap();
        let identifier = "20240928065644".parse().unwrap();

        let staging = Staging::begin(&server, &lock, identifier).unwrap();
        fs::write(staging.folder().stored("x"), "x").unwrap();
        drop(staging);
        assert_eq!(fs::read_dir(server.backups()).unwrap().count(), 0);

        std::mem::forget(Staging::begin(&server, &lock, identifier).unwrap());
        assert_eq!(remove_leftovers(&server, &lock).unwrap(), 1);

        let staging = Staging::begin(&server, &lock, identifier).unwrap();
        fs::write(staging.folder().stored("x"), "x").unwrap();
        let finished = staging.publish().unwrap();
        assert!(finished.stored("x").exists());
        assert_eq!(remove_leftovers(&server, &lock).unwrap(), 0);
    }
}
